"""What a pre-training run or a fine-tuning will take, before it starts: time, memory, disk."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from skelpipe import distributed
from skelpipe.config import PCM3Recipe, Recipe
from skelpipe.costs import (
    checkpoint_bytes,
    finetuning_rows,
    fixed_memory,
    sample_memory,
    step_rows,
)
from skelpipe.costs.roofline import DTYPES, measure_peaks

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
    peaks = measure_peaks(device, DTYPES[recipe.train.precision])
    work = step_rows(recipe, samples=recipe.train.batch, bodies=bodies, joints=joints)
    steps = samples / recipe.train.batch * recipe.train.epochs
    least = steps * sum(piece.least_seconds(peaks) for piece in work)

    micro = micro_batch(recipe, bodies=bodies, joints=joints, device=device)
    of_a_sample = sample_memory(recipe, bodies=bodies, joints=joints)
    return Estimate(
        hours=least / _EFFICIENCY / 3600,
        memory=int(fixed_memory(recipe, joints) + micro * of_a_sample),
        disk=checkpoint_bytes(recipe, joints) * (recipe.train.keep + 1),
    )


def finetuning_hours(
    recipe: Recipe,
    *,
    batch: int,
    steps: int,
    tested: int,
    head: int,
    bodies: float,
    joints: int,
    device: torch.device,
) -> float:
    """Estimate the hours of a fine-tuning as `estimate` does.

    Args:
        recipe: Gives encoder, view and precision.
        batch: Samples of a step.
        steps: Of all trainings.
        tested: Test samples, as often as they are looked at.
        head: Weights of the head.
        bodies: Mean bodies of a sample.
        joints: J.
        device: Where it runs.
    """
    peaks = measure_peaks(device, DTYPES[recipe.train.precision])
    work = finetuning_rows(recipe, samples=batch, bodies=bodies, joints=joints, head=head)
    *both, optimiser = (piece.least_seconds(peaks) for piece in work)
    least = steps * (sum(both) + optimiser) + tested / batch * sum(both) / 3
    return least / _EFFICIENCY / distributed.world() / 3600


def micro_batch(recipe: Recipe, *, bodies: float, joints: int, device: torch.device) -> int:
    """Samples that a rank takes at once: the recipe's number, or as many as fit.

    Fitting is two thirds of the device's memory, `_ROOM` at most; the rank's share of the batch is
    then cut into equal pieces. PCM3's is never cut: its batch norms take statistics of all of it.
    """
    share = max(recipe.train.batch // distributed.world(), 1)
    if isinstance(recipe, PCM3Recipe):
        return share
    if recipe.train.micro_batch:
        return recipe.train.micro_batch
    room = min(memory_of(device) * 2 / 3, _ROOM) - fixed_memory(recipe, joints)
    fitting = max(int(room / sample_memory(recipe, bodies=bodies, joints=joints)), 1)
    return math.ceil(share / math.ceil(share / fitting))


def memory_of(device: torch.device) -> int:
    """Bytes of memory the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
