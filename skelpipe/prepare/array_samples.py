"""What a file of arrays says of its samples before their positions are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from skelpipe.errors import nearest
from skelpipe.manifest import ArraySource

from .recording import RejectedError

TEXTS = 64 << 20  # bytes of names, numbers of frames or values of a column in one file


@dataclass(frozen=True, slots=True)
class Found:
    """A sample in a file.

    Attributes:
        name: Its name in the file.
        record: Its place in the file, in words; "" where it is the file.
        values: Column -> what it says of the sample, "" where that is nothing.
        size: Bytes of its positions.
        block: Parquet, Arrow: the block of rows that holds it.
        rows: Its rows, from the first to before the last, where one array or block holds many.
        frames: How many of its frames are recorded, where the array is padded.
        fault: Why it is not even read; "" where it is.
    """

    name: str
    record: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    block: int = 0
    rows: tuple[int, int] | None = None
    frames: int | None = None
    fault: str = ""


def text_of(value: object) -> str:
    """A value of a column as text: 3 and 3.0 alike are "3"; "" for none."""
    if isinstance(value, np.generic | np.ndarray):
        if value.size != 1:
            return ""
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None if value != value else value
    return "" if value is None else str(value).strip("\0").strip()


def stacked(
    source: ArraySource,
    shape: Sequence[int],
    row: int,
    texts: Mapping[str, Sequence[str]],
    columns: Sequence[str],
) -> Iterator[Found]:
    """The samples of one array that holds them all.

    Args:
        source: How they lie in it.
        shape: The array's.
        row: Bytes of one entry of its first axis.
        texts: The arrays of names, numbers of frames and columns, as texts.
        columns: Which of these are columns.

    Raises:
        RejectedError: these arrays do not fit the one.
    """
    if not shape:
        raise RejectedError("wrong axes", found="a single number", expected=source.axes)
    lengths = [_length(text) for text in texts[source.lengths]] if source.lengths else []
    along_n = source.axes.startswith("N")
    samples = shape[0] if along_n else len(lengths)
    for name, column in texts.items():
        if len(column) != samples:
            raise RejectedError(
                f"'{name}' does not fit the samples",
                found=f"{len(column):,} values",
                expected=f"{samples:,}, one for each sample",
            )
    if not along_n and sum(lengths) != shape[0]:
        raise RejectedError(
            f"'{source.lengths}' does not fit the frames",
            found=f"{sum(lengths):,} frames in all",
            expected=f"{shape[0]:,}, as there are in the array",
        )
    start = 0
    for sample in range(samples):
        stop = start + (1 if along_n else lengths[sample])
        yield Found(
            name=texts[source.names][sample] if source.names else str(sample),
            record=str(sample),
            values={column: texts[column][sample] for column in columns},
            size=(stop - start) * row,
            rows=(start, stop),
            frames=lengths[sample] if along_n and lengths else None,
        )
        start = stop


def check_known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raise RejectedError unless a file holds all the columns (or arrays) that are asked for."""
    for name in names:
        if name not in known:
            raise RejectedError(
                f"there is no {what} '{name}'",
                found=", ".join(sorted(known)[:20])[:300] or "none",
                expected=nearest(name, known) if known else "",
            )


def _length(text: str) -> int:
    if not text.isdigit() or len(text) > 9:
        raise RejectedError("wrong number of frames", found=repr(text[:40]))
    return int(text)
