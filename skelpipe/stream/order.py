"""The epoch's order, and which global batch holds what: pure functions of (seed, epoch, step).

Nothing here knows of ranks or threads: global batches are the same for any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from skelpipe.random import bits, fold

Tail = Literal["drop", "carry", "pad"]
"""What becomes of the samples of an epoch beyond its last full global batch.

drop: This epoch leaves them out. carry: They open the next epoch, so that global batches are cut
from the epochs' joined orders. pad: Samples from the start of the order, which do not count, fill
up a last batch: for evaluation.
"""


class Places(NamedTuple):
    """Who is in a global batch of G samples.

    Attributes:
        place_G: Places of its samples in the source, int64.
        epoch_G: The epoch that each belongs to: under "carry" a batch may hold several.
        valid_G: False where a sample only fills up the batch.
    """

    place_G: Tensor
    epoch_G: Tensor
    valid_G: Tensor


def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits its samples: the argsort of keyed 64-bit hashes.

    Returns:
        A permutation of 0 ... count - 1, shape (count,), int64, on the CPU.
    """
    keys = fold(seed, epoch, torch.arange(count))
    return torch.argsort(bits(keys, "order", 1)[:, 0], stable=True)


_recent = lru_cache(maxsize=4)(permutation)


@dataclass(frozen=True)
class Order:
    """How epochs of ``count`` samples are cut into global batches of ``batch``."""

    count: int
    batch: int
    seed: int
    tail: Tail = "drop"

    def steps_before(self, epoch: int) -> int:
        """Global batches in all epochs before this one: in the whole run, of its number of epochs.

        Under "carry" one epoch may have a step more than another; one that is smaller than a batch
        often has none.
        """
        if self.tail == "carry":
            return epoch * self.count // self.batch
        full, rest = divmod(self.count, self.batch)
        return epoch * (full + (self.tail == "pad" and rest > 0))

    def steps(self, epoch: int) -> int:
        """Global batches that end in this epoch."""
        return self.steps_before(epoch + 1) - self.steps_before(epoch)

    def settle(self, epoch: int, step: int) -> tuple[int, int]:
        """The same place as a step that its epoch has."""
        while step >= (steps := self.steps(epoch)):
            epoch, step = epoch + 1, step - steps
        return epoch, step

    def places(self, epoch: int, step: int) -> Places:
        """The global batch of step ``step`` (from 0) of an epoch."""
        if self.tail == "carry":  # places in all orders joined
            first = (self.steps_before(epoch) + step) * self.batch
        else:
            first = epoch * self.count + step * self.batch
        joined_G = first + torch.arange(self.batch)
        epoch_G, place_G = joined_G // self.count, joined_G % self.count
        valid_G = torch.ones(self.batch, dtype=torch.bool)
        if self.tail == "pad":
            valid_G = epoch_G == epoch
            epoch_G = torch.full_like(epoch_G, epoch)
        for number in range(int(epoch_G[0]), int(epoch_G[-1]) + 1):
            here = epoch_G == number
            place_G[here] = _recent(self.count, self.seed, number)[place_G[here]]
        return Places(place_G, epoch_G, valid_G)
