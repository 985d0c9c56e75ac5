"""Arrays in `.npy` form: their headers, checked before anything is allocated.

NumPy's own reader takes shapes at their word and evaluates the header as Python; here a header is
what NumPy writes, or it is refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .recording import RejectedError

HEAD = 4096  # bytes that hold any header of plain numbers
_TEXT = re.compile(
    r"\{'descr': '([<>|=]?(?:f[248]|[iu][1248]|[US]\d{1,6}|b1|O))', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}, ?)*\d{0,19})\),? ?\} *\n?",
    re.ASCII,
)


@dataclass(frozen=True)
class Header:
    """What stands before the values. ``start``: the first byte of them."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]
    start: int

    @property
    def row(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def parse_header(head: bytes, size: int) -> Header:
    """Read a header.

    Args:
        head: The first `HEAD` bytes, or all if there are fewer.
        size: Bytes of the whole.

    Raises:
        RejectedError: it is no .npy header; it describes objects, which are pickled; or its shape
            is not what the size says.
    """
    if head[:6] != b"\x93NUMPY" or len(head) < 12 or head[6] not in (1, 2, 3):
        raise RejectedError("not an .npy array", found=repr(head[:8]), expected="b'\\x93NUMPY' …")
    width = 2 if head[6] == 1 else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    text = head[8 + width : start].decode("latin-1")
    match = _TEXT.fullmatch(text) if start <= len(head) else None
    if match is None:
        raise RejectedError(
            "wrong .npy header", found=repr(text[:100]), expected="an array of plain numbers"
        )
    if match[1].endswith("O"):
        raise RejectedError(
            "array of Python objects",
            found="dtype object",
            expected="numbers; pickles are not read",
        )
    dtype = np.dtype(match[1])
    shape = tuple(int(number) for number in match[3].replace(" ", "").split(",") if number)
    if math.prod(shape) * dtype.itemsize != size - start:
        raise RejectedError(
            "wrong size of .npy array",
            found=f"{size - start} bytes of values",
            expected=f"{shape} of {dtype.itemsize} bytes each",
        )
    if len(shape) > 16:
        raise RejectedError("wrong axes", found=f"{len(shape)} axes")
    return Header(dtype, match[2] == "True", shape, start)


def parse_npy(data: bytes) -> npt.NDArray[Any]:
    """The array in the bytes of an .npy file.

    Raises:
        RejectedError: see `parse_header`.
    """
    header = parse_header(data[:HEAD], len(data))
    flat = np.frombuffer(data, header.dtype, offset=header.start)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")
