"""Losses over K prototypes: chunk by chunk against whole matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.methods.prototypes import cross_entropy, log_column_scaling

from .measure import Row, interleave, rate, rows
from .memory import private_megabytes
from .stream import threads_of

_STUDENT, _TEACHER, _ITERATIONS = 0.1, 0.05, 3
Problem = tuple[Tensor, Tensor, Tensor, Tensor]
Way = Callable[[Problem], Tensor]


def prototypes(
    count: int = 8192,
    *,
    prototypes: int = 65536,
    features: int = 256,
    device: torch.device,
    bf16: bool = False,
    threads: int = 2,
    rounds: int = 3,
) -> list[Row]:
    """Sinkhorn-Knopp, cross-entropy and its gradients, of ``count`` rows, in both ways.

    The plain way keeps the matrix of rows by prototypes, works on it in place where autograd lets
    it, and leaves the gradients to autograd. Memory is what a process takes beside its inputs and
    gradients: on a CPU looked at from outside, on a GPU told by its allocator.

    Args:
        count, prototypes, features: N, K and P; the recipe `slim` has 65,536 and 256.
        device: Where.
        bf16: Under autocast to bf16.
        threads: Of torch, on a CPU.
        rounds: Measurements of each way.
    """
    least = 1.0 if device.type == "cuda" else 0.0  # a GPU does it in milliseconds
    with threads_of(threads):
        problem = _problem(count, prototypes, features, device)
        rates = interleave(
            {
                "whole matrices": lambda: rate(lambda: _run(plain, problem, bf16), least),
                "chunks of rows": lambda: rate(lambda: _run(chunked, problem, bf16), least),
            },
            rounds,
        )
    sizes = (count, prototypes, features)
    whole = _working_memory(plain, sizes, device, bf16)
    ours = _working_memory(chunked, sizes, device, bf16)
    fewer = _working_memory(chunked, (count // 4, prototypes, features), device, bf16)
    return [
        *rows(rates, "rows/s"),
        Row("working memory, whole matrices", whole, "MB", 1.0),
        Row("working memory, chunks", ours, "MB", ours / whole),
        Row(f"working memory, chunks, {count // 4:,} rows", fewer, "MB", fewer / whole),
    ]


def plain(problem: Problem) -> Tensor:
    """The loss by whole matrices, as published code has it."""
    student_NP, ours_KP, teacher_NP, theirs_KP = problem
    with torch.no_grad():
        q_NK = torch.exp((teacher_NP @ theirs_KP.T).float() / _TEACHER)
        q_NK /= q_NK.sum()
        count, prototypes = q_NK.shape
        for _ in range(_ITERATIONS):
            q_NK /= q_NK.sum(0, keepdim=True) * prototypes
            q_NK /= q_NK.sum(1, keepdim=True) * count
        q_NK *= count
    logits_NK = (student_NP @ ours_KP.T).float() / _STUDENT
    return -(q_NK * logits_NK.log_softmax(-1)).sum(-1).mean()


def chunked(problem: Problem) -> Tensor:
    """The loss by chunks of rows."""
    student_NP, ours_KP, teacher_NP, theirs_KP = problem
    log_scaling_K = log_column_scaling(teacher_NP, theirs_KP, _TEACHER, _ITERATIONS)
    return cross_entropy(
        student_NP,
        ours_KP,
        teacher_NP,
        theirs_KP,
        log_scaling_K,
        torch.full((len(student_NP),), 1 / len(student_NP), device=student_NP.device),
        student_temperature=_STUDENT,
        teacher_temperature=_TEACHER,
    )


def _problem(count: int, prototypes: int, features: int, device: torch.device) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, features, generator=generator), dim=-1).to(device)

    student_NP, theirs_KP = unit(count), unit(prototypes)
    teacher_NP = F.normalize(student_NP + unit(count), dim=-1)
    return student_NP.requires_grad_(), unit(prototypes).requires_grad_(), teacher_NP, theirs_KP


def _run(way: Way, problem: Problem, bf16: bool) -> int:
    student_NP, ours_KP = problem[:2]
    student_NP.grad = ours_KP.grad = None
    with torch.autocast(student_NP.device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = way(problem)
    loss.backward()
    float(student_NP.grad[0, 0]) if student_NP.grad is not None else None  # waits for the device
    return len(student_NP)


def _working_memory(
    way: Way, sizes: tuple[int, int, int], device: torch.device, bf16: bool
) -> float:
    """Megabytes that a way takes beside inputs and gradients."""
    if device.type == "cuda":
        problem = _problem(*sizes, device)
        gradients = sum(tensor.nbytes for tensor in problem[:2])
        before = torch.cuda.memory_allocated(device) + gradients
        torch.cuda.reset_peak_memory_stats(device)
        _run(way, problem, bf16)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with_way, _ = private_megabytes(_in_process, way, sizes, bf16)
    without, _ = private_megabytes(_in_process, None, sizes, bf16)
    return with_way - without


def _in_process(way: Way | None, sizes: tuple[int, int, int], bf16: bool) -> None:
    problem = _problem(*sizes, torch.device("cpu"))
    if way is not None:
        _run(way, problem, bf16)
    else:
        for tensor in problem[:2]:
            tensor.grad = torch.zeros_like(tensor).add_(1)
