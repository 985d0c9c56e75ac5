"""Samples of a prepared set as ragged tensors: resident on the device, or read from mapped tars.

Both give the same `Batch` for the same rows. Every payload is checked against the index's crc32
when it is read: once for a resident source, at each read for a mapped one.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.shards.card import Card, read_card
from skelpipe.shards.index import read_index

Part = Literal["train", "test"]


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
    """

    flat_RJC: Tensor
    present_R: Tensor
    start_N: Tensor
    frames_N: Tensor
    bodies_N: Tensor
    label_N: Tensor
    row_N: Tensor
    key_N: Tensor

    def __len__(self) -> int:
        return len(self.start_N)


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
        rows = reader.bodies * reader.frames
        start = np.cumsum(rows) - rows
        flat = np.empty((int(rows.sum()), reader.joints, 3), dtype=np.float32)
        # In the order of the files: one sequential pass over each shard.
        for place in np.lexsort((reader.offset, reader.shard)):
            flat[start[place] : start[place] + rows[place]] = reader.read(place)
        self.flat_RJC = torch.from_numpy(flat).to(device)
        self.present_R = (self.flat_RJC != 0).flatten(1).any(1)
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
        )


class Mapped:
    """Samples read from memory-mapped shards batch by batch, for sets larger than the device."""

    def __init__(self, folder: Path, table: pa.Table, device: torch.device) -> None:
        self.table = table
        self.device = device
        self._reader = _Reader(folder, table)

    def __len__(self) -> int:
        return len(self.table)

    def take(self, places: Tensor, key_N: Tensor | None = None) -> Batch:
        """The samples at these places, read, checked and moved to the device."""
        reader, chosen = self._reader, places.cpu().numpy()
        arrays = [reader.read(place) for place in chosen]
        rows = reader.bodies[chosen] * reader.frames[chosen]

        def on_device(array: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        flat_RJC = on_device(np.concatenate(arrays))
        return Batch(
            flat_RJC=flat_RJC,
            present_R=(flat_RJC != 0).flatten(1).any(1),
            start_N=on_device(np.cumsum(rows) - rows),
            frames_N=on_device(reader.frames[chosen]),
            bodies_N=on_device(reader.bodies[chosen]),
            label_N=on_device(reader.label[chosen]),
            row_N=on_device(reader.row[chosen]),
            key_N=(torch.zeros_like(places) if key_N is None else key_N).to(self.device),
        )


def open_source(
    folder: Path, table: pa.Table, device: torch.device, kind: Literal["resident", "mapped"]
) -> Source:
    """A source of the named kind over the samples of a table of `select`."""
    return (Resident if kind == "resident" else Mapped)(folder, table, device)


class _Reader:
    """Payloads of a table's samples, checked, from memory-mapped shards."""

    def __init__(self, folder: Path, table: pa.Table) -> None:
        card: Card = read_card(folder)
        self.folder = folder
        self.joints = len(card.topology.joints)
        self.key = table["key"].to_pylist()
        self.shard = np.array(table["shard"].to_pylist())
        self.offset = _int64(table, "offset")
        self.size = _int64(table, "size")
        self.frames = _int64(table, "frames")
        self.bodies = _int64(table, "bodies")
        self.label = _int64(table, "label")
        self.row = _int64(table, "row")
        self.crc32 = _int64(table, "crc32")
        self.maps = {str(name): _map(folder / str(name)) for name in np.unique(self.shard)}

    def read(self, place: int) -> npt.NDArray[np.float32]:
        """One sample as rows: (bodies * frames, J, 3), read-only memory of the shard.

        Raises:
            UserError: The shard is shorter than its index says, or the payload is damaged.
        """
        begin = int(self.offset[place])
        payload = memoryview(self.maps[str(self.shard[place])])[
            begin : begin + int(self.size[place])
        ]
        shape = (int(self.bodies[place]), int(self.frames[place]), self.joints, 3)
        header = npy_header(shape)
        bytes_expected = len(header) + 4 * int(np.prod(shape))
        if (
            len(payload) != bytes_expected
            or zlib.crc32(payload) != self.crc32[place]
            or payload[: len(header)] != header
        ):
            raise UserError(
                f"the sample {self.key[place]} is damaged",
                file=self.folder / str(self.shard[place]),
                place=f"byte {begin}",
                found=f"{len(payload)} bytes with crc32 {zlib.crc32(payload):08x}",
                expected=f"{bytes_expected} bytes with crc32 {int(self.crc32[place]):08x}",
                remedy="copy the prepared set again, or run `skelpipe prepare … --force`",
            )
        values = np.frombuffer(payload, dtype="<f4", offset=len(header))
        return values.reshape(-1, self.joints, 3)


@lru_cache(maxsize=4096)
def npy_header(shape: tuple[int, ...]) -> bytes:
    """The bytes an npy file of that shape, float32 in C order, begins with."""
    stream = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def _int64(table: pa.Table, column: str) -> npt.NDArray[np.int64]:
    return np.array(table[column].to_numpy(), dtype=np.int64)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(
            "a shard cannot be read",
            file=path,
            found=error,
            remedy="copy the prepared set again, or run `skelpipe prepare … --force`",
        ) from error
