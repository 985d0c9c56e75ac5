from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from skelpipe.methods.koleo import koleo, koleo_gradient


def logits(rows: int, prototypes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(rows, prototypes, generator=generator) - 1


def literal_koleo(features: Tensor, samples: list[int]) -> float:
    rows = [[v / math.hypot(*row) for v in row] for row in features.double().tolist()]
    per_sample: dict[int, list[float]] = {}
    for i, row in enumerate(rows):
        others = [
            math.dist(row, other)
            for j, other in enumerate(rows)
            if samples[j] != samples[i] and math.dist(row, other) > 0
        ]
        if others:
            per_sample.setdefault(samples[i], []).append(-math.log(min(others) + 1e-8))
    means = [sum(terms) / len(terms) for terms in per_sample.values()]
    return sum(means) / len(means) if means else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_koleo_equals_a_literal_loop(seed: int) -> None:
    features = logits(12, 5, seed)
    samples = [0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8]
    features[5] = features[4] * 1.01  # two bodies of one sample, almost alike
    features[8] = features[2]  # two samples exactly alike
    found = koleo(features, torch.tensor(samples))
    assert float(found) == pytest.approx(literal_koleo(features, samples), rel=1e-4)


def test_koleo_of_orthonormal_rows() -> None:
    found = koleo(torch.eye(6), torch.arange(6))
    assert float(found) == pytest.approx(-math.log(math.sqrt(2)))


def test_koleo_spreads_features() -> None:
    features = logits(6, 3).requires_grad_()
    koleo(features, torch.arange(6)).backward()
    assert features.grad is not None
    with torch.no_grad():
        moved = features - 0.01 * features.grad
    assert koleo(moved, torch.arange(6)).item() < koleo(features, torch.arange(6)).item()


@pytest.mark.parametrize(
    ("features", "samples"),
    [
        (torch.ones(1, 3), [0]),
        (torch.ones(4, 3), [0, 1, 2, 3]),
        (torch.eye(3)[:2], [0, 0]),
        (torch.zeros(3, 3), [0, 1, 2]),
    ],
    ids=["alone", "all alike", "two bodies of one sample", "zeros"],
)
def test_rows_without_a_neighbour_count_nothing(features: Tensor, samples: list[int]) -> None:
    rows = features.clone().requires_grad_()
    value = koleo(rows, torch.tensor(samples))
    value.backward()
    assert value.item() == 0
    assert rows.grad is not None
    assert not bool(rows.grad.any())


def test_a_lonely_row_leaves_the_others_finite() -> None:
    rows = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]], requires_grad=True)
    value = koleo(rows, torch.tensor([0, 1, 0]))
    value.backward()
    # Row 0 has its double and its sample's other body: nothing to compare with.
    assert value.item() == pytest.approx(-math.log(math.sqrt(2)))
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())


def test_koleo_does_not_lose_precision_under_autocast() -> None:
    features, samples = logits(40, 6), torch.arange(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = koleo(features, samples)
    assert float(found) == float(koleo(features, samples))


def test_the_gradient_of_both_views_is_autograds() -> None:
    features = logits(12, 5).requires_grad_()
    samples, views = torch.arange(12) // 2, torch.arange(12) % 2
    value, gradient = koleo_gradient(features, samples, views, gather=True)
    wanted = koleo(features[::2], samples[::2]) + koleo(features[1::2], samples[1::2])
    wanted.backward()
    assert float(value) == pytest.approx(wanted.item())
    assert features.grad is not None
    assert torch.allclose(gradient, features.grad)
    assert not value.requires_grad
