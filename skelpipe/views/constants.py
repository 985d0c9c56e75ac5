"""Small tensors that are the same in every step."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def constant(values: tuple[int, ...] | tuple[bool, ...], device: torch.device) -> Tensor:
    """The values as a tensor, copied to the device once: each copy would wait for it. Read only."""
    return torch.tensor(values, device=device)
