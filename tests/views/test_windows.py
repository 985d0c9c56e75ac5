from __future__ import annotations

import pytest
import torch
from builders import batch_of, recording

from skelpipe.views.windows import gather_windows, recentred, window_frames


def test_training_windows_by_hand() -> None:
    """Four frames at stride 3 span 12: six before the centre, whose frame is asked."""
    frames_N = torch.tensor([100, 100, 100, 7])
    centre_N = torch.tensor([50, 2, 99, 3])
    frame_NW, middle_N = window_frames(frames_N, centre_N, torch.full((4,), 3), 4)
    assert frame_NW.tolist() == [
        [44, 47, 50, 53],
        [0, 3, 6, 9],  # shifted inside
        [88, 91, 94, 97],
        [0, 3, 6, 6],  # nothing fits: the last frame stands for what is missing
    ]
    assert middle_N.tolist() == [50, 6, 94, 6]


@pytest.mark.parametrize("shifted", [True, False])
def test_windows_against_a_plain_loop(shifted: bool) -> None:
    for frames in (1, 5, 16, 40):
        for stride in (1, 3, 4):
            centre_N = torch.arange(frames)
            same = torch.full_like(centre_N, frames)
            frame_NW, middle_N = window_frames(
                same, centre_N, torch.full_like(same, stride), 4, shifted=shifted
            )
            for centre in range(frames):
                start = centre - 4 * stride // 2
                if shifted:
                    start = max(min(start, frames - 4 * stride), 0)
                wanted = [min(max(start + stride * step, 0), frames - 1) for step in range(4)]
                assert frame_NW[centre].tolist() == wanted
                assert middle_N[centre] == min(start + 4 * stride // 2, frames - 1)
            if not shifted:
                assert torch.equal(middle_N, centre_N)


def test_windows_hold_their_recordings_frames() -> None:
    samples = [recording(0, 20), recording(1, 30, 2, [(0, 4, 9)]), recording(2, 9, 3)]
    batch = batch_of(samples)
    which_N = torch.tensor([1, 0, 2, 1])
    frame_NW = torch.tensor([[3, 5, 7], [0, 9, 19], [8, 8, 8], [4, 6, 8]])
    windows = gather_windows(batch, which_N, frame_NW, 2)
    assert windows.x_NMWJC.shape == (4, 2, 3, 25, 3)
    assert windows.bodies_N.tolist() == [2, 1, 3, 2]
    for number, (which, frames) in enumerate(zip(which_N.tolist(), frame_NW.tolist(), strict=True)):
        for body in range(2):
            for place, frame in enumerate(frames):
                x_JC = windows.x_NMWJC[number, body, place]
                exists = body < len(samples[which])
                wanted = samples[which][body, frame] if exists else 0 * samples[which][0, 0]
                assert (x_JC.numpy() == wanted).all()
                assert windows.present_NMW[number, body, place] == bool(wanted.any())


def test_the_origin_is_the_first_body_that_is_there() -> None:
    """Body 0 is away in frames 4 to 8: where it is in the first frame it counts, else body 1."""
    samples = [recording(1, 30, 2, [(0, 4, 9)]), recording(2, 9) * 0]
    frame_NW = torch.tensor([[3, 5, 10], [5, 10, 11], [0, 1, 2]])
    found = recentred(gather_windows(batch_of(samples), torch.tensor([0, 0, 1]), frame_NW, 2), 20)
    x_MTJC = torch.from_numpy(samples[0])
    for number, (body, frame) in enumerate(((0, 3), (1, 5))):
        for slot in range(2):
            for place, at in enumerate(frame_NW[number].tolist()):
                wanted = x_MTJC[slot, at] - x_MTJC[body, frame, 20]
                wanted = wanted if x_MTJC[slot, at].any() else torch.zeros(25, 3)
                assert torch.equal(found.x_NMWJC[number, slot, place], wanted)
    assert not found.x_NMWJC[2].any()
