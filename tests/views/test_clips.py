from __future__ import annotations

import pytest
import torch
from builders import batch_of, mixed_samples, recording
from torch import Tensor
from torch.nn import functional as F

from skelpipe.config.pcm3 import Views
from skelpipe.stream.source import Batch
from skelpipe.views.clips import crop_clips

SAMPLES = [*mixed_samples(), recording(6, 33, 3)]  # one, two and three bodies; absences


def double_batch() -> Batch:
    batch = batch_of([poses.astype("float64") for poses in SAMPLES])
    assert batch.flat_RJC.dtype == torch.float64
    return batch


def literal_clip(sample: int, start: int, length: int, views: Views) -> Tensor:
    """One crop, shape (M, T, J, 3): bodies padded with zeros, then torch's own interpolation."""
    poses = torch.from_numpy(SAMPLES[sample].astype("float64"))
    padded = torch.zeros(views.bodies, *poses.shape[1:], dtype=torch.float64)
    shown = min(len(poses), views.bodies)
    padded[:shown] = poses[:shown]
    crop = padded[:, start : start + length].permute(0, 2, 3, 1).flatten(1, 2)
    resized = F.interpolate(
        crop[..., None], (views.frames, 1), mode="bilinear", align_corners=False
    )
    return resized[..., 0].unflatten(1, (-1, 3)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("bodies", [1, 2, 3])
@pytest.mark.parametrize("frames", [2, 16, 64])
def test_clips_equal_torchs_interpolation_of_padded_bodies(bodies: int, frames: int) -> None:
    views, batch = Views(frames=frames, bodies=bodies), double_batch()
    whole = batch.frames_N
    # All of it, a piece at its end, and one frame: shorter and longer than the clips.
    length = torch.stack([whole, (whole * 2 // 3).clamp(min=1), torch.ones_like(whole)], 1)
    start = torch.stack([torch.zeros_like(whole), whole - length[:, 1], whole // 2], 1)
    clips = crop_clips(batch, start, length, views)
    assert clips.shape == (len(SAMPLES), 3, bodies, frames, 25, 3)
    for sample in range(len(SAMPLES)):
        for crop in range(3):
            begin, size = int(start[sample, crop]), int(length[sample, crop])
            wanted = literal_clip(sample, begin, size, views)
            torch.testing.assert_close(clips[sample, crop], wanted, rtol=0, atol=1e-13)
            if size == frames:
                assert torch.equal(clips[sample, crop], wanted)


def test_slots_of_absent_bodies_are_zero_whatever_lies_behind() -> None:
    batch = double_batch()
    whole = batch.frames_N[:, None]
    clips = crop_clips(batch, torch.zeros_like(whole), whole, Views(frames=8, bodies=4))
    for sample, poses in enumerate(SAMPLES):
        assert bool((clips[sample, :, len(poses) :] == 0).all())
        assert bool((clips[sample, :, 0] != 0).any())


def test_a_clip_does_not_depend_on_its_batch() -> None:
    batch, views = batch_of(SAMPLES), Views(frames=16)
    clips = crop_clips(batch, torch.zeros(7, 1).long(), batch.frames_N[:, None], views)
    for sample, poses in enumerate(SAMPLES):
        alone = batch_of([poses])
        own = crop_clips(alone, torch.zeros(1, 1).long(), alone.frames_N[:, None], views)
        assert torch.equal(clips[sample], own[0])
