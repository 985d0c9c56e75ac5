"""Linear evaluation on occluded views (PCM3, Table 4): training and test views are occluded alike.

The encoder was trained on clean data and is frozen. What is hidden is a function of a sample's name
and the seed: the same for every view of it, under any chunk, rank, part or prepared set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import pyarrow as pa
import torch
from torch import Tensor

from skelpipe.protocols import linear
from skelpipe.protocols.features import Hide
from skelpipe.protocols.metrics import accuracy
from skelpipe.protocols.question import Answer, Question, labels
from skelpipe.protocols.settings import Occlusion
from skelpipe.random import fold, named
from skelpipe.stream.source import Batch
from skelpipe.views.occlusion import check_occludable, occlusion_masks


def answer(protocol: Occlusion, question: Question) -> list[Answer]:
    """Linear evaluation of every network on occluded views, beside that on clean ones.

    Rows of the record have "clean_accuracy", of the same probe on clean features, and "drop", clean
    minus occluded, in points. The paper's drop is the mean of that over xsub and xview (P21).

    Raises:
        UserError: As linear evaluation; a skeleton of one part that should be hidden.
    """
    if protocol.occluded == "spatial":
        check_occludable(question.topology)
    clean, occluded = (
        linear.answer(protocol, replace(question, hide=hide, report=_half(question.report, half)))
        for half, hide in enumerate((None, _hide(protocol, question)))
    )
    label_N = labels(question.test)
    found = []
    for before, after in zip(clean, occluded, strict=True):
        of_clean, of_occluded = (
            fmean(accuracy(predicted_N, label_N) for predicted_N in answer.predicted)
            for answer in (before, after)
        )
        drop = {"clean_accuracy": of_clean, "drop": of_clean - of_occluded}
        found.append(replace(after, more={**drop, **after.more}))
    return found


def _hide(protocol: Occlusion, question: Question) -> Hide:
    """The masks of samples, by the keys of their names; batches know samples by their rows."""
    table = pa.concat_tables([question.train.table, question.test.table])
    row_N = torch.as_tensor(table["row"].to_numpy().copy())
    key_R = torch.zeros(int(row_N.max()) + 1, dtype=torch.int64)
    key_R[row_N] = fold(question.seed, named(table["key"].to_pylist()))
    key_R = key_R.to(question.device)
    frames = question.recipe.views.frames

    def hide(batch: Batch) -> Tensor:
        key_N = key_R[batch.row_N]
        return occlusion_masks(
            key_N, protocol.occluded, frames, question.topology, protocol.ratio
        )  # fmt: skip

    return hide


def _half(report: Callable[[int, int], None], half: int) -> Callable[[int, int], None]:
    """Tells of two trainings, one after the other, as of one."""
    return lambda done, total: report(half * total + done, 2 * total)
