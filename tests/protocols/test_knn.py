from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from skelpipe.protocols.knn import nearest, predict


def features(rows: int, dim: int, seed: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def literal_nearest(query: list[float], gallery: list[list[float]], k: int) -> list[int]:
    def distance(row: list[float]) -> float:
        dot = sum(a * b for a, b in zip(query, row, strict=True))
        return 1 - dot / math.hypot(*query) / math.hypot(*row)

    return sorted(range(len(gallery)), key=lambda place: (distance(gallery[place]), place))[:k]


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_neighbours_equal_a_literal_search(k: int, chunk: int) -> None:
    query, gallery = features(15, 6, 0), features(20, 6, 1)
    found = nearest(query, gallery, k, chunk)
    rows = gallery.double().tolist()
    assert found.tolist() == [literal_nearest(row, rows, k) for row in query.double().tolist()]


@pytest.mark.parametrize("rows", [5, 64, 700])
def test_of_equally_near_rows_the_earlier_comes_first(rows: int) -> None:
    one = features(rows, 32, 2)
    gallery = torch.cat([one, one, one])
    found = nearest(one, gallery, 3)
    own = torch.arange(rows)
    assert torch.equal(found, torch.stack([own, own + rows, own + 2 * rows], 1))


def test_length_does_not_matter() -> None:
    query, gallery = features(9, 5, 3), features(30, 5, 4)
    scale = torch.arange(1, 31)[:, None]
    assert torch.equal(nearest(query, gallery), nearest(query * 9, gallery * scale))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_prediction_is_the_majority_and_then_the_nearest(k: int) -> None:
    labels = torch.randint(0, 5, (200, k), generator=torch.Generator().manual_seed(k))
    wanted = []
    for row in labels.tolist():
        counts = Counter(row)
        most = max(counts.values())
        wanted.append(next(label for label in row if counts[label] == most))
    assert predict(labels, 5).tolist() == wanted
