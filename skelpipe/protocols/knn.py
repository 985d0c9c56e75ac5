"""k-NN retrieval on cosine distance: test samples are queries, training samples the gallery."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.errors import UserError


def check_gallery(k: int, samples: int) -> None:
    """Raise a UserError where a gallery has fewer than k samples."""
    if k > samples:
        raise UserError(f"k = {k} exceeds the gallery of {samples} samples")


def nearest(query_ND: Tensor, gallery_GD: Tensor, k: int = 1, chunk: int = 1024) -> Tensor:
    """Places of each query's k nearest gallery rows by cosine distance, nearest first.

    Of equally near rows the earlier one comes first; with rows in key order, the lowest key.

    Args:
        query_ND, gallery_GD: Features.
        k: Neighbours, at most G.
        chunk: Queries at once, so that the whole distance matrix never stands.

    Returns:
        Shape (N, k), int64.
    """
    gallery = F.normalize(gallery_GD, dim=-1)
    found = []
    for part in F.normalize(query_ND, dim=-1).split(chunk):
        similarity = part @ gallery.T
        columns = []
        for _ in range(k):
            best = similarity.argmax(1, keepdim=True)  # the first of equal maxima
            columns.append(best)
            similarity.scatter_(1, best, -torch.inf)
        found.append(torch.cat(columns, 1))
    return torch.cat(found)


def predict(neighbour_label_Nk: Tensor, classes: int) -> Tensor:
    """The most frequent class among the neighbours; among equally frequent, the nearest's."""
    votes = F.one_hot(neighbour_label_Nk, classes).sum(1).double()
    k = neighbour_label_Nk.shape[1]
    rank = torch.arange(k, 0, -1, device=votes.device) / (k + 1)
    bonus = torch.zeros_like(votes).scatter_reduce(
        1, neighbour_label_Nk, rank.double().expand(len(votes), -1), "amax"
    )
    return (votes + bonus).argmax(1)
