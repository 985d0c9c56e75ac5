"""Means over bodies, then over samples, as weights of a sum (S8)."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_weights(group_N: Tensor) -> tuple[Tensor, int]:
    """What makes a sum over rows a mean within each group (a sample, or one of its views).

    Args:
        group_N: Group of each row, integers.

    Returns:
        One over the number of rows in the row's group, shape (N,), float64; and how many groups
        there are. Divided by their number, of all micro-batches and ranks, the sum of weighted
        terms is the mean over groups.
    """
    _, group, count = torch.unique(group_N, return_inverse=True, return_counts=True)
    return 1 / count[group].double(), len(count)
