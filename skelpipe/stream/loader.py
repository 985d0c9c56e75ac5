"""The endless stream of training batches. Its state is three integers: seed, epoch, step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from skelpipe.errors import UserError
from skelpipe.random import fold
from skelpipe.stream.order import global_batch, permutation, steps_per_epoch
from skelpipe.stream.source import Batch, Source


@dataclass
class Loader:
    """Batches in the order of (seed, epoch, step); set ``epoch`` and ``step`` to start elsewhere.

    Attributes:
        source: Where samples come from.
        batch: Samples in a global batch.
        seed, epoch, step: The state: the next batch is step ``step`` (from 0) of epoch ``epoch``.
    """

    source: Source
    batch: int
    seed: int
    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.steps = steps_per_epoch(len(self.source), self.batch)
        if not self.steps:
            raise UserError(
                f"a batch of {self.batch} is larger than the training part",
                found=f"{len(self.source)} samples",
                remedy=f"--batch {max(len(self.source) // 4, 1)}",
            )
        self._rows = torch.as_tensor(self.source.table["row"].to_numpy().copy())
        self._order = permutation(len(self.source), self.seed, self.epoch)
        self._order_epoch = self.epoch

    def __next__(self) -> Batch:
        if self._order_epoch != self.epoch:
            self._order = permutation(len(self.source), self.seed, self.epoch)
            self._order_epoch = self.epoch
        places = global_batch(self._order, self.step, self.batch)
        batch = self.source.take(places, fold(self.seed, self.epoch, self._rows[places]))
        self.step += 1
        if self.step == self.steps:
            self.epoch, self.step = self.epoch + 1, 0
        return batch

    def keys(self, epoch: int, step: int) -> list[str]:
        """Names of the samples of a batch, for error messages."""
        order = permutation(len(self.source), self.seed, epoch)
        places = global_batch(order, step, self.batch)
        return [self.source.table["key"][int(place)].as_py() for place in places]
