"""The endless stream of training batches. Its state is three integers: seed, epoch, step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.random import fold
from skelpipe.stream.ahead import Ahead
from skelpipe.stream.order import Order, Tail, permutation
from skelpipe.stream.source import Batch, Source

_DIGESTED = 2  # epochs, of which the order's digest tells the order


@dataclass
class Loader:
    """This rank's batches in the order of (seed, epoch, step).

    Set ``epoch`` and ``step`` to go on elsewhere. The global batches depend neither on the number
    of ranks nor on that of threads.

    Attributes:
        source: Where samples come from.
        batch: Samples in a global batch; `next` gives this rank's share of them.
        seed, epoch, step: The state: the next batch is step ``step`` (from 0) of epoch ``epoch``.
        tail: What becomes of samples beyond an epoch's last full batch.
        rank, world: Which of how many equal, contiguous shares of a global batch is this rank's.
        workers: Threads that read ahead; 0 reads a batch when it is asked for. What a thread fails
            at is raised when that batch is asked for.

    Raises:
        UserError: A batch larger than all there is, or one that the ranks cannot share; more ranks
            than samples, unless they are padded.
    """

    source: Source
    batch: int
    seed: int
    _: KW_ONLY
    epoch: int = 0
    step: int = 0
    tail: Tail = "drop"
    rank: int = 0
    world: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        self._order = Order(len(self.source), self.batch, self.seed, self.tail)
        self._check()
        self._rows = torch.as_tensor(self.source.table["row"].to_numpy().copy())
        # Without a reference to the loader: so its end is the threads' end.
        self._read = partial(_read, self.source, self._order, self._rows, self.rank, self.world)
        self._ahead = (
            Ahead(self._read, partial(_after, self._order), self.workers) if self.workers else None
        )

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        state = self._order.settle(self.epoch, self.step)
        batch = self._ahead.get(state) if self._ahead else self._read(state)
        self.epoch, self.step = _after(self._order, state)
        return batch

    @property
    def steps(self) -> int:
        """Steps of the current epoch."""
        return self._order.steps(self.epoch)

    def total_steps(self, epochs: int) -> int:
        """Steps of a run of so many epochs."""
        return self._order.steps_before(epochs)

    def keys(self, epoch: int, step: int) -> list[str]:
        """Names of the samples of a global batch, for error messages."""
        places = self._order.places(*self._order.settle(epoch, step)).place_G
        return [self.source.table["key"][place].as_py() for place in places.tolist()]

    def order_digest(self) -> str:
        """16 hex digits that tell one order of samples from another, whoever reads them.

        Of the batch size, seed and tail, the samples' names and numbers, and of the order in which
        the first epochs visit them.
        """
        rules = [self.batch, self.seed, self.tail, self.source.table["key"].to_pylist()]
        digest = hashlib.sha256(json.dumps(rules).encode())
        for epoch in range(_DIGESTED):
            visited = self._rows[permutation(len(self.source), self.seed, epoch)]
            digest.update(visited.numpy().astype("<i8", copy=False).tobytes())
        return digest.hexdigest()[:16]

    def close(self) -> None:
        """End the threads that read ahead; batches are still read when asked for."""
        if self._ahead:
            self._ahead.close()
            self._ahead = None

    def _check(self) -> None:
        samples, batch, world = len(self.source), self.batch, self.world
        if self.tail == "drop" and batch > samples:
            fitting = max(samples // 4 // world * world, world)
            raise UserError(
                f"a batch of {batch} is larger than the training part",
                found=f"{samples} samples",
                remedy=f"--batch {fitting}" if fitting <= samples else f"at most {samples} ranks",
            )
        if batch % world:
            less = batch // world * world
            near = [size for size in (less, less + world) if size]
            raise UserError(
                f"a batch of {batch} cannot be shared evenly by {world} ranks",
                found=f"{batch / world:.6g} samples a rank",
                remedy=f"--batch {' or '.join(map(str, near))}, or another number of ranks",
            )
        if self.tail == "carry" and world > samples:
            raise UserError(
                "there are more ranks than samples",
                found=f"{world} ranks, {samples} samples",
                remedy=f"at most {samples} ranks",
            )


_State = tuple[int, int]  # epoch, step


def _after(order: Order, state: _State) -> _State:
    epoch, step = state
    return order.settle(epoch, step + 1)


def _read(
    source: Source, order: Order, row_N: Tensor, rank: int, world: int, state: _State
) -> Batch:
    size = order.batch // world
    mine = slice(rank * size, (rank + 1) * size)
    places, epochs, valid = (part[mine] for part in order.places(*state))
    batch = source.take(places, fold(order.seed, epochs, row_N[places]))
    key = fold(order.seed, -1, *state)  # no epoch is -1: the keys of samples are others
    batch = replace(batch, key=key.to(source.device))
    return batch if order.tail != "pad" else replace(batch, valid_N=valid.to(source.device))
