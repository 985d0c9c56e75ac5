"""The epoch's order: pure functions of (seed, epoch, step)."""

from __future__ import annotations

import torch
from torch import Tensor

from skelpipe.random import bits, fold


def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits its samples: the argsort of keyed 64-bit hashes.

    Returns:
        A permutation of 0 ... count - 1, shape (count,), int64, on the CPU.
    """
    keys = fold(seed, epoch, torch.arange(count))
    return torch.argsort(bits(keys, "order", 1)[:, 0], stable=True)


def steps_per_epoch(count: int, batch: int) -> int:
    """Full global batches in an epoch; the tail of count mod batch samples is dropped."""
    return count // batch


def global_batch(order: Tensor, step: int, batch: int) -> Tensor:
    """The places in the epoch's order that step ``step`` of the epoch visits, shape (batch,)."""
    return order[step * batch : (step + 1) * batch]
