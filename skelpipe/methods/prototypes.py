"""Targets and losses over K prototypes: Sinkhorn-Knopp, and cross-entropy against its result.

Letters: N rows (class tokens or masked tokens), K prototypes, P features of the bottleneck.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn_knopp(logits_NK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Balanced assignments (SwAV, DINOv2): every row sums to 1, every prototype gets N / K.

    Q = exp(logits / temperature); then ``iterations`` times: scale each prototype's column to
    1 / K, each row to 1 / N; at last times N. In float32: logits of at most 1 at a temperature of
    0.04 give at most e^25.

    Args:
        logits_NK: Teacher's logits, shape (N, K).
        temperature: Teacher's.
        iterations: Alternations; DINOv2 has 3.
    """
    q_NK = torch.exp(logits_NK.float() / temperature)
    rows, prototypes = q_NK.shape
    q_NK /= q_NK.sum()
    for _ in range(iterations):
        q_NK /= q_NK.sum(0, keepdim=True) * prototypes
        q_NK /= q_NK.sum(1, keepdim=True) * rows
    return q_NK * rows


def cross_entropy(
    target_NK: Tensor, student_NP: Tensor, directions_KP: Tensor, temperature: float
) -> Tensor:
    """-sum_k target log softmax(student . prototypes / temperature) of each row, shape (N,)."""
    logits_NK = (student_NP @ directions_KP.T).float() / temperature
    return -(target_NK * logits_NK.log_softmax(-1)).sum(-1)


def mean_over_groups(terms_N: Tensor, group_N: Tensor) -> Tensor:
    """Mean over the bodies of each group (a sample, or one of its views), then over groups (S8)."""
    _, group, count = torch.unique(group_N, return_inverse=True, return_counts=True)
    mean: Tensor = (terms_N / count[group]).sum() / max(len(count), 1)
    return mean


@torch.no_grad()
def target_entropy(target_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Mean entropy of the rows, and entropy of their mean, in nats."""
    rows = -torch.special.xlogy(target_NK, target_NK).sum(-1).mean()
    mean_K = target_NK.mean(0)
    return rows, -torch.special.xlogy(mean_K, mean_K).sum()


def koleo(features_ND: Tensor, sample_N: Tensor) -> Tensor:
    """Kozachenko-Leonenko term: minus the mean log distance to the nearest other feature.

    On the unit sphere (DINOv2), in float32 under autocast too. Two bodies of one sample are never
    neighbours, nor are identical rows, whose distance would be infinitely punished; the mean is
    over a sample's bodies, then over samples (S8).

    Args:
        features_ND: Class tokens of one view of the batch.
        sample_N: Sample each row belongs to.

    Returns:
        Scalar; 0 where no row has another to compare with.
    """
    unit_ND = torch.nn.functional.normalize(features_ND.float(), dim=-1)
    with torch.no_grad(), torch.autocast(unit_ND.device.type, enabled=False):
        similarity = unit_ND @ unit_ND.T
        _, same = torch.unique(unit_ND, dim=0, return_inverse=True)
        barred = (sample_N[:, None] == sample_N) | (same[:, None] == same)
        nearest = similarity.masked_fill(barred, -2).argmax(1)
        paired = ~barred.all(1)
    distance = torch.linalg.vector_norm(unit_ND[paired] - unit_ND[nearest[paired]], dim=-1)
    return mean_over_groups(-torch.log(distance + 1e-8), sample_N[paired])
