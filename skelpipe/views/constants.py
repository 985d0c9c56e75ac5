"""Small tensors that are the same in every step."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from skelpipe.skeleton import Topology


@lru_cache(maxsize=64)
def constant(values: tuple[int, ...] | tuple[bool, ...], device: torch.device) -> Tensor:
    """The values as a tensor, copied to the device once: each copy would wait for it. Read only."""
    return torch.tensor(values, device=device)


def part_of(topology: Topology, device: torch.device) -> Tensor:
    """Number of the part that each joint belongs to, shape (J,)."""
    return constant(tuple(topology.part_of.tolist()), device)
