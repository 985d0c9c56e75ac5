from __future__ import annotations

import math

import pytest
import torch
from builders import KINECT, recording

from skelpipe.random import fold, uniform
from skelpipe.views.masking import contiguous_subsets, tube_masks
from skelpipe.views.motion import motion_masks

RATIO = (0.5, 0.9)


def clips(count: int, frames: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(recording(seed, frames)[0]) for seed in range(count)])


def literal_mask(
    key: torch.Tensor, x_WJC: torch.Tensor, patch: int, tau: float, masked: int
) -> torch.Tensor:
    """MAMP's masking, token by token: softmax of motion, Gumbel noise, the lowest are kept."""
    steps = len(x_WJC) // patch
    motion = []
    for step in range(steps):
        frames = x_WJC[step * patch : (step + 1) * patch]
        for joint in range(25):
            differences = [
                abs(float(frames[place + 1, joint, axis]) - float(frames[place, joint, axis]))
                for place in range(patch - 1)
                for axis in range(3)
            ]
            motion.append(sum(differences) / len(differences))
    weights = [math.exp(value / (max(motion) * tau)) for value in motion]
    draws = uniform(key, "motion", len(motion)).tolist()
    score = [
        math.log(weight / sum(weights)) - math.log(-math.log(draw + 2.0**-25))
        for weight, draw in zip(weights, draws, strict=True)
    ]
    kept = sorted(range(len(score)), key=score.__getitem__)[: len(score) - masked]
    mask = torch.ones(len(score), dtype=torch.bool)
    mask[kept] = False
    return mask.view(steps, 25)


@pytest.mark.parametrize(("frames", "patch"), [(64, 8), (32, 8), (8, 8), (16, 4)])
@pytest.mark.parametrize("tau", [0.8, 0.3])
def test_masks_equal_a_literal_loop(frames: int, patch: int, tau: float) -> None:
    keys, x = fold(1, frames, torch.arange(12)), clips(12, frames)
    found = motion_masks(keys, x, patch, ratio=RATIO, tau=tau)
    for key, clip, mask in zip(keys, x, found, strict=True):
        assert torch.equal(mask, literal_mask(key, clip, patch, tau, int(mask.sum())))


@pytest.mark.parametrize("frames", [64, 16, 8])
def test_as_many_tokens_are_masked_as_by_tubes(frames: int) -> None:
    keys, x = fold(2, torch.arange(60)), clips(60, frames)
    found = motion_masks(keys, x, 8, ratio=RATIO, tau=0.8)
    tubes = tube_masks(
        keys, frames // 8, contiguous_subsets(KINECT, "tree"), ratio=RATIO, min_area=8, max_area=0.5
    )
    assert torch.equal(found.flatten(1).sum(1), tubes.flatten(1).sum(1))


def test_what_moves_is_masked_more_often() -> None:
    x = clips(1, 64).expand(2000, -1, -1, -1).clone()
    x[:, :, :5] = x[:, :1, :5]  # five joints stand still
    found = motion_masks(fold(3, torch.arange(2000)), x, 8, ratio=RATIO, tau=0.8).float()
    still, moving = found[:, :, :5].mean(), found[:, :, 5:].mean()
    assert float(moving) > float(still) + 0.05
    sharp = motion_masks(fold(3, torch.arange(2000)), x, 8, ratio=RATIO, tau=0.05).float()
    assert float(sharp[:, :, :5].mean()) < float(still) - 0.2


def test_a_view_that_stands_still_is_masked_at_random() -> None:
    x = clips(1, 8)[:, :1].expand(3000, 16, -1, -1)
    found = motion_masks(fold(4, torch.arange(3000)), x, 8, ratio=RATIO, tau=0.8).float()
    assert float((found.mean(0) - found.mean()).abs().max()) < 5 * 0.5 / 3000**0.5


def test_tokens_of_one_frame_have_no_motion() -> None:
    keys = fold(5, torch.arange(20))
    found = motion_masks(keys, clips(20, 4), 1, ratio=RATIO, tau=0.8)
    alike = motion_masks(keys, torch.zeros(20, 4, 25, 3), 1, ratio=RATIO, tau=0.8)
    assert torch.equal(found, alike)


def test_masks_do_not_depend_on_their_batch() -> None:
    keys, x = fold(6, torch.arange(30)), clips(30, 16).double()
    whole = motion_masks(keys, x, 4, ratio=RATIO, tau=0.8)
    alone = [
        motion_masks(key[None], clip[None], 4, ratio=RATIO, tau=0.8)[0]
        for key, clip in zip(keys, x, strict=True)
    ]
    assert torch.equal(torch.stack(alone), whole)
