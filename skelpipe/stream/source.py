"""Samples of a prepared set as ragged tensors: resident on the device, or read batch by batch.

Both give the same `Batch` for the same rows: float32 metres, whatever the precision of the set.
Every payload is checked against the index's crc32 when it is read: once for a resident source, at
each read for a mapped one; the index is checked against the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.shards.card import Card, read_card
from skelpipe.shards.index import read_index
from skelpipe.stream.buffers import Buffers
from skelpipe.stream.payloads import Files, Payloads, Shards
from skelpipe.stream.remote import Served, url_of

Part = Literal["train", "test"]
Parts = Part | Literal["all"]

_AT_ONCE = 256  # samples


@dataclass(frozen=True)
class Batch:
    """N samples as one ragged tensor.

    Attributes:
        flat_RJC: Rows of all samples: body by body, within a body frame by frame; metres.
        present_R: False where a row is all zero: the body is absent in that frame.
        start_N: First row of each sample.
        frames_N: Frames of each sample; body m's frame t is row start + m * frames + t.
        bodies_N: Bodies of each sample.
        label_N: Class, from 0.
        row_N: Place of each sample in the prepared set's index: its number, wherever it is read.
        key_N: Keys of the random draws for (seed, epoch, sample); zeros outside training.
        key: Of the draws for (seed, epoch, step), which a global batch shares, 0-d; as `key_N`.
        valid_N: False where a sample only fills up the batch and must not count.
    """

    flat_RJC: Tensor
    present_R: Tensor
    start_N: Tensor
    frames_N: Tensor
    bodies_N: Tensor
    label_N: Tensor
    row_N: Tensor
    key_N: Tensor
    key: Tensor
    valid_N: Tensor

    def __len__(self) -> int:
        return len(self.start_N)


class Source(Protocol):
    """Anything that can hand out a batch by the places of its samples."""

    device: torch.device
    table: pa.Table

    def __len__(self) -> int: ...
    def take(self, places: Tensor, key_N: Tensor | None = None) -> Batch: ...


def select(
    folder: Path, part: Parts, *, subjects: Sequence[int] = (), without: Sequence[int] = ()
) -> pa.Table:
    """Index rows of a part or of all, in key order; a column ``row``: the place in the whole index.

    Args:
        folder: A prepared set.
        part: "train", "test" or "all".
        subjects: Only these subjects; all of them where empty.
        without: Not these subjects.

    Raises:
        UserError: No sample is left, or a subject named is not in the part.
    """
    table = read_index(folder)
    table = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int64)))
    where = "the set"
    if part != "all":
        where = f"the {part} part"
        table = table.filter(pc.equal(table["part"], part))
    known = set(table["subject"].to_pylist())
    strangers = sorted((set(subjects) | set(without)) - known)
    if strangers:
        raise UserError(
            f"subject {strangers[0]} is not in {where}",
            file=folder,
            expected=f"some of {sorted(known)}",
        )
    if subjects:
        table = table.filter(pc.is_in(table["subject"], pa.array(subjects, pa.int32())))
    if without:
        table = table.filter(pc.invert(pc.is_in(table["subject"], pa.array(without, pa.int32()))))
    if not len(table):
        raise UserError(f"no sample is left in {where}", file=folder)
    return table.sort_by("key")


class Resident:
    """All samples of a table on the device, as one ragged tensor; a batch is a gather of places.

    NTU RGB+D 120 is about 3.6 GB in float32. Where some joints are selected, all of them are read
    first, in the host's memory.
    """

    def __init__(
        self,
        folder: Path,
        table: pa.Table,
        device: torch.device,
        joints: Sequence[int] | None = None,
    ) -> None:
        payloads = _payloads(folder, table)
        self.table = table
        self.device = device = _numbered(device)
        start = np.cumsum(payloads.rows) - payloads.rows
        flat = np.empty((int(payloads.rows.sum()), payloads.joints, 3), dtype=np.float32)
        every = payloads.in_file_order()  # one sequential pass over each shard
        for first in range(0, len(every), _AT_ONCE):
            some = every[first : first + _AT_ONCE]
            payloads.fill(some, start[some], flat)
        flat_RJC = _chosen(torch.from_numpy(flat), joints)
        self.flat_RJC = flat_RJC.to(device)
        self.present_R = _present(flat_RJC).to(device)
        self.start_N = torch.from_numpy(start).to(device)
        self.frames_N = torch.from_numpy(payloads.frames).to(device)
        self.bodies_N = torch.from_numpy(payloads.bodies).to(device)
        self.label_N = torch.from_numpy(payloads.label).to(device)
        self.row_N = torch.from_numpy(payloads.row).to(device)

    def __len__(self) -> int:
        return len(self.start_N)

    def take(self, places: Tensor, key_N: Tensor | None = None) -> Batch:
        """The samples at these places, without a copy of their coordinates."""
        places = places.to(self.device)
        return Batch(
            flat_RJC=self.flat_RJC,
            present_R=self.present_R,
            start_N=self.start_N[places],
            frames_N=self.frames_N[places],
            bodies_N=self.bodies_N[places],
            label_N=self.label_N[places],
            row_N=self.row_N[places],
            key_N=torch.zeros_like(places) if key_N is None else key_N.to(self.device),
            key=places.new_zeros(()),
            valid_N=torch.ones_like(places, dtype=torch.bool),
        )


class Mapped:
    """Samples read from memory-mapped shards batch by batch, for sets larger than the device.

    Several threads may take batches at once.
    """

    def __init__(
        self,
        folder: Path,
        table: pa.Table,
        device: torch.device,
        joints: Sequence[int] | None = None,
    ) -> None:
        self.table = table
        self.device = _numbered(device)
        self._joints = joints
        self._payloads = _payloads(folder, table)
        self._buffers = Buffers()

    def __len__(self) -> int:
        return len(self.table)

    def take(self, places: Tensor, key_N: Tensor | None = None) -> Batch:
        """The samples at these places, read, checked and moved to the device."""
        payloads, chosen = self._payloads, places.cpu().numpy()
        rows = payloads.rows[chosen]
        start = np.cumsum(rows) - rows
        shape = (int(rows.sum()), payloads.joints, 3)
        if self.device.type == "cuda":
            # Torch keeps pinned memory for the next batch, and until the copy is done.
            flat_RJC = torch.empty(shape, dtype=torch.float32, pin_memory=True)
        else:
            flat_RJC = torch.from_numpy(self._buffers.empty(*shape))
        payloads.fill(chosen, start, flat_RJC.numpy())
        flat_RJC = _chosen(flat_RJC, self._joints)

        def on_device(values: Tensor) -> Tensor:
            return values.to(self.device, non_blocking=True)

        return Batch(
            flat_RJC=on_device(flat_RJC),
            present_R=on_device(_present(flat_RJC)),
            start_N=on_device(torch.from_numpy(start)),
            frames_N=on_device(torch.from_numpy(payloads.frames[chosen])),
            bodies_N=on_device(torch.from_numpy(payloads.bodies[chosen])),
            label_N=on_device(torch.from_numpy(payloads.label[chosen])),
            row_N=on_device(torch.from_numpy(payloads.row[chosen])),
            key_N=on_device(torch.zeros_like(places) if key_N is None else key_N),
            key=torch.zeros((), dtype=torch.int64, device=self.device),
            valid_N=torch.ones(len(places), dtype=torch.bool, device=self.device),
        )


def open_source(
    folder: Path,
    table: pa.Table,
    device: torch.device,
    kind: Literal["resident", "mapped"],
    joints: Sequence[int] | None = None,
) -> Source:
    """A source of the named kind over the samples of a table of `select`.

    The shards of a folder of `remote.fetch_set` are fetched when they are first needed.

    Args:
        folder: A prepared set.
        table: Of `select`.
        device: Where batches go.
        kind: Whether all samples are read at once.
        joints: Only these of the set's joints, in this order; a body is absent in a frame where all
            of these are zero. None for all as they are.
    """
    return (Resident if kind == "resident" else Mapped)(folder, table, device, joints)


def open_shards(folder: Path, card: Card, table: pa.Table) -> Shards:
    """The bytes of the shards that a table of `select` names: of the folder, or of a server."""
    served = url_of(folder)
    return Files(folder) if served is None else Served(folder, card, table, served)


def _payloads(folder: Path, table: pa.Table) -> Payloads:
    card = read_card(folder)
    return Payloads(folder, card, table, open_shards(folder, card, table))


def _numbered(device: torch.device) -> torch.device:
    """The device with its number: plain "cuda" may be another one in another thread."""
    return torch.empty(0, device=device).device


def _chosen(flat_RJC: Tensor, joints: Sequence[int] | None) -> Tensor:
    return flat_RJC if joints is None else flat_RJC[:, list(joints)]


def _present(flat_RJC: Tensor) -> Tensor:
    """False where a row is all zero. One coordinate settles nearly all rows."""
    present_R = flat_RJC[:, 0, 0] != 0
    open_O = (~present_R).nonzero().squeeze(1)
    present_R[open_O] = (flat_RJC[open_O] != 0).flatten(1).any(1)
    return present_R
