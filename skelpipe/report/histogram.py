"""How many frames and bodies samples have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
import pyarrow as pa

_BINS = 16  # of a histogram of lengths, at most


@dataclass(frozen=True)
class Lengths:
    """Frames of samples.

    Attributes:
        quartiles: The least, the lower quartile, the median, the upper quartile, the most.
        edges: Lengths at which the bins begin, and the one at which the last ends.
        train: Samples of the train part in each bin, its first length counted, its end not.
        test: The same of the test part.
    """

    quartiles: tuple[float, float, float, float, float]
    edges: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def bins(self) -> list[str]:
        """The lengths of each bin in words, such as "20-39"."""
        return [
            f"{start}" if end == start + 1 else f"{start}-{end - 1}"
            for start, end in pairwise(self.edges)
        ]


def lengths(table: pa.Table) -> Lengths:
    """Lengths of the samples of an index that has at least one."""
    frames, part = table["frames"].to_numpy(), np.array(table["part"].to_pylist())
    low, high = int(frames.min()), int(frames.max())
    width = _round_width(high - low + 1)
    edges = range(low // width * width, (high // width + 1) * width + 1, width)
    least, lower, median, upper, most = np.quantile(frames, (0, 0.25, 0.5, 0.75, 1)).tolist()

    def counted(name: str) -> tuple[int, ...]:
        return tuple(np.histogram(frames[part == name], edges)[0].tolist())

    return Lengths(
        quartiles=(least, lower, median, upper, most),
        edges=tuple(edges),
        train=counted("train"),
        test=counted("test"),
    )


def bodies(table: pa.Table) -> dict[int, tuple[int, int]]:
    """Number of bodies -> (train, test) samples that have so many."""
    counts = Counter(zip(table["part"].to_pylist(), table["bodies"].to_pylist(), strict=True))
    numbers = sorted({number for _, number in counts})
    return {number: (counts["train", number], counts["test", number]) for number in numbers}


def _round_width(span: int) -> int:
    """The least of 1, 2, 5, 10, 20, … frames whose bins cover a span, wherever it begins."""
    width = 1
    for factor in cycle((2, 2.5, 2)):
        if width * (_BINS - 1) >= span:
            break
        width = int(width * factor)
    return width
