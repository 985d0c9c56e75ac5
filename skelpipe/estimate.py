"""What a pre-training run will take, before it starts: time, memory, disk."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from skelpipe.config import Recipe

_EFFICIENCY = 0.3
"""Share of the measured matrix-product rate that a training step reaches: a rough guess."""


@dataclass(frozen=True)
class Estimate:
    """Hours on this device, bytes of memory beside the data, bytes of disk for checkpoints."""

    hours: float
    memory: int
    disk: int


def estimate(
    recipe: Recipe, *, samples: int, bodies: float, joints: int, device: torch.device
) -> Estimate:
    """Estimate a run from its count of operations and this device's measured product rate.

    Args:
        recipe: What is run.
        samples: Training samples.
        bodies: Mean bodies of a sample.
        joints: J.
        device: Where it runs.
    """
    encoder, head, views, mask = recipe.encoder, recipe.head, recipe.views, recipe.mask

    def encoder_macs(frames: int) -> float:
        tokens = frames // encoder.patch_frames * joints + 1 + encoder.registers
        block = tokens * (4 + 2 * encoder.mlp_ratio) * encoder.dim**2 + 2 * tokens**2 * encoder.dim
        return encoder.layers * block

    mlp = encoder.dim * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    row = mlp + head.bottleneck * head.prototypes
    masked = 2 * sum(mask.ratio) / 2 * (views.frames // encoder.patch_frames) * joints
    locals_ = views.anchors * views.crops
    student = 2 * encoder_macs(views.frames)
    student += sum(locals_ * encoder_macs(local.frames) for local in views.local)
    student += (2 + locals_ * len(views.local) + masked) * row
    teacher = 2 * encoder_macs(views.frames) + (2 + masked) * row
    operations = 2 * (3 * student + teacher) * bodies * samples * recipe.train.epochs
    hours = operations / (_EFFICIENCY * _product_rate(device, recipe)) / 3600

    parameters = 2 * row + encoder.layers * (4 + 2 * encoder.mlp_ratio) * encoder.dim**2
    rows = recipe.train.batch * bodies
    # Teacher's logits and targets, student's logits, their log-softmax and gradient.
    logits = 5 * 4 * rows * masked * head.prototypes
    tokens = (2 * views.frames + locals_ * sum(v.frames for v in views.local)) * joints
    tokens //= encoder.patch_frames
    activations = 4 * rows * tokens * encoder.layers * encoder.dim * (10 + 4 * encoder.mlp_ratio)
    return Estimate(
        hours=hours,
        memory=int(logits + activations + 5 * 4 * parameters),
        disk=int(4 * 4 * parameters * (recipe.train.keep + 1)),
    )


def memory_of(device: torch.device) -> int:
    """Bytes of memory the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _product_rate(device: torch.device, recipe: Recipe) -> float:
    """Operations a second of a matrix product on this device, in the run's precision."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    size = 512 if device.type == "cpu" else 4096
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    matrix @ matrix
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < 0.1:
        float((matrix @ matrix)[0, 0])  # waits for the device
        count += 1
    return 2 * size**3 * count / elapsed
