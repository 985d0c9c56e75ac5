"""Prepared sets as sequences of samples, and in batches of dense tensors.

Letters: N samples, M bodies, T frames, J joints.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from skelpipe.api.dense import pad, resample
from skelpipe.errors import UserError
from skelpipe.protocols.question import labels
from skelpipe.shards.card import Card, read_card
from skelpipe.skeleton import Topology
from skelpipe.stream.remote import fetch_set, is_url
from skelpipe.stream.source import Parts, Source, open_source, select


@dataclass(frozen=True)
class Sample:
    """One sample of a prepared set.

    Attributes:
        key: Its name.
        label: Its class, from 0; -1 where it has none.
        x: Coordinates (M, T, J, 3) in metres, all zero where a body is absent.
    """

    key: str
    label: int
    x: Tensor


@dataclass(frozen=True)
class Samples:
    """N samples in dense tensors on one device.

    Attributes:
        keys: Their names.
        labels: Their classes (N,), from 0; -1 where one has none.
        x: Coordinates (N, M, T, J, 3) in metres, zero where no body is. M is the same for all
            batches of a set.
        mask: True where a body is there, (N, M, T).
        frames: Frames of each sample (N,); what stands behind them in ``x`` is padding.
    """

    keys: list[str]
    labels: Tensor
    x: Tensor
    mask: Tensor
    frames: Tensor

    def __len__(self) -> int:
        return len(self.keys)


class PreparedSet:
    """The samples of a part of a prepared set, in key order. See `open_set`.

    It is a sequence: ``len()``, ``[i]`` and iteration give a `Sample` each, so that it is also a
    data set for `torch.utils.data`.

    Attributes:
        card: All that the set's card tells: data set, split, pipeline, counts, digests.
        table: A row for each sample (pyarrow): key, part, label, subject, camera, setup, bodies,
            frames and more.
    """

    def __init__(self, card: Card, source: Source) -> None:
        self.card = card
        self.table: pa.Table = source.table
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        card = self.card
        return f"<{len(self):,} samples of {card.dataset} {card.split} ({card.pipeline.name})>"

    @cached_property
    def keys(self) -> list[str]:
        """Names of all samples."""
        found: list[str] = self.table["key"].to_pylist()
        return found

    @cached_property
    def labels(self) -> Tensor:
        """Classes of all samples (N,), from 0, on the set's device."""
        return labels(self._source)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.card.classes

    @property
    def topology(self) -> Topology:
        """The skeleton: names of joints, parents, mirror pairs, parts."""
        return self.card.topology

    @cached_property
    def bodies(self) -> int:
        """M: most bodies of a sample."""
        return int(pc.max(self.table["bodies"]).as_py())

    def __getitem__(self, place: int) -> Sample:
        """One sample.

        Raises:
            IndexError: There is none at this place.
        """
        place = operator.index(place)
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        place %= len(self)
        batch = self._source.take(torch.tensor([place]))
        bodies, frames = int(batch.bodies_N), int(batch.frames_N)
        start = int(batch.start_N)
        x = batch.flat_RJC[start : start + bodies * frames].unflatten(0, (bodies, frames)).clone()
        return Sample(self.table["key"][place].as_py(), int(batch.label_N), x)

    def __iter__(self) -> Iterator[Sample]:
        return (self[place] for place in range(len(self)))

    def batches(
        self,
        size: int,
        *,
        frames: int | None = None,
        centre: float = 1.0,
        places: Sequence[int] | Tensor | None = None,
    ) -> Iterator[Samples]:
        """All samples once, so many at a time; the last batch may be smaller.

        Without ``frames`` recordings are whole, padded to the longest of their batch: what an
        encoder of `load_encoder` takes. With it all have so many frames, for networks of one's own.

        Args:
            size: Samples of a batch.
            frames: Resample to so many: the first frame of as many equal bins, or linear
                interpolation where a recording is shorter.
            centre: Share of a recording that is resampled, from its middle; test views of MAMP and
                PCM3 have 0.95.
            places: Only these samples, in this order, as `torch.randperm` shuffles them.

        Raises:
            UserError: A size below 1, or shares and places that do not exist.
        """
        order = torch.arange(len(self)) if places is None else torch.as_tensor(places).cpu()
        if size < 1 or not 0 < centre <= 1 or (frames is not None and frames < 1):
            raise UserError(
                "there are no such batches",
                found=f"size {size}, frames {frames}, centre {centre}",
                expected="size and frames from 1 on, centre above 0 and at most 1",
            )
        if len(order) and not (int(order.min()) >= 0 and int(order.max()) < len(self)):
            raise UserError(
                "there are no such samples",
                found=f"places from {int(order.min())} to {int(order.max())}",
                expected=f"0 to {len(self) - 1}",
            )
        return self._batches(size, frames, centre, order)

    def _batches(
        self, size: int, frames: int | None, centre: float, order: Tensor
    ) -> Iterator[Samples]:
        for chosen in order.split(size) if len(order) else ():
            batch = self._source.take(chosen)
            if frames is None:
                (x, mask), count = pad(batch, self.bodies), batch.frames_N
            else:
                x, mask = resample(batch, self.bodies, frames, centre)
                count = torch.full_like(batch.frames_N, frames)
            keys = self.table["key"].take(pa.array(chosen.numpy())).to_pylist()
            yield Samples(keys, batch.label_N, x, mask, count)


def open_set(
    place: str | Path,
    part: Parts = "train",
    *,
    device: str | torch.device = "cpu",
    source: Literal["mapped", "resident"] = "mapped",
) -> PreparedSet:
    """Open a prepared set.

    Args:
        place: Its folder, or its URL: ``https://``, ``s3://`` or ``gs://`` as `--data` takes them.
        part: "train", "test" or "all".
        device: Where tensors are handed out, such as "cuda".
        source: "mapped" reads samples from the shards when they are asked for; "resident" keeps all
            of them on the device (NTU RGB+D 120: 3.6 GB).

    Raises:
        UserError: No prepared set stands there, or it is damaged.
    """
    if part not in ("train", "test", "all"):
        raise UserError(f"there is no part '{part}'", expected="train, test or all")
    folder = fetch_set(str(place)) if is_url(str(place)) else Path(place)
    card = read_card(folder)
    table = select(folder, part)
    return PreparedSet(card, open_source(folder, table, torch.device(device), source))
