"""Samples of a prepared set as ragged tensors: resident on the device, or read from mapped tars.

Both give the same `Batch` for the same rows: float32 metres, whatever the precision of the set.
Every payload is checked against the index's crc32 when it is read: once for a resident source, at
each read for a mapped one; the index is checked against the card.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from io import BufferedReader
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.shards.card import STEP, read_card
from skelpipe.shards.index import INDEX, read_index
from skelpipe.shards.tar import ITEM, PAYLOAD_HEADER, payload_header

Part = Literal["train", "test"]

_REMEDY = "copy the prepared set again, or run `skelpipe prepare … --force`"


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
    valid_N: Tensor

    def __len__(self) -> int:
        return len(self.start_N)

    def split(self, size: int) -> list[Batch]:
        """The same samples as micro-batches of at most ``size``, over the same rows."""
        parts = {
            field.name: getattr(self, field.name).split(size)
            for field in fields(self)
            if field.name.endswith("_N")
        }
        return [
            replace(self, **dict(zip(parts, values, strict=True)))
            for values in zip(*parts.values(), strict=True)
        ]


class Source(Protocol):
    """Anything that can hand out a batch by the places of its samples."""

    device: torch.device
    table: pa.Table

    def __len__(self) -> int: ...
    def take(self, places: Tensor, key_N: Tensor | None = None) -> Batch: ...


def select(
    folder: Path, part: Part, *, subjects: Sequence[int] = (), without: Sequence[int] = ()
) -> pa.Table:
    """The index rows of a part, in key order, with a column ``row``: the place in the whole index.

    Args:
        folder: A prepared set.
        part: "train" or "test".
        subjects: Only these subjects; all of them where empty.
        without: Not these subjects.

    Raises:
        UserError: No sample is left, or a subject named is not in the part.
    """
    table = read_index(folder)
    table = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int64)))
    table = table.filter(pc.equal(table["part"], part))
    known = set(table["subject"].to_pylist())
    strangers = sorted((set(subjects) | set(without)) - known)
    if strangers:
        raise UserError(
            f"subject {strangers[0]} is not in the {part} part",
            file=folder,
            expected=f"some of {sorted(known)}",
        )
    if subjects:
        table = table.filter(pc.is_in(table["subject"], pa.array(subjects, pa.int32())))
    if without:
        table = table.filter(pc.invert(pc.is_in(table["subject"], pa.array(without, pa.int32()))))
    if not len(table):
        raise UserError(f"no sample is left in the {part} part", file=folder)
    return table.sort_by("key")


class Resident:
    """All samples of a table on the device, as one ragged tensor; a batch is a gather of places.

    NTU RGB+D 120 is about 3.6 GB in float32.
    """

    def __init__(self, folder: Path, table: pa.Table, device: torch.device) -> None:
        reader = _Reader(folder, table)
        self.table = table
        self.device = device
        start = np.cumsum(reader.rows) - reader.rows
        flat = np.empty((int(reader.rows.sum()), reader.joints, 3), dtype=np.float32)
        # In the order of the files: one sequential pass over each shard.
        for shard in np.unique(reader.shard):
            with _open(folder / str(shard)) as file:
                places = np.flatnonzero(reader.shard == shard)
                for place in places[np.argsort(reader.offset[places])]:
                    end = start[place] + reader.rows[place]
                    reader.read(file, place, flat[start[place] : end])
        flat_RJC = torch.from_numpy(flat)
        self.flat_RJC = flat_RJC.to(device)
        self.present_R = _present(flat_RJC).to(device)
        self.start_N = torch.from_numpy(start).to(device)
        self.frames_N = torch.from_numpy(reader.frames).to(device)
        self.bodies_N = torch.from_numpy(reader.bodies).to(device)
        self.label_N = torch.from_numpy(reader.label).to(device)
        self.row_N = torch.from_numpy(reader.row).to(device)

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
            valid_N=torch.ones_like(places, dtype=torch.bool),
        )


class Mapped:
    """Samples read from memory-mapped shards batch by batch, for sets larger than the device."""

    def __init__(self, folder: Path, table: pa.Table, device: torch.device) -> None:
        self.table = table
        self.device = device
        self._reader = reader = _Reader(folder, table)
        self._maps = {str(name): _map(folder / str(name)) for name in np.unique(reader.shard)}

    def __len__(self) -> int:
        return len(self.table)

    def take(self, places: Tensor, key_N: Tensor | None = None) -> Batch:
        """The samples at these places, read, checked and moved to the device."""
        reader, chosen = self._reader, places.cpu().numpy()
        rows = reader.rows[chosen]
        start = np.cumsum(rows) - rows
        flat = np.empty((int(rows.sum()), reader.joints, 3), dtype=np.float32)
        for place, begin, count in zip(chosen, start, rows, strict=True):
            shard = memoryview(self._maps[str(reader.shard[place])])
            payload = shard[reader.offset[place] : reader.offset[place] + reader.size[place]]
            reader.check(place, payload[:PAYLOAD_HEADER], payload[PAYLOAD_HEADER:])
            reader.decode(payload[PAYLOAD_HEADER:], flat[begin : begin + count])
        flat_RJC = torch.from_numpy(flat)

        def on_device(array: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        return Batch(
            flat_RJC=flat_RJC.to(self.device),
            present_R=_present(flat_RJC).to(self.device),
            start_N=on_device(start),
            frames_N=on_device(reader.frames[chosen]),
            bodies_N=on_device(reader.bodies[chosen]),
            label_N=on_device(reader.label[chosen]),
            row_N=on_device(reader.row[chosen]),
            key_N=(torch.zeros_like(places) if key_N is None else key_N).to(self.device),
            valid_N=torch.ones(len(places), dtype=torch.bool, device=self.device),
        )


def open_source(
    folder: Path, table: pa.Table, device: torch.device, kind: Literal["resident", "mapped"]
) -> Source:
    """A source of the named kind over the samples of a table of `select`."""
    return (Resident if kind == "resident" else Mapped)(folder, table, device)


class _Reader:
    """Places and shapes of a table's samples, and how their payloads are checked and decoded.

    Raises:
        UserError: A shard is missing or shorter than the index says, or the index says of a sample
            what cannot be. So what is allocated for samples is bounded by bytes that are there.
    """

    def __init__(self, folder: Path, table: pa.Table) -> None:
        card = read_card(folder)
        self.folder = folder
        self.precision = card.precision
        self.joints = len(card.topology.joints)
        self.key = table["key"].to_pylist()
        self.shard = np.array(table["shard"].to_pylist())
        self.offset = _int64(table, "offset")
        self.size = _int64(table, "size")
        self.frames = _int64(table, "frames")
        self.bodies = _int64(table, "bodies")
        self.rows = self.bodies * self.frames
        self.label = _int64(table, "label")
        self.row = _int64(table, "row")
        self.crc32 = _int64(table, "crc32")
        self._check_places()
        self._scratch = bytearray()

    def read(self, file: BufferedReader, place: int, rows_RJC: npt.NDArray[np.float32]) -> None:
        """Read one sample's rows from its shard into place.

        Raises:
            UserError: The payload is damaged.
        """
        file.seek(self.offset[place])
        header = file.read(PAYLOAD_HEADER)
        size = int(self.size[place]) - PAYLOAD_HEADER
        if self.precision == "float32":
            values = rows_RJC.data.cast("B")
        else:
            if len(self._scratch) < size:
                self._scratch = bytearray(size)
            values = memoryview(self._scratch)[:size]
        read = file.readinto(values)
        self.check(place, header, values[:read])
        if self.precision != "float32":
            self.decode(values, rows_RJC)

    def decode(self, values: memoryview, rows_RJC: npt.NDArray[np.float32]) -> None:
        """Write a payload's values as metres."""
        stored = np.frombuffer(values, dtype=ITEM[self.precision]).reshape(rows_RJC.shape)
        if self.precision == "float32":
            rows_RJC[:] = stored
        else:
            np.multiply(stored, np.float32(STEP), out=rows_RJC)

    def check(self, place: int, header: bytes | memoryview, values: memoryview) -> None:
        """Hold a payload against the index.

        Raises:
            UserError: It is damaged.
        """
        shape = (int(self.bodies[place]), int(self.frames[place]), self.joints, 3)
        crc32 = zlib.crc32(values, zlib.crc32(header))
        if crc32 != self.crc32[place] or header != payload_header(shape, self.precision):
            raise self._damaged(
                place,
                found=f"{len(header) + len(values)} bytes with crc32 {crc32:08x}",
                expected=f"{self.size[place]} bytes with crc32 {int(self.crc32[place]):08x}",
            )

    def _check_places(self) -> None:
        names, which = np.unique(self.shard, return_inverse=True)
        files = np.array([_size(self.folder / str(name)) for name in names])
        row_bytes = self.joints * 3 * ITEM[self.precision].itemsize
        values = self.size - PAYLOAD_HEADER
        inside = (self.offset >= 0) & (self.offset <= files[which] - self.size)
        fits = (self.bodies > 0) & (self.frames > 0) & (values % row_bytes == 0)
        fits &= values // row_bytes == self.rows
        for place in np.flatnonzero(~(inside & fits))[:1]:
            shape = f"{self.bodies[place]} x {self.frames[place]} x {self.joints} x 3"
            raise self._damaged(
                place,
                found=f"{self.size[place]} bytes for {shape} {self.precision} in the index, "
                f"and a shard of {files[which[place]]} bytes",
                expected=f"{PAYLOAD_HEADER + int(self.rows[place]) * row_bytes} bytes in the shard",
            )
        if self.size.sum() > files.sum():
            raise UserError(
                "samples of the index overlap", file=self.folder / INDEX, remedy=_REMEDY
            )

    def _damaged(self, place: int, *, found: str, expected: str) -> UserError:
        return UserError(
            f"the sample {self.key[place]} is damaged",
            file=self.folder / str(self.shard[place]),
            place=f"byte {self.offset[place]}",
            found=found,
            expected=expected,
            remedy=f"`skelpipe verify {self.folder}` tells all that is damaged; {_REMEDY}",
        )


def _present(flat_RJC: Tensor) -> Tensor:
    """False where a row is all zero. One coordinate settles nearly all rows."""
    present_R = flat_RJC[:, 0, 0] != 0
    open_O = (~present_R).nonzero().squeeze(1)
    present_R[open_O] = (flat_RJC[open_O] != 0).flatten(1).any(1)
    return present_R


def _int64(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    return np.array(table[column].to_numpy(), dtype=np.int64)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError("a shard cannot be read", file=path, found=error, remedy=_REMEDY)
