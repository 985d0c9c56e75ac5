"""What a pre-training run will take, before it starts: time, memory, disk."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from skelpipe import distributed
from skelpipe.config import Recipe, SLiMRecipe
from skelpipe.roofline import (
    DTYPES,
    cells_of,
    masked_tokens,
    measure_peaks,
    parameters,
    step_rows,
)

_ROOM = 16e9
"""Bytes that a micro-batch may take: a card of 24 GB has them, and more is hardly faster."""
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
    assert isinstance(recipe, SLiMRecipe)
    peaks = measure_peaks(device, DTYPES[recipe.train.precision])
    work = step_rows(recipe, samples=recipe.train.batch, bodies=bodies, joints=joints)
    steps = samples / recipe.train.batch * recipe.train.epochs
    least = steps * sum(piece.least_seconds(peaks) for piece in work)

    of_encoder, of_head = parameters(recipe, joints)
    weights = of_encoder + 2 * of_head
    micro = micro_batch(recipe, bodies=bodies, joints=joints, device=device)
    return Estimate(
        hours=least / _EFFICIENCY / 3600,
        memory=int(_fixed(recipe, joints) + micro * _of_a_sample(recipe, bodies, joints)),
        disk=int(4 * 4 * weights * (recipe.train.keep + 1)),
    )


def micro_batch(recipe: Recipe, *, bodies: float, joints: int, device: torch.device) -> int:
    """Samples that a rank takes at once: the recipe's number, or as many as fit.

    Fitting is two thirds of the device's memory, `_ROOM` at most; the rank's share of the batch is
    then cut into equal pieces.
    """
    if recipe.train.micro_batch:
        return recipe.train.micro_batch
    share = max(recipe.train.batch // distributed.world(), 1)
    if not isinstance(recipe, SLiMRecipe):
        return share
    room = min(memory_of(device) * 2 / 3, _ROOM) - _fixed(recipe, joints)
    fitting = max(int(room / _of_a_sample(recipe, bodies, joints)), 1)
    return math.ceil(share / math.ceil(share / fitting))


def _fixed(recipe: SLiMRecipe, joints: int) -> float:
    """Bytes whatever the micro-batch: weights, optimiser, gradients, and a chunk of logits."""
    of_encoder, of_head = parameters(recipe, joints)
    size, head = DTYPES[recipe.train.precision].itemsize, recipe.head
    # Student, teacher, gradients (and their sum over ranks) and two moments; of the prototypes
    # also both directions and the gradient before normalising, in both heads.
    weights = 6 * 4 * (of_encoder + 2 * of_head) + 6 * 4 * head.prototypes * head.bottleneck
    return weights + 2 * 2048 * head.prototypes * size


def _of_a_sample(recipe: SLiMRecipe, bodies: float, joints: int) -> float:
    """Bytes that one sample's forward pass keeps for its backward pass."""
    views, head = recipe.views, recipe.head
    cells = 2 * cells_of(recipe, views.frames, joints) * (2 if recipe.loss.clean_pass else 1)
    for local in views.local:
        cells += views.anchors * views.crops * cells_of(recipe, local.frames, joints)
    cells += masked_tokens(recipe, joints) * (4 * head.hidden + 4 * head.bottleneck)
    return 1.2 * bodies * cells * DTYPES[recipe.train.precision].itemsize


def memory_of(device: torch.device) -> int:
    """Bytes of memory the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
