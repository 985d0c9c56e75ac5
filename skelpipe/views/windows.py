"""Windows: some frames of a recording at a stride, about one of its frames.

Letters: N windows, W frames of each, M slots for bodies, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skelpipe.stream.source import Batch


@dataclass(frozen=True)
class Windows:
    """N windows.

    Attributes:
        x_NMWJC: Coordinates; zeros where a body is absent.
        present_NMW: False there.
        bodies_N: Bodies of each window's recording.
    """

    x_NMWJC: Tensor
    present_NMW: Tensor
    bodies_N: Tensor

    def __len__(self) -> int:
        return len(self.bodies_N)


def window_frames(
    frames_N: Tensor, centre_N: Tensor, stride_N: Tensor, window: int, *, shifted: bool = True
) -> tuple[Tensor, Tensor]:
    """Which frames of their recordings windows have.

    A window of W frames at stride s begins floor(W s / 2) frames before its centre.

    Args:
        frames_N: Of each window's recording.
        centre_N: The frame that each is about.
        stride_N: s.
        window: W.
        shifted: A window that reaches beyond its recording is shifted inside, as far as it fits.
            Otherwise, and where the recording is too short, the first or last frame stands for what
            is missing.

    Returns:
        Frames, shape (N, W), and the frame in the middle of each window, shape (N,): its centre,
        unless it was shifted; int64.
    """
    span_N = window * stride_N
    start_N = centre_N - span_N // 2
    if shifted:
        start_N = start_N.minimum(frames_N - span_N).clamp(min=0)
    place_NW = start_N[:, None] + stride_N[:, None] * torch.arange(window, device=start_N.device)
    last_N = frames_N - 1
    middle_N = (start_N + span_N // 2).minimum(last_N)
    return place_NW.clamp(min=0).minimum(last_N[:, None]), middle_N


def gather_windows(batch: Batch, which_N: Tensor, frame_NW: Tensor, bodies: int) -> Windows:
    """The coordinates of windows.

    Args:
        batch: Recordings.
        which_N: The place in the batch of each window's recording.
        frame_NW: Of `window_frames`.
        bodies: M; further bodies are left out, absent ones are zeros.
    """
    slot_M = torch.arange(bodies, device=frame_NW.device)
    bodies_N, frames_N = batch.bodies_N[which_N], batch.frames_N[which_N]
    exists_NM = slot_M < bodies_N[:, None]
    begin_NM = batch.start_N[which_N, None] + torch.where(exists_NM, slot_M * frames_N[:, None], 0)
    row_NMW = begin_NM[:, :, None] + frame_NW[:, None]
    x_RJC = batch.flat_RJC.index_select(0, row_NMW.flatten())
    x_NMWJC = x_RJC.view(*row_NMW.shape, *x_RJC.shape[1:])
    return Windows(
        x_NMWJC.masked_fill_(~exists_NM[:, :, None, None, None], 0),
        batch.present_R[row_NMW] & exists_NM[:, :, None],
        bodies_N,
    )


def recentred(windows: Windows, joint: int) -> Windows:
    """Windows whose origin is a joint: the first present body's in the first frame with one."""
    count, bodies, _ = windows.present_NMW.shape
    # The first True of all frames' bodies, frame by frame.
    first_N = windows.present_NMW.mT.flatten(1).int().argmax(1)
    every = torch.arange(count, device=first_N.device)
    origin_NC = windows.x_NMWJC[every, first_N % bodies, first_N // bodies, joint]
    x_NMWJC = windows.x_NMWJC - origin_NC[:, None, None, None]
    absent_NMW = ~windows.present_NMW
    return Windows(
        x_NMWJC.masked_fill_(absent_NMW[..., None, None], 0), windows.present_NMW, windows.bodies_N
    )
