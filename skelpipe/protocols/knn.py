"""k-NN retrieval on cosine distance: test samples are queries, training samples the gallery.

Both are walked through in tiles, so that the matrix of similarities never stands as a whole. All
tiles have one shape, a multiple of 64 each way, the last ones being filled up: a product then sums
each pair alike wherever it stands (at odd edges it need not), and equal rows of the gallery are
equally near under any tiles and any number of ranks.

Letters: N queries, G gallery rows, D features, C classes; Q and R queries and rows of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe import distributed
from skelpipe.errors import UserError
from skelpipe.protocols.question import Answer, Question, labels
from skelpipe.protocols.settings import Knn

_QUERIES, _ROWS = 1024, 4096
"""Of a tile: 16 MB of similarities."""


def answer(protocol: Knn, question: Question) -> list[Answer]:
    """Retrieval by every network of a question."""
    check_gallery(protocol.k, len(question.train))
    networks = question.networks()
    queries, galleries = (
        question.centre_features(source, networks, protocol.centre)
        for source in (question.test, question.train)
    )
    label_G = labels(question.train)
    found = []
    for name, query, gallery in zip(networks, queries, galleries, strict=True):
        place_Nk, score_NC = retrieve(query, gallery, label_G, question.classes, protocol.k)
        found.append(Answer(name, [score_NC], [predict(label_G[place_Nk], question.classes)]))
    return found


def check_gallery(k: int, samples: int) -> None:
    """Raise a UserError where a gallery has fewer than k samples."""
    if k > samples:
        raise UserError(f"k = {k} exceeds the gallery of {samples} samples")


def retrieve(
    query_ND: Tensor,
    gallery_GD: Tensor,
    label_G: Tensor,
    classes: int,
    k: int = 1,
    *,
    tile: tuple[int, int] = (_QUERIES, _ROWS),
) -> tuple[Tensor, Tensor]:
    """Each query's nearest gallery rows by cosine distance, and what they say of each class.

    Of equally near rows the earlier one comes first; with rows in key order, the lowest key. Ranks
    share the queries; each has all answers.

    Args:
        query_ND, gallery_GD: Features, float32.
        label_G: Classes of the gallery.
        classes: C.
        k: Neighbours, at most G.
        tile: Queries and gallery rows at once, multiples of 64.

    Returns:
        Places of the k nearest rows, nearest first, shape (N, k), int64. Scores, shape (N, C): for
        k = 1 the highest cosine similarity to a row of the class, -1 for a class without any (rows
        of two classes that are equally near are told apart by their places alone); for larger k the
        `votes` of the neighbours.
    """
    rank, world, count = distributed.rank(), distributed.world(), len(query_ND)
    own_ND = query_ND[count * rank // world : count * (rank + 1) // world]
    most_queries, most_rows = (
        min(most, -(-rows // 64) * 64)  # no larger than all there are, on every rank alike
        for most, rows in zip(tile, (count, len(gallery_GD)), strict=True)
    )
    # Rows of a class together: its best one is a maximum over neighbouring columns.
    order_G = label_G.argsort(stable=True)
    best_Nk = _ranked(own_ND.new_full((len(own_ND), k), -torch.inf), _PLACES)
    score_NC = own_ND.new_full((len(own_ND), classes), -1.0)
    for rows, gallery_RD in _tiles(gallery_GD, order_G, most_rows):
        place_R = order_G[rows]
        for some, query_QD in _tiles(own_ND, torch.arange(len(own_ND)), most_queries):
            best_Qk = best_Nk[some]
            similarity_QR = (query_QD @ gallery_RD.T)[: len(best_Qk), : len(place_R)]
            if k == 1:
                _raise_scores(score_NC[some], similarity_QR, label_G[place_R])
            near = similarity_QR.amax(1) >= _similarity(best_Qk[:, -1])
            entered = torch.cat([best_Qk[near], _ranked(similarity_QR[near], place_R)], 1)
            best_Qk[near] = entered.topk(k).values
    distributed.wait_for_all()
    place_Nk = distributed.gather_rows(_place(best_Nk))[0]
    if k > 1:
        return place_Nk, votes(label_G[place_Nk], classes)
    return place_Nk, distributed.gather_rows(score_NC)[0]


def predict(neighbour_label_Nk: Tensor, classes: int) -> Tensor:
    """The most frequent class among the neighbours; among equally frequent, the nearest's."""
    return votes(neighbour_label_Nk, classes).argmax(1)


def votes(neighbour_label_Nk: Tensor, classes: int) -> Tensor:
    """How many neighbours each class has, shape (N, C), and less than 1 for the nearest."""
    count, k = neighbour_label_Nk.shape
    found = torch.zeros(count, classes, dtype=torch.float64, device=neighbour_label_Nk.device)
    found.scatter_add_(1, neighbour_label_Nk, found.new_ones(1, 1).expand(count, k))
    rank = torch.arange(k, 0, -1, device=found.device).double() / (k + 1)
    bonus = torch.zeros_like(found).scatter_reduce(
        1, neighbour_label_Nk, rank.expand(count, -1), "amax"
    )
    return found + bonus


def _tiles(x_ND: Tensor, order_N: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of length 1 in an order, by tiles of one shape; the last is filled up with anything."""
    for first in range(0, len(order_N), rows):
        some = slice(first, min(first + rows, len(order_N)))
        tile_RD = x_ND.new_zeros(rows, x_ND.shape[1])
        torch.index_select(x_ND, 0, order_N[some].to(x_ND.device), out=tile_RD[: some.stop - first])
        yield some, F.normalize(tile_RD, dim=-1)


def _raise_scores(score_QC: Tensor, similarity_QR: Tensor, label_R: Tensor) -> None:
    """Let each class of a tile, whose rows stand together, have its highest similarity."""
    found, counts = label_R.unique_consecutive(return_counts=True)
    parts = similarity_QR.split(counts.tolist(), 1)
    highest = torch.stack([part.amax(1) for part in parts], 1)
    score_QC[:, found] = torch.maximum(score_QC[:, found], highest)


# A similarity and a place in one integer: the larger, the nearer, and of equally near rows the
# earlier. A float32 read as an integer has the order of its values from 0 up; below 0, the reverse.
_PLACES = 2**32 - 1


def _ranked(similarity: Tensor, place: Tensor | int) -> Tensor:
    bits = (similarity + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | (_PLACES - place)


def _similarity(ranked: Tensor) -> Tensor:
    bits = (ranked >> 32).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _place(ranked: Tensor) -> Tensor:
    return _PLACES - (ranked & _PLACES)
