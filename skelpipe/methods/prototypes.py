"""Targets and losses over K prototypes without a matrix of N rows by K.

Sinkhorn-Knopp's result is exp(logit / temperature) scaled by rows and columns. A row's scaling is
what makes it sum to 1, so the targets are softmax(logit / temperature + log c) with one number c
a prototype. Those K numbers are found in passes over chunks of rows, and a last pass makes targets
and student's logits once more, chunk by chunk, for the loss and its gradients. Seven products of
rows and prototypes instead of four, but working memory that does not grow with N.

Letters: N rows (class tokens or masked tokens), K prototypes, P features of the bottleneck.
Precision: sums are float32 at least; what stands for every (row, prototype) is float32, float64
where the rows are, or under autocast its type (bf16 rounds a logit by 2^-9: looser).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skelpipe.distributed import sum_over_ranks

_CHUNK = {"cpu": 256, "cuda": 2048}
"""Rows at once: for 65,536 prototypes 64 MB of float32 on a CPU."""


@torch.no_grad()
def log_column_scaling(
    teacher_NP: Tensor,
    directions_KP: Tensor,
    temperature: float,
    iterations: int = 3,
    *,
    chunk: int | None = None,
) -> Tensor:
    """Sinkhorn-Knopp (SwAV, DINOv2) down to its column scaling, over the rows of all ranks.

    Q = exp(logits / temperature); then ``iterations`` times: scale each prototype's column to the
    same sum, each row to the same sum. The targets are `targets`: softmax(logits / temperature +
    result). One product and one sum of K numbers over the ranks an iteration. Logits lie in
    [-1, 1], so that float32 holds exp(logit / temperature) down to a temperature of 0.02.

    Args:
        teacher_NP: Teacher's rows of unit length; N may be another number, and 0, on each rank.
        directions_KP: Teacher's prototypes of unit length.
        temperature: Teacher's.
        iterations: Alternations; DINOv2 has 3.
        chunk: Rows at once.

    Returns:
        log c, shape (K,), with mean 0, float32 or float64.
    """
    cells = _cells(teacher_NP)
    log_K = torch.zeros(len(directions_KP), dtype=_sums(teacher_NP), device=teacher_NP.device)
    for iteration in range(iterations):
        mass_K = torch.zeros_like(log_K)
        for _, kernel_nK in _kernels(teacher_NP, directions_KP, temperature, log_K, chunk, cells):
            if iteration == 0:  # columns first: rows are not scaled yet
                mass_K += kernel_nK.sum(0, dtype=log_K.dtype)
            else:
                row_n = 1 / kernel_nK.sum(1, dtype=log_K.dtype)
                mass_K += row_n.to(kernel_nK.dtype) @ kernel_nK
        log_K -= sum_over_ranks(mass_K).log()
        log_K -= log_K.mean()
    return log_K


@torch.no_grad()
def targets(
    teacher_NP: Tensor, directions_KP: Tensor, temperature: float, log_scaling_K: Tensor
) -> Tensor:
    """The teacher's assignments as a matrix, shape (N, K): for tests, and for a few rows."""
    logits_NK = teacher_NP @ directions_KP.T / temperature
    return (logits_NK.to(log_scaling_K.dtype) + log_scaling_K).softmax(-1)


@torch.no_grad()
def target_entropy(
    teacher_NP: Tensor,
    directions_KP: Tensor,
    temperature: float,
    log_scaling_K: Tensor,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over rows of their entropy in nats, and the sum of the rows, shape (K,)."""
    entropy = log_scaling_K.new_zeros(())
    total_K = torch.zeros_like(log_scaling_K)
    cells = _cells(teacher_NP)
    kernels = _kernels(teacher_NP, directions_KP, temperature, log_scaling_K, chunk, cells)
    for _, kernel_nK in kernels:
        target_nK = kernel_nK.to(total_K.dtype)
        target_nK /= target_nK.sum(1, keepdim=True)
        total_K += target_nK.sum(0)
        entropy += torch.special.entr(target_nK).sum()
    return entropy, total_K


def cross_entropy(
    student_NP: Tensor,
    directions_KP: Tensor,
    teacher_NP: Tensor,
    teacher_directions_KP: Tensor,
    log_scaling_K: Tensor,
    weight_N: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    chunk: int | None = None,
) -> Tensor:
    """sum_n weight_n * -sum_k target_nk log softmax_k(student_n . prototype_k / temperature).

    Gradients go to ``student_NP`` and ``directions_KP``; they are made in the forward pass, where
    the logits stand.

    Args:
        student_NP: Student's rows of unit length.
        directions_KP: Student's prototypes of unit length.
        teacher_NP: The teacher's row that each row of the student's is compared with.
        teacher_directions_KP: Teacher's prototypes.
        log_scaling_K: Of `log_column_scaling`.
        weight_N: Of each row in the sum.
        student_temperature, teacher_temperature: Of the two softmaxes.
        chunk: Rows at once.

    Returns:
        Scalar.
    """
    loss: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        student_NP,
        directions_KP,
        teacher_NP.detach(),
        teacher_directions_KP.detach(),
        log_scaling_K,
        weight_N,
        student_temperature,
        teacher_temperature,
        chunk,
    )
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_NP: Tensor,
        directions_KP: Tensor,
        teacher_NP: Tensor,
        teacher_directions_KP: Tensor,
        log_scaling_K: Tensor,
        weight_N: Tensor,
        student_temperature: float,
        teacher_temperature: float,
        chunk: int | None,
    ) -> Tensor:
        cells, sums = _cells(student_NP), _sums(student_NP)
        wanted = any(ctx.needs_input_grad[:2])
        loss = torch.zeros((), dtype=sums, device=student_NP.device)
        gradient_NP = torch.zeros_like(student_NP, dtype=sums)
        gradient_KP = torch.zeros_like(directions_KP, dtype=sums)
        kernels = _kernels(
            teacher_NP, teacher_directions_KP, teacher_temperature, log_scaling_K, chunk, cells
        )
        with torch.autocast(student_NP.device.type, enabled=False):
            scaled_NP = (student_NP / student_temperature).to(cells)
            ours_KP = directions_KP.to(cells)
            buffer = _buffer(student_NP, directions_KP, chunk, cells)
            for rows, target_nK in kernels:
                weight_n = weight_N[rows].to(sums)
                share_n = weight_n / target_nK.sum(1, dtype=sums)
                logits_nK = torch.mm(scaled_NP[rows], ours_KP.T, out=buffer[: len(weight_n)])
                matched_n = torch.linalg.vecdot(target_nK, logits_nK).to(sums)
                total_n = logits_nK.exp_().sum(1, dtype=sums)
                loss += (weight_n * total_n.log() - share_n * matched_n).sum()
                if not wanted:
                    continue
                # d loss / d logits = weight * (softmax - target), in the logits' place.
                logits_nK.mul_((weight_n / total_n).to(cells)[:, None])
                logits_nK.addcmul_(target_nK, share_n.to(cells)[:, None], value=-1)
                gradient_NP[rows] = logits_nK @ ours_KP
                if cells == sums:
                    gradient_KP.addmm_(logits_nK.T, scaled_NP[rows])
                else:
                    gradient_KP += logits_nK.T @ scaled_NP[rows]
            gradient_NP /= student_temperature
        ctx.save_for_backward(gradient_NP, gradient_KP)
        ctx.types = student_NP.dtype, directions_KP.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.types, strict=True)
        return (*((upstream * gradient).to(kind) for gradient, kind in gradients), *[None] * 7)


def _kernels(
    teacher_NP: Tensor,
    directions_KP: Tensor,
    temperature: float,
    log_scaling_K: Tensor,
    chunk: int | None,
    cells: torch.dtype,
) -> Iterator[tuple[slice, Tensor]]:
    """exp(logits / temperature + log scaling) of one chunk of rows after the other.

    All chunks share one buffer: a chunk is gone when the next comes.
    """
    with torch.autocast(teacher_NP.device.type, enabled=False):
        scaled_NP, theirs_PK = (teacher_NP / temperature).to(cells), directions_KP.to(cells).T
        bias_K = log_scaling_K.to(cells)
        buffer = _buffer(teacher_NP, directions_KP, chunk, cells)
        for first in range(0, len(teacher_NP), len(buffer)):
            rows = slice(first, min(first + len(buffer), len(teacher_NP)))
            kernel_nK = buffer[: rows.stop - rows.start]
            yield rows, torch.addmm(bias_K, scaled_NP[rows], theirs_PK, out=kernel_nK).exp_()


def _buffer(
    rows_NP: Tensor, directions_KP: Tensor, chunk: int | None, cells: torch.dtype
) -> Tensor:
    count = min(chunk or _CHUNK[rows_NP.device.type], max(len(rows_NP), 1))
    return torch.empty(count, len(directions_KP), dtype=cells, device=rows_NP.device)


def _cells(rows_NP: Tensor) -> torch.dtype:
    """Type of what stands for every (row, prototype)."""
    kind = rows_NP.device.type
    if rows_NP.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return _sums(rows_NP)


def _sums(rows_NP: Tensor) -> torch.dtype:
    return torch.float64 if rows_NP.dtype == torch.float64 else torch.float32
