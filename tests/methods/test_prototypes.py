from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.methods.prototypes import (
    cross_entropy,
    koleo,
    mean_over_groups,
    sinkhorn_knopp,
    target_entropy,
)


def logits(rows: int, prototypes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(rows, prototypes, generator=generator) - 1


def literal_sinkhorn(values: Tensor, temperature: float, iterations: int) -> list[list[float]]:
    rows, columns = values.shape
    q = [[math.exp(cell / temperature) for cell in row] for row in values.double().tolist()]
    total = sum(sum(row) for row in q)
    q = [[cell / total for cell in row] for row in q]
    for _ in range(iterations):
        for k in range(columns):
            mass = sum(row[k] for row in q)
            for row in q:
                row[k] = row[k] / mass / columns
        for row in q:
            mass = sum(row)
            row[:] = [cell / mass / rows for cell in row]
    return [[cell * rows for cell in row] for row in q]


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


@pytest.mark.parametrize(("rows", "prototypes"), [(6, 4), (5, 20), (40, 7)])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_equals_a_literal_loop(
    rows: int, prototypes: int, temperature: float, iterations: int
) -> None:
    values = logits(rows, prototypes)
    found = sinkhorn_knopp(values, temperature, iterations)
    wanted = torch.tensor(literal_sinkhorn(values, temperature, iterations))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_rows_sum_to_1_and_prototypes_share_the_mass() -> None:
    found = sinkhorn_knopp(logits(64, 16), 0.07, 30)
    assert torch.allclose(found.sum(1), torch.ones(64), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.full((16,), 4.0), rtol=0.02)


def test_sinkhorn_leaves_its_input_alone_and_stands_extreme_logits() -> None:
    values = torch.tensor([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]])
    before = values.clone()
    found = sinkhorn_knopp(values, 0.04)
    assert torch.equal(values, before)
    assert torch.allclose(found, torch.full((3, 2), 0.5), atol=1e-5)


def test_no_masked_token_gives_no_target() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 4), 0.04).shape == (0, 4)


def test_cross_entropy_equals_torchs() -> None:
    target = sinkhorn_knopp(logits(9, 5), 0.07)
    student = F.normalize(logits(9, 3, 1), dim=-1)
    directions = F.normalize(logits(5, 3, 2), dim=-1)
    found = cross_entropy(target, student, directions, 0.1)
    wanted = F.cross_entropy(student @ directions.T / 0.1, target, reduction="none")
    assert torch.allclose(found, wanted, atol=1e-5)


def test_cross_entropy_has_the_right_gradient() -> None:
    target = sinkhorn_knopp(logits(4, 5), 0.07).double()
    student = logits(4, 3, 1).requires_grad_()
    directions = logits(5, 3, 2).requires_grad_()
    cross_entropy(target, student, directions, 0.1).sum().backward()
    error = ((student @ directions.T / 0.1).softmax(-1) - target) / 0.1
    assert student.grad is not None
    assert directions.grad is not None
    assert torch.allclose(student.grad, (error @ directions.double()).float(), atol=1e-4)
    assert torch.allclose(directions.grad, (error.T @ student.double()).float(), atol=1e-4)


def test_target_entropy_of_known_targets() -> None:
    sure = torch.eye(4)
    rows, spread = target_entropy(sure)
    assert float(rows) == 0
    assert float(spread) == pytest.approx(math.log(4))
    rows, spread = target_entropy(torch.full((3, 4), 0.25))
    assert float(rows) == pytest.approx(math.log(4))
    rows, spread = target_entropy(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert float(spread) == 0


def test_mean_is_over_bodies_then_groups() -> None:
    terms = torch.tensor([1.0, 3.0, 10.0, 20.0])
    assert float(mean_over_groups(terms, torch.tensor([5, 5, 2, 9]))) == pytest.approx(32 / 3)
    assert float(mean_over_groups(torch.zeros(0), torch.zeros(0, dtype=torch.int64))) == 0


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
