"""The samples of a table: where their payloads lie, and how they are checked and decoded.

A payload is compared with the index's crc32 whenever it is read. Where the bytes come from is the
matter of `Shards`: files of a folder here, a server's in remote.py.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from isal.isal_zlib import crc32 as crc32_of

from skelpipe.errors import UserError
from skelpipe.shards.card import STEP, Card
from skelpipe.shards.index import INDEX
from skelpipe.shards.tar import ITEM, PAYLOAD_HEADER, payload_header

_AGAIN = "copy the prepared set again, or run `skelpipe prepare … --force`"

Ints = npt.NDArray[np.int64]
Span = tuple[str, int, int]
"""A shard's name, and the first byte and the one after the last in it."""


class Shards(Protocol):
    """Where the bytes of shards come from.

    ``remedy`` says what to do about a damaged one.
    """

    remedy: str

    def size(self, name: str) -> int:
        """Bytes of a shard."""

    def open(self, names: Sequence[str]) -> list[memoryview | None]:
        """The bytes of shards, mapped; None for one that is read by `spans` instead."""

    def spans(self, wanted: Sequence[Span]) -> list[bytes]:
        """Parts of shards that are not mapped."""

    def renew(self, name: str) -> memoryview:
        """The bytes of a mapped shard anew, after what was there has turned out to be damaged."""


class Files:
    """The shards of a folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.remedy = f"`skelpipe verify {folder}` tells all that is damaged; {_AGAIN}"

    def size(self, name: str) -> int:
        file = self._folder / name
        try:
            return file.stat().st_size
        except OSError as error:
            raise _unreadable(file, error) from error

    def open(self, names: Sequence[str]) -> list[memoryview | None]:
        return [map_file(self._folder / name) for name in names]

    def spans(self, wanted: Sequence[Span]) -> list[bytes]:
        raise AssertionError("every shard is mapped")

    def renew(self, name: str) -> memoryview:
        return map_file(self._folder / name)


def map_file(file: Path) -> memoryview:
    """The bytes of a file, memory-mapped.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


class Payloads:
    """Shapes and places of a table's samples, and their coordinates on demand.

    Threads may share it.

    Args:
        folder: Of the prepared set, for messages.
        card: Of the prepared set.
        table: Of `select`.
        shards: Of the same set.

    Raises:
        UserError: A shard is missing or shorter than the index says, or the index says of a sample
            what cannot be. So what is allocated for samples is bounded by bytes that are there.
    """

    def __init__(self, folder: Path, card: Card, table: pa.Table, shards: Shards) -> None:
        self.joints = len(card.topology.joints)
        self.frames, self.bodies, self.label, self.row = (
            _int64(table, name) for name in ("frames", "bodies", "label", "row")
        )
        self.rows = self.bodies * self.frames
        self._folder, self._precision, self._key = folder, card.precision, table["key"]
        named = table["shard"].combine_chunks().dictionary_encode()
        self._names: list[str] = named.dictionary.to_pylist()
        self._which = np.array(named.indices, dtype=np.int64)
        self._offset, self._size, self._crc32 = (
            _int64(table, name) for name in ("offset", "size", "crc32")
        )
        self._shards = shards
        self._check_places()
        _, shapes, self._shape = np.unique(
            self.bodies << 32 | self.frames, return_index=True, return_inverse=True
        )
        self._headers = [
            payload_header((bodies, frames, self.joints, 3), card.precision)
            for bodies, frames in zip(
                self.bodies[shapes].tolist(), self.frames[shapes].tolist(), strict=True
            )
        ]
        self._maps: list[memoryview | None] = [None] * len(self._names)
        self._opened = np.zeros(len(self._names), dtype=bool)
        self._unmapped = False  # whether an opened shard is read by spans
        self._renewed: set[int] = set()
        self._lock = Lock()

    def in_file_order(self) -> Ints:
        """All places, as they lie in the shards."""
        names = np.argsort(np.argsort(self._names))
        return np.lexsort((self._offset, names[self._which]))

    def fill(self, places: Ints, start: Ints, flat_RJC: npt.NDArray[np.float32]) -> None:
        """Write the coordinates of samples, in metres, into rows that begin at ``start``.

        Raises:
            UserError: A payload is damaged, or cannot be had.
        """
        which, first = self._which[places], self._offset[places]
        self._open(which)
        headers, maps = self._headers, self._maps
        apart = self._apart(places) if self._unmapped else {}
        floats = self._precision == "float32"
        values = flat_RJC.reshape(-1)
        target = values.data.cast("B")
        row = self.joints * 3
        for place, shard, begin, end, crc32, shape, at in zip(
            places.tolist(),
            which.tolist(),
            first.tolist(),
            (first + self._size[places]).tolist(),
            self._crc32[places].tolist(),
            self._shape[places].tolist(),
            (start * row).tolist(),
            strict=True,
        ):
            mapped = maps[shard]
            payload = apart[place] if mapped is None else mapped[begin:end]
            if crc32_of(payload) != crc32 or payload[:PAYLOAD_HEADER] != headers[shape]:
                payload = self._again(place)
            if floats:
                size = end - begin - PAYLOAD_HEADER
                target[4 * at : 4 * at + size] = payload[PAYLOAD_HEADER:]
            else:
                stored = np.frombuffer(payload, ITEM["int16"], offset=PAYLOAD_HEADER)
                np.multiply(stored, np.float32(STEP), out=values[at : at + len(stored)])

    def _open(self, which: Ints) -> None:
        if self._opened[which].all():
            return
        closed = [int(shard) for shard in np.unique(which) if not self._opened[shard]]
        opened = self._shards.open([self._names[shard] for shard in closed])
        for shard, mapped in zip(closed, opened, strict=True):
            self._maps[shard] = mapped
            self._unmapped |= mapped is None
            self._opened[shard] = True

    def _apart(self, places: Ints) -> dict[int, memoryview]:
        """Payloads of those samples whose shards are not mapped."""
        apart = [place for place in places.tolist() if self._maps[self._which[place]] is None]
        if not apart:
            return {}
        parts = self._shards.spans([self._span(place) for place in apart])
        return {place: memoryview(part) for place, part in zip(apart, parts, strict=True)}

    def _again(self, place: int) -> memoryview:
        """A payload that was found damaged, from the shard once renewed.

        Raises:
            UserError: It is damaged all the same.
        """
        shard = int(self._which[place])
        with self._lock:
            if self._maps[shard] is not None and shard not in self._renewed:
                self._maps[shard] = self._shards.renew(self._names[shard])
                self._renewed.add(shard)
        mapped, (_, begin, end) = self._maps[shard], self._span(place)
        payload = mapped[begin:end] if mapped is not None else self._apart(np.array([place]))[place]
        crc32, header = crc32_of(payload), self._headers[self._shape[place]]
        if crc32 == self._crc32[place] and payload[:PAYLOAD_HEADER] == header:
            return payload
        raise self._damaged(
            place,
            found=f"{len(payload)} bytes with crc32 {crc32:08x}",
            expected=f"{self._size[place]} bytes with crc32 {self._crc32[place]:08x}",
        )

    def _span(self, place: int) -> Span:
        begin = int(self._offset[place])
        return self._names[self._which[place]], begin, begin + int(self._size[place])

    def _check_places(self) -> None:
        files = np.array([self._shards.size(name) for name in self._names])
        row_bytes = self.joints * 3 * ITEM[self._precision].itemsize
        values = self._size - PAYLOAD_HEADER
        inside = (self._offset >= 0) & (self._offset <= files[self._which] - self._size)
        fits = (self.bodies > 0) & (self.frames > 0) & (values % row_bytes == 0)
        fits &= values // row_bytes == self.rows
        for place in np.flatnonzero(~(inside & fits))[:1]:
            shape = f"{self.bodies[place]} x {self.frames[place]} x {self.joints} x 3"
            raise self._damaged(
                place,
                found=f"{self._size[place]} bytes for {shape} {self._precision} in the index, "
                f"and a shard of {files[self._which[place]]} bytes",
                expected=f"{PAYLOAD_HEADER + int(self.rows[place]) * row_bytes} bytes in the shard",
            )
        if self._size.sum() > files.sum():
            raise UserError(
                "samples of the index overlap", file=self._folder / INDEX, remedy=_AGAIN
            )

    def _damaged(self, place: int, *, found: str, expected: str) -> UserError:
        return UserError(
            f"the sample {self._key[int(place)].as_py()} is damaged",
            file=self._folder / self._names[self._which[place]],
            place=f"byte {self._offset[place]}",
            found=found,
            expected=expected,
            remedy=self._shards.remedy,
        )


def _int64(table: pa.Table, column: str) -> Ints:
    return np.array(table[column].to_numpy(), dtype=np.int64)


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError("a shard cannot be read", file=file, found=error, remedy=_AGAIN)
