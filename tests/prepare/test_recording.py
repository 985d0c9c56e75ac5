from __future__ import annotations

import numpy as np
import odd
import pytest

from skelpipe.prepare.recording import Recording, RejectedError


def test_slots_are_what_a_recording_was_made_of() -> None:
    poses = np.random.default_rng(0).normal(size=(3, 5, 4, 3))
    poses[1, 2] = 0
    made = Recording.of_slots(poses)
    assert made.frames == 5
    assert made.id_R is None
    assert len(made.frame_R) == 15
    np.testing.assert_array_equal(made.slots(), poses)


@pytest.mark.parametrize("shape", [(0, 3, 4, 3), (2, 0, 4, 3)])
def test_nothing_at_all_is_a_recording_too(shape: tuple[int, ...]) -> None:
    made = Recording.of_slots(np.zeros(shape))
    assert made.frames == shape[1]
    assert made.slots().size == 0
    assert made.cut(0, 2).slots().size == 0


def test_slots_follow_the_order_within_each_frame() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        made = odd.tracked(rng, 5)
        slots = made.slots()
        for frame, bodies in enumerate(odd.in_frames(made)):
            for slot in range(len(slots)):
                expected = bodies[slot][1] if slot < len(bodies) else np.zeros((5, 3))
                np.testing.assert_array_equal(slots[slot, frame], expected)


def test_a_cut_holds_its_frames_and_no_others() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        made = odd.tracked(rng, 5) if rng.random() < 0.5 else odd.untracked(rng, 5)
        frames = odd.in_frames(made)
        start, stop = (int(number) for number in rng.integers(-3, made.frames + 4, 2))
        cut = made.cut(start, stop)
        expected = frames[max(start, 0) : max(stop, 0)]
        assert cut.frames == len(expected)
        assert (cut.id_R is None) == (made.id_R is None)
        for bodies, others in zip(odd.in_frames(cut), expected, strict=True):
            assert [number for number, _ in bodies] == [number for number, _ in others]
            for (_, xyz), (_, other) in zip(bodies, others, strict=True):
                np.testing.assert_array_equal(xyz, other)


def test_a_rejection_says_what_where_and_why() -> None:
    error = RejectedError("wrong row", line=3, found="two", expected="three")
    assert error.kind == "wrong row"
    assert error.reason == str(error) == "wrong row: line 3, found two, expected three"
    assert RejectedError("nothing").reason == "nothing"
