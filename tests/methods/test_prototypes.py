from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.methods.prototypes import (
    cross_entropy,
    log_column_scaling,
    target_entropy,
    targets,
)


def unit(rows: int, features: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return F.normalize(values, dim=-1).to(dtype)


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


def assigned(
    rows: Tensor, directions: Tensor, temperature: float, iterations: int = 3, chunk: int = 4
) -> Tensor:
    log_scaling = log_column_scaling(rows, directions, temperature, iterations, chunk=chunk)
    return targets(rows, directions, temperature, log_scaling)


@pytest.mark.parametrize(("rows", "prototypes"), [(6, 4), (5, 20), (40, 7), (4, 4), (1, 3)])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sinkhorn_equals_a_literal_loop(
    rows: int, prototypes: int, temperature: float, iterations: int
) -> None:
    x, directions = unit(rows, 5), unit(prototypes, 5, 1)
    found = assigned(x, directions, temperature, iterations)
    wanted = torch.tensor(literal_sinkhorn(x @ directions.T, temperature, iterations))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_rows_sum_to_1_and_prototypes_share_the_mass() -> None:
    found = assigned(unit(64, 8), unit(16, 8, 1), 0.07, 30)
    assert torch.allclose(found.sum(1), torch.ones(64), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.full((16,), 4.0), rtol=0.02)


@pytest.mark.parametrize("temperature", [0.02, 0.04])
def test_extreme_logits_stand(temperature: float) -> None:
    rows, directions = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = assigned(rows, directions, temperature)
    assert torch.allclose(found, torch.full((3, 2), 0.5), atol=1e-5)


def test_no_masked_token_gives_no_target_and_no_loss() -> None:
    none, directions = torch.zeros(0, 3, requires_grad=True), unit(4, 3).requires_grad_()
    loss = cross_entropy(
        none, directions, none, directions, torch.zeros(4), torch.zeros(0),
        student_temperature=0.1, teacher_temperature=0.04,
    )  # fmt: skip
    loss.backward()
    assert loss.item() == 0
    assert directions.grad is not None
    assert not bool(directions.grad.any())


def plain(
    student: Tensor, ours: Tensor, teacher: Tensor, theirs: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by whole matrices and autograd, in float64."""
    student, ours = (x.detach().double().requires_grad_() for x in (student, ours))
    q = torch.exp(teacher.double() @ theirs.double().T / 0.05)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    losses = F.cross_entropy(student @ ours.T / 0.1, q, reduction="none")
    loss = (weight.double() * losses).sum()
    loss.backward()
    assert student.grad is not None
    assert ours.grad is not None
    return loss.detach(), student.grad, ours.grad


def chunked(
    student: Tensor, ours: Tensor, teacher: Tensor, theirs: Tensor, weight: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    student, ours = (x.detach().clone().requires_grad_() for x in (student, ours))
    scaling = log_column_scaling(teacher, theirs, 0.05, chunk=chunk)
    loss = cross_entropy(
        student, ours, teacher, theirs, scaling, weight,
        student_temperature=0.1, teacher_temperature=0.05, chunk=chunk,
    )  # fmt: skip
    (2 * loss).backward()
    assert student.grad is not None
    assert ours.grad is not None
    return loss.detach(), student.grad / 2, ours.grad / 2


def problem(rows: int, prototypes: int, features: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    student, teacher = unit(rows, features, 2, dtype), unit(rows, features, 3, dtype)
    teacher = F.normalize(student + teacher, dim=-1)
    weight = torch.linspace(0.5, 1.5, rows, dtype=dtype) / rows
    return (
        student, unit(prototypes, features, 4, dtype), teacher,
        unit(prototypes, features, 5, dtype), weight,
    )  # fmt: skip


def worst(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """Largest difference, relative to the largest value of each tensor."""
    pairs = zip(found, wanted, strict=True)
    return max(float((x.double() - y).abs().max() / y.abs().max()) for x, y in pairs)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize(("rows", "prototypes"), [(1, 5), (64, 300), (130, 64), (65, 1)])
def test_loss_and_gradients_equal_the_plain_ones(rows: int, prototypes: int, chunk: int) -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x = problem(rows, prototypes, 16, dtype)
        wanted = plain(*x)
        found = chunked(*x, chunk)
        if prototypes == 1:  # one prototype: the loss and its gradients are 0
            assert all(float(value.abs().max()) < 1e-5 for value in found)
        else:
            assert worst(found, wanted) < bound


@pytest.mark.slow
def test_loss_and_gradients_at_the_papers_prototypes() -> None:
    x = problem(600, 65536, 256, torch.float32)
    assert worst(chunked(*x, 256), plain(*x)) < 1e-5


def test_half_precision_is_a_looser_mode() -> None:
    x = problem(200, 300, 32, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked(*x, 64)
    assert [value.dtype for value in found] == [torch.float32] * 3
    wanted = plain(*x)
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-2)
    for gradient, exact in zip(found[1:], wanted[1:], strict=True):
        assert (
            float(F.cosine_similarity(gradient.flatten().double(), exact.flatten(), dim=0)) > 0.99
        )


def test_working_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    largest: list[int] = []
    empty = torch.empty

    def noted(*shape: int, **options: object) -> Tensor:
        made: Tensor = empty(*shape, **options)  # type: ignore[call-overload]
        largest.append(made.numel())
        return made

    monkeypatch.setattr(torch, "empty", noted)
    for rows in (64, 640):
        largest.clear()
        chunked(*problem(rows, 500, 8, torch.float32), 32)
        assert max(largest) == 32 * 500


def test_target_entropy_of_known_targets() -> None:
    eye = torch.eye(4)
    entropy, mass = target_entropy(eye, eye, 0.02, torch.zeros(4), chunk=3)
    assert float(entropy) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(mass, torch.ones(4))
    entropy, mass = target_entropy(torch.zeros(3, 4), eye, 0.07, torch.zeros(4), chunk=2)
    assert float(entropy) == pytest.approx(3 * math.log(4))
    assert torch.allclose(mass, torch.full((4,), 0.75))


def test_the_teacher_gets_no_gradient() -> None:
    student, ours, teacher, theirs, weight = problem(6, 5, 4, torch.float32)
    teacher.requires_grad_()
    loss = cross_entropy(
        student.requires_grad_(), ours, teacher, theirs, torch.zeros(5), weight,
        student_temperature=0.1, teacher_temperature=0.05,
    )  # fmt: skip
    loss.backward()
    assert teacher.grad is None
