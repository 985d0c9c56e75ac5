"""The table of pipelines, and the one that stores recordings as they are."""

from __future__ import annotations

import numpy as np
import odd
import pytest

from skelpipe.errors import UserError
from skelpipe.prepare.normalise import PIPELINES, find_pipeline
from skelpipe.prepare.recording import Recording, RejectedError


def test_unknown_names_are_the_users_mistakes() -> None:
    with pytest.raises(UserError, match="did you mean 'agcn'"):
        find_pipeline("acgn")
    pipeline = find_pipeline("ctrgcn")
    with pytest.raises(UserError, match="'ctrgcn' has no switch 'gap'"):
        pipeline.settled({"gap": "kept"})
    with pytest.raises(UserError, match="it has none"):
        find_pipeline("recordings").settled({"gaps": "kept"})
    with pytest.raises(UserError, match="closed or kept"):
        pipeline.settled({"gaps": "open"})


def test_a_pipeline_is_found_by_its_own_name_and_its_first_values_are_the_default() -> None:
    assert all(find_pipeline(name).name == name for name in PIPELINES)
    assert find_pipeline("ctrgcn").settled({}) == {"gaps": "closed", "centre": "first"}
    assert find_pipeline("agcn").settled({"tail": "zeros"}) == {"gaps": "closed", "tail": "zeros"}
    assert find_pipeline("recordings").settled({}) == {}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_recording_is_left_as_it_is_and_gives_the_same_bytes_again(name: str) -> None:
    rng = np.random.default_rng(0)
    pipeline = find_pipeline(name)
    for make in odd.tracked, odd.untracked:
        made = make(rng, 25)
        while len(made.frame_R) < 20 or not made.xyz_RJC.any():
            made = make(rng, 25)
        before = made.xyz_RJC.copy()
        first = pipeline.apply(made, odd.KINECT, pipeline.settled({}))
        again = pipeline.apply(made, odd.KINECT, pipeline.settled({}))
        np.testing.assert_array_equal(made.xyz_RJC, before)
        assert first.tobytes() == again.tobytes()
        assert first.flags.c_contiguous
        assert first.dtype == np.float32


def test_recordings_are_stored_as_they_are_but_for_places_where_nobody_ever_stands() -> None:
    poses = np.random.default_rng(1).normal(size=(4, 500, 25, 3))
    poses[1] = poses[3] = 0
    poses[0, :7] = 0
    apply = find_pipeline("recordings").apply
    stored = apply(Recording.of_slots(poses), odd.KINECT, {})
    np.testing.assert_array_equal(stored, poses[:3].astype(np.float32))
    with pytest.raises(RejectedError, match="empty clip"):
        apply(Recording.of_slots(poses[3:]), odd.KINECT, {})
