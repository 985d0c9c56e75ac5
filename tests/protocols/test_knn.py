from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from skelpipe.protocols.knn import class_scores, nearest, predict


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


def test_scores_are_the_nearest_of_each_class() -> None:
    noise = torch.Generator().manual_seed(4)
    query, gallery = torch.randn(9, 5, generator=noise), torch.randn(14, 5, generator=noise)
    label = torch.tensor([0, 3, 1] * 4 + [0, 3])
    found = class_scores(query, gallery, label, 5, chunk=4)
    for row in range(9):
        wanted = [-1.0] * 5
        for place in range(14):
            cosine = torch.cosine_similarity(query[row], gallery[place], dim=0).item()
            wanted[int(label[place])] = max(wanted[int(label[place])], cosine)
        assert found[row].tolist() == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(found.argmax(1), label[nearest(query, gallery)[:, 0]])


@pytest.mark.parametrize("k", [2, 5])
def test_scores_of_several_neighbours_are_their_votes(k: int) -> None:
    noise = torch.Generator().manual_seed(5)
    query, gallery = torch.randn(30, 4, generator=noise), torch.randn(20, 4, generator=noise)
    label = torch.arange(20) % 3
    found = class_scores(query, gallery, label, 3, k)
    neighbours = label[nearest(query, gallery, k)]
    assert torch.equal(found.argmax(1), predict(neighbours, 3))
    for row in range(30):
        counts = [int((neighbours[row] == number).sum()) for number in range(3)]
        assert found[row].floor().int().tolist() == counts
