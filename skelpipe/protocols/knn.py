"""k-NN retrieval on cosine distance: test samples are queries, training samples the gallery."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.errors import UserError
from skelpipe.protocols.question import Answer, Question, labels
from skelpipe.protocols.settings import Knn


def answer(protocol: Knn, question: Question) -> list[Answer]:
    """Retrieval by every network of a question."""
    check_gallery(protocol.k, len(question.train))
    networks = question.networks()
    queries, galleries = (
        question.centre_features(source, networks, protocol.centre)
        for source in (question.test, question.train)
    )
    label_G, classes = labels(question.train), question.classes
    found = []
    for name, query, gallery in zip(networks, queries, galleries, strict=True):
        neighbours = nearest(query, gallery, protocol.k)
        score_NC = class_scores(query, gallery, label_G, classes, protocol.k)
        found.append(Answer(name, [score_NC], [predict(label_G[neighbours], classes)]))
    return found


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
    return votes(neighbour_label_Nk, classes).argmax(1)


def votes(neighbour_label_Nk: Tensor, classes: int) -> Tensor:
    """How many neighbours each class has, shape (N, classes), and less than 1 for the nearest."""
    found = F.one_hot(neighbour_label_Nk, classes).sum(1).double()
    k = neighbour_label_Nk.shape[1]
    rank = torch.arange(k, 0, -1, device=found.device) / (k + 1)
    bonus = torch.zeros_like(found).scatter_reduce(
        1, neighbour_label_Nk, rank.double().expand(len(found), -1), "amax"
    )
    return found + bonus


def class_scores(
    query_ND: Tensor,
    gallery_GD: Tensor,
    label_G: Tensor,
    classes: int,
    k: int = 1,
    chunk: int = 1024,
) -> Tensor:
    """What k-NN says of each class, shape (N, classes); its answer is the largest.

    For k = 1 the highest cosine similarity to a gallery row of the class, -1 for a class without
    any. (Rows of two classes that are equally near are told apart by `nearest` alone.) For larger k
    the `votes` of its neighbours.

    Args:
        query_ND, gallery_GD: Features.
        label_G: Classes of the gallery.
        classes: In all.
        k: Neighbours.
        chunk: Queries at once.
    """
    if k > 1:
        return votes(label_G[nearest(query_ND, gallery_GD, k, chunk)], classes)
    gallery = F.normalize(gallery_GD, dim=-1)
    found = []
    for part in F.normalize(query_ND, dim=-1).split(chunk):
        similarity = part @ gallery.T
        lowest = similarity.new_full((len(part), classes), -1.0)
        found.append(lowest.scatter_reduce(1, label_G.expand(len(part), -1), similarity, "amax"))
    return torch.cat(found)
