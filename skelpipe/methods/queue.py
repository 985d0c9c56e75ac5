"""The queue of keys that serve as negatives (MoCo's memory bank; PCM3, Sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeyQueue(nn.Module):
    """The last K keys, first in, first out; at first random directions, as released.

    The released code needs a K that the batch divides; here keys that do not fit at the end go on
    at the start.

    Attributes:
        keys_KP: Keys of unit length.
        place: Where the next key goes, a 0-d tensor.
    """

    keys_KP: Tensor
    place: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        keys_KP = F.normalize(nn.init.normal_(torch.empty(length, dim)), dim=-1)
        self.register_buffer("keys_KP", keys_KP)
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, key_NP: Tensor) -> None:
        """Put N keys, at most K, over the oldest ones."""
        rows = torch.arange(len(key_NP), device=self.place.device)
        self.keys_KP[(self.place + rows) % len(self.keys_KP)] = key_NP.to(self.keys_KP.dtype)
        self.place.copy_((self.place + len(key_NP)) % len(self.keys_KP))
