from __future__ import annotations

import pytest
import torch
from builders import KINECT, recording

from skelpipe.views.modality import Modality, channels, stream

# Child and parent, from 1, as MAMP, CMD and PCM3 publish them.
PAIRS = (
    "1-2 2-21 3-21 4-3 5-21 6-5 7-6 8-7 9-21 10-9 11-10 12-11 13-1 14-13 15-14 16-15 17-1 18-17 "
    "19-18 20-19 21-21 22-23 23-8 24-25 25-12"
)
CLIPS = torch.stack([torch.from_numpy(recording(seed, 6, 2)) for seed in range(3)])  # (N,M,T,J,3)


def test_bones_are_the_published_pairs() -> None:
    bones = stream(CLIPS, "bone", KINECT)
    pairs = [tuple(int(joint) - 1 for joint in pair.split("-")) for pair in PAIRS.split()]
    assert sorted(child for child, _ in pairs) == list(range(25))
    for child, parent in pairs:
        assert torch.equal(bones[..., child, :], CLIPS[..., child, :] - CLIPS[..., parent, :])
    assert bool((bones[..., 20, :] == 0).all())


def test_motion_is_the_step_to_the_next_frame() -> None:
    motion = stream(CLIPS, "motion", KINECT)
    for frame in range(5):
        assert torch.equal(motion[:, :, frame], CLIPS[:, :, frame + 1] - CLIPS[:, :, frame])
    assert bool((motion[:, :, 5] == 0).all())


@pytest.mark.parametrize("modality", ["joint", "bone", "motion"])
def test_channels_go_joint_by_joint_then_by_coordinate_then_by_body(modality: Modality) -> None:
    clips = stream(CLIPS, modality, KINECT)
    found = channels(CLIPS, modality, KINECT)
    assert found.shape == (3, 6, 150)
    for joint in range(25):
        for axis in range(3):
            for body in range(2):
                channel = (joint * 3 + axis) * 2 + body
                assert torch.equal(found[:, :, channel], clips[:, body, :, joint, axis])
