"""Shards: tar files in webdataset's layout whose bytes depend on the samples alone.

A sample is two plain ustar members, `KEY.x.npy` and `KEY.json`. Every byte of a header follows from
the member's name and size, and every byte of an .npy header from the sample's shape: so a reader
compares headers with what they must be and never takes a size from one.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .card import STEP, Precision

BLOCK = 512
PAYLOAD_HEADER = 128  # bytes of an .npy file of four dimensions before its values
ITEM: dict[Precision, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int16": np.dtype("<i2")}
_LAST = 32767  # steps; -32768 is not used, so that the range is the same on both sides
_HEADER = tarfile.TarInfo()  # mtime, uid, gid are 0 and the owner's names are empty
_HEADER.mode = 0o644
_PLAIN = _HEADER.tobuf(tarfile.USTAR_FORMAT)
_PLAIN_SUM = sum(_PLAIN) - sum(_PLAIN[124:136]) - sum(_PLAIN[148:156]) + 8 * ord(" ")


class OutOfRangeError(ValueError):
    """A position that int16 steps cannot hold.

    Attributes:
        value: In metres.
    """

    def __init__(self, value: float) -> None:
        super().__init__(f"{value:.9g} m, where int16 holds at most {_LAST * STEP:.5f} m")
        self.value = value


def payload_bytes(poses_MTJC: npt.NDArray[np.float32], precision: Precision = "float32") -> bytes:
    """A sample's poses, shape (M, T, J, 3), in metres, as the bytes of an .npy file.

    Raises:
        OutOfRangeError: a position is no number or lies beyond 8.19175 m, under "int16".
    """
    values = np.asarray(poses_MTJC) if precision == "float32" else to_steps(poses_MTJC)
    header = payload_header(values.shape, precision)
    return header + values.astype(ITEM[precision], order="C", copy=False).tobytes()


@lru_cache(maxsize=4096)
def payload_header(shape: tuple[int, ...], precision: Precision) -> bytes:
    """The `PAYLOAD_HEADER` bytes that a payload of shape (M, T, J, 3) begins with."""
    stream = io.BytesIO()
    header = {"descr": ITEM[precision].str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    written = stream.getvalue()
    assert len(written) == PAYLOAD_HEADER, shape
    return written


def to_steps(poses_MTJC: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Positions in metres, rounded to steps of `STEP`: at most half a step off.

    A body whose row is all zero is absent in that frame, so presence must survive the rounding:
    where every joint of a present body lies within half a step of the origin, as no skeleton's
    does, the largest coordinate becomes one whole step, and is then off by less than that.

    Raises:
        OutOfRangeError: a position is no number or lies beyond 32767 steps.
    """
    poses = np.asarray(poses_MTJC, dtype=np.float64)
    steps = np.rint(poses / STEP)
    fits = np.abs(steps) <= _LAST  # false for NaN
    if not fits.all():
        raise OutOfRangeError(float(poses[~fits][0]))
    rows, exact = steps.reshape(*steps.shape[:2], -1), poses.reshape(*steps.shape[:2], -1)
    for body, frame in np.argwhere(~rows.any(2) & exact.any(2)):
        largest = np.abs(exact[body, frame]).argmax()
        rows[body, frame, largest] = np.sign(exact[body, frame, largest])
    return steps.astype(np.int16)


def member_header(name: str, size: int) -> bytes:
    """The block before a member of that name and size.

    Raises:
        ValueError: ustar cannot hold the name (100 bytes) or the size (8 GiB).
    """
    encoded, octal = name.encode(), b"%011o\0" % size
    if len(encoded) > 100 or len(octal) > 12:
        raise ValueError(f"ustar cannot hold a member {name} of {size} bytes")
    checksum = b"%06o\0 " % (_PLAIN_SUM + sum(encoded) + sum(octal))
    return b"".join(
        (encoded.ljust(100, b"\0"), _PLAIN[100:124], octal, _PLAIN[136:148], checksum, _PLAIN[156:])
    )


def member_size(header: bytes, name: str) -> int | None:
    """The size that a block says of the member behind it; None unless it is `member_header`'s.

    The one size that is ever read from a shard; the header is then made anew from it.
    """
    octal = header[124:135]
    if not octal.isdigit() or set(octal) & set(b"89"):
        return None
    size = int(octal, 8)
    return size if header == member_header(name, size) else None


def padded(size: int) -> int:
    """Bytes that a member of so many takes, a whole number of blocks."""
    return size + -size % BLOCK


class ShardWriter:
    """Writes samples one after the other: `KEY.x.npy`, then `KEY.json`, as plain ustar members.

    Neither time, owner nor mode of the writing process gets into the file.

    Args:
        file: Where to write, opened in binary mode, at its start.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def add(self, key: str, payload: bytes, description: bytes) -> int:
        """Append a sample: its .npy bytes and its JSON.

        Returns:
            The offset of the payload's first byte (the .npy header) in the shard.
        """
        offset = self._member(f"{key}.x.npy", payload)
        self._member(f"{key}.json", description)
        return offset

    def close(self) -> str:
        """End the archive and return the sha256 of all its bytes. The file itself stays open."""
        self._write(bytes(2 * BLOCK))
        return self._digest.hexdigest()

    def _member(self, name: str, content: bytes) -> int:
        self._write(member_header(name, len(content)))
        offset = self.size
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
