from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from skelpipe.protocols.knn import predict, retrieve

TILES = [(64, 64), (64, 192), (128, 64), (192, 128), (1024, 4096)]


def features(rows: int, dim: int, seed: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def nearest(query: Tensor, gallery: Tensor, k: int, tile: tuple[int, int]) -> Tensor:
    label = torch.arange(len(gallery)).flip(0) % 4  # not in the order of places
    return retrieve(query, gallery, label, 4, k, tile=tile)[0]


def literal_nearest(query: list[float], gallery: list[list[float]], k: int) -> list[int]:
    def distance(row: list[float]) -> float:
        dot = sum(a * b for a, b in zip(query, row, strict=True))
        return 1 - dot / math.hypot(*query) / math.hypot(*row)

    return sorted(range(len(gallery)), key=lambda place: (distance(gallery[place]), place))[:k]


@pytest.mark.parametrize("tile", TILES)
def test_neighbours_equal_a_literal_search(tile: tuple[int, int]) -> None:
    query, gallery = features(70, 6, 0), features(150, 6, 1)
    rows = gallery.double().tolist()
    wanted = [literal_nearest(row, rows, 150) for row in query[::9].double().tolist()]
    for k in (1, 3, 20, 150):
        assert nearest(query, gallery, k, tile)[::9].tolist() == [row[:k] for row in wanted]


@pytest.mark.parametrize("dim", [3, 33, 256])
@pytest.mark.parametrize("tile", TILES)
def test_of_equally_near_rows_the_earlier_comes_first(tile: tuple[int, int], dim: int) -> None:
    """Twelve rows that stand in the gallery many times, anywhere; a plain loop knows which."""
    few, query = features(12, dim, 2), features(140, dim, 4)
    copy_of = torch.randint(0, 12, (330,), generator=torch.Generator().manual_seed(3)).tolist()
    similarity = torch.cosine_similarity(query[:, None].double(), few[None].double(), dim=-1)
    wanted = [
        sorted(range(330), key=lambda place: (-row[copy_of[place]], place))
        for row in similarity.tolist()
    ]
    for k in (1, 4, 330):
        found = nearest(query, few[copy_of], k, tile)
        assert found.tolist() == [row[:k] for row in wanted]


@pytest.mark.parametrize("tile", TILES)
def test_negative_and_zero_similarities_are_in_order(tile: tuple[int, int]) -> None:
    gallery = torch.tensor([[-1.0, 0], [-1, 1], [0, -1], [1, -1], [0, 1], [0, 0], [1, 0]])
    found = nearest(torch.tensor([[2.0, 0], [-1, 0]]), gallery, 7, tile)
    assert found.tolist() == [[6, 3, 2, 4, 5, 1, 0], [0, 1, 2, 4, 5, 3, 6]]


@pytest.mark.parametrize("rows", [5, 64, 700])
def test_three_copies_of_a_gallery_are_found_in_turn(rows: int) -> None:
    one = features(rows, 32, 2)
    found = nearest(one, torch.cat([one, one, one]), 3, (128, 256))
    own = torch.arange(rows)
    assert torch.equal(found, torch.stack([own, own + rows, own + 2 * rows], 1))


def test_length_does_not_matter() -> None:
    query, gallery = features(9, 5, 3), features(30, 5, 4)
    scale = torch.arange(1, 31)[:, None]
    one, other = (
        nearest(query, gallery, 1, (64, 64)),
        nearest(query * 9, gallery * scale, 1, (64, 64)),
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_prediction_is_the_majority_and_then_the_nearest(k: int) -> None:
    labels = torch.randint(0, 5, (200, k), generator=torch.Generator().manual_seed(k))
    wanted = []
    for row in labels.tolist():
        counts = Counter(row)
        most = max(counts.values())
        wanted.append(next(label for label in row if counts[label] == most))
    assert predict(labels, 5).tolist() == wanted


@pytest.mark.parametrize("tile", TILES)
def test_scores_are_the_nearest_of_each_class(tile: tuple[int, int]) -> None:
    query, gallery = features(9, 5, 4), features(14, 5, 5)
    label = torch.tensor([0, 3, 1] * 4 + [0, 3])
    place, found = retrieve(query, gallery, label, 5, tile=tile)
    for row in range(9):
        wanted = [-1.0] * 5
        for column in range(14):
            cosine = torch.cosine_similarity(query[row], gallery[column], dim=0).item()
            wanted[int(label[column])] = max(wanted[int(label[column])], cosine)
        assert found[row].tolist() == pytest.approx(wanted, abs=1e-6)
    assert torch.equal(found.argmax(1), label[place[:, 0]])


@pytest.mark.parametrize("k", [2, 5])
def test_scores_of_several_neighbours_are_their_votes(k: int) -> None:
    query, gallery = features(30, 4, 6), features(20, 4, 7)
    label = torch.arange(20) % 3
    place, found = retrieve(query, gallery, label, 3, k, tile=(64, 64))
    neighbours = label[place]
    assert torch.equal(found.argmax(1), predict(neighbours, 3))
    for row in range(30):
        counts = [int((neighbours[row] == number).sum()) for number in range(3)]
        assert found[row].floor().int().tolist() == counts
