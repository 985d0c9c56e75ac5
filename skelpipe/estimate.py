"""What a pre-training run will take, before it starts: time, memory, disk."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from skelpipe.config import Recipe
from skelpipe.roofline import DTYPES, masked_tokens, measure_peaks, parameters, step_rows

_EFFICIENCY = 0.3
"""Least time of a training step, of its time: a rough guess."""


@dataclass(frozen=True)
class Estimate:
    """Hours on this device, bytes of memory beside the data, bytes of disk for checkpoints."""

    hours: float
    memory: int
    disk: int


def estimate(
    recipe: Recipe, *, samples: int, bodies: float, joints: int, device: torch.device
) -> Estimate:
    """Estimate a run from the least time of its step at this device's measured peaks.

    Args:
        recipe: What is run.
        samples: Training samples.
        bodies: Mean bodies of a sample.
        joints: J.
        device: Where it runs.
    """
    peaks = measure_peaks(device, DTYPES[recipe.train.precision])
    work = step_rows(recipe, samples=recipe.train.batch, bodies=bodies, joints=joints)
    steps = samples / recipe.train.batch * recipe.train.epochs
    least = steps * sum(piece.least_seconds(peaks) for piece in work)

    encoder, head, views = recipe.encoder, recipe.head, recipe.views
    masked, locals_ = masked_tokens(recipe, joints), views.anchors * views.crops
    of_encoder, of_head = parameters(recipe, joints)
    weights = of_encoder + 2 * of_head
    rows = recipe.train.batch * bodies
    # Teacher's logits and targets, student's logits, their log-softmax and gradient.
    logits = 5 * 4 * rows * masked * head.prototypes
    tokens = (2 * views.frames + locals_ * sum(v.frames for v in views.local)) * joints
    tokens //= encoder.patch_frames
    activations = 4 * rows * tokens * encoder.layers * encoder.dim * (10 + 4 * encoder.mlp_ratio)
    return Estimate(
        hours=least / _EFFICIENCY / 3600,
        memory=int(logits + activations + 5 * 4 * weights),
        disk=int(4 * 4 * weights * (recipe.train.keep + 1)),
    )


def memory_of(device: torch.device) -> int:
    """Bytes of memory the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
