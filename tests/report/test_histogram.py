from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from skelpipe.report.histogram import bodies, lengths


def index(frames: list[int], parts: list[str] | None = None) -> pa.Table:
    return pa.table({"frames": frames, "part": parts or ["train"] * len(frames)})


def test_quartiles_and_bins() -> None:
    found = lengths(index([20, 25, 30, 39, 40], ["train", "test", "train", "train", "test"]))
    assert found.quartiles == (20, 25, 30, 39, 40)
    assert found.edges == tuple(range(20, 43, 2))
    assert found.bins[:2] == ["20-21", "22-23"]
    assert found.train == (1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0)
    assert found.test == (0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1)


def test_one_length_has_one_bin() -> None:
    found = lengths(index([72, 72]))
    assert (found.bins, found.train, found.test) == (["72"], (2,), (0,))


@pytest.mark.parametrize("seed", range(20))
def test_every_sample_is_in_one_of_few_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(1, 10 ** rng.integers(1, 5) + 1, 200)
    parts = rng.choice(["train", "test"], 200)
    found = lengths(index(frames.tolist(), parts.tolist()))
    assert len(found.bins) <= 16
    assert len(set(np.diff(found.edges))) == 1
    assert found.edges[0] <= frames.min() < frames.max() < found.edges[-1]
    for name, counts in (("train", found.train), ("test", found.test)):
        for start, end, count in zip(found.edges[:-1], found.edges[1:], counts, strict=True):
            assert ((frames >= start) & (frames < end) & (parts == name)).sum() == count


def test_bodies_per_part() -> None:
    table = pa.table({"bodies": [1, 2, 1, 1], "part": ["train", "train", "test", "train"]})
    assert bodies(table) == {1: (2, 1), 2: (1, 0)}
