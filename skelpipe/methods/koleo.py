"""KoLeo: class tokens of a view are pushed away from their nearest neighbour (SLiM, Sec. 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.distributed import gather_rows
from skelpipe.methods.groups import mean_weights


def koleo(features_ND: Tensor, sample_N: Tensor) -> Tensor:
    """Kozachenko-Leonenko term: minus the mean log distance to the nearest other feature.

    On the unit sphere (DINOv2), in float32 at least under autocast too. Two bodies of one sample
    are never neighbours, nor are identical rows, whose distance would be infinitely punished; the
    mean is over a sample's bodies, then over samples (S8).

    Args:
        features_ND: Class tokens of one view of the batch.
        sample_N: Sample each row belongs to.

    Returns:
        Scalar; 0 where no row has another to compare with.
    """
    wide_ND = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
    unit_ND = F.normalize(wide_ND, dim=-1)
    with torch.no_grad(), torch.autocast(unit_ND.device.type, enabled=False):
        similarity = unit_ND @ unit_ND.T
        _, same = torch.unique(unit_ND, dim=0, return_inverse=True)
        barred = (sample_N[:, None] == sample_N) | (same[:, None] == same)
        nearest = similarity.masked_fill(barred, -2).argmax(1)
        paired = (~barred.all(1)).nonzero().squeeze(1)
    distance = torch.linalg.vector_norm(unit_ND[paired] - unit_ND[nearest[paired]], dim=-1)
    weight_N, samples = mean_weights(sample_N[paired])
    mean: Tensor = -(torch.log(distance + 1e-8) * weight_N).sum() / max(samples, 1)
    return mean


def koleo_gradient(
    features_ND: Tensor, sample_N: Tensor, view_N: Tensor, *, gather: bool
) -> tuple[Tensor, Tensor]:
    """KoLeo of each global view by itself (S23), summed, and its gradient in this rank's features.

    Args:
        features_ND: Class tokens of this rank.
        sample_N: Sample of each row, by a number that is the same on all ranks.
        view_N: Global view of each row, 0 or 1.
        gather: Neighbours are those of all ranks, as in a batch of one rank; else this rank's.

    Returns:
        The scalar, and d scalar / d features, shape (N, D). Gathered, the gradient holds what this
        rank's rows do as neighbours of other ranks' rows too.
    """
    first = 0
    all_MD, sample_M, view_M = features_ND.detach(), sample_N, view_N
    if gather:
        all_MD, first = gather_rows(all_MD)
        sample_M, view_M = gather_rows(sample_N)[0], gather_rows(view_N)[0]
    with torch.enable_grad():
        leaf = all_MD.requires_grad_()
        views = [(view_M == view).nonzero().squeeze(1) for view in (0, 1)]
        value = torch.stack([koleo(leaf[rows], sample_M[rows]) for rows in views]).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient[first : first + len(features_ND)]
