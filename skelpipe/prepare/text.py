"""What the text formats share: numbers that are converted where they stand."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .recording import FARTHEST, RejectedError

_NUMBER = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def numbers_at(text: bytes, places: npt.NDArray[np.int32]) -> npt.NDArray[np.float64] | None:
    """Numbers that stand in a text from every second place on to before the next.

    None where one is no number, one that Arrow does not know (such as "+1"), not finite, or beyond
    1,000 km: `metres` tells which.
    """
    if not places.size:
        return np.zeros(0)
    # To Arrow the text is a column of strings: each number, then, declared missing, what lies
    # between it and the next. So it converts the numbers where they stand.
    strings = places.size - 1
    present = np.full(strings // 8 + 1, 0b01010101, dtype=np.uint8)
    buffers = [pa.py_buffer(present), pa.py_buffer(places.ravel()), pa.py_buffer(text)]
    column = pa.Array.from_buffers(pa.string(), strings, buffers)
    try:
        cast = column.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    read: npt.NDArray[np.float64] = cast.to_numpy(zero_copy_only=False)[::2].copy()
    if not (np.abs(read) <= FARTHEST).all():  # false for NaN as well
        return None
    return read


def metres(field: bytes, line: int) -> float:
    """A coordinate in metres.

    Raises:
        RejectedError: it is no finite number, or beyond 1,000 km.
    """
    value = float(field) if _NUMBER.fullmatch(field) else np.nan
    if not abs(value) <= FARTHEST:
        raise RejectedError(
            "no number in x, y, z", line=line, found=shown(field), expected="metres"
        )
    return value


def shown(field: bytes) -> str:
    """Some text of a file as a message quotes it."""
    text = field.decode("ascii", "replace")
    return repr(text if len(text) <= 40 else text[:40] + "…")
