"""What answers of a recognition are worth: accuracy, overall and by classes, and how sure it is.

Letters: N test samples, C classes, R resamples. Accuracies are top-1, in per cent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from skelpipe.protocols.question import Answer
from skelpipe.random import below, fold

RESAMPLES = 1000
"""Of the bootstrap: the ends of its interval then vary by a fortieth of the interval's width."""
_LEVEL = 0.95
_DRAWS = 1 << 22
"""At once."""


def row_of(answer: Answer, label_N: Tensor, mutual: Collection[int]) -> dict[str, Any]:
    """What a record's row says of a network.

    "accuracy" is the mean over its trainings, "interval" the bootstrap's, "one_person" and "mutual"
    the accuracy on samples of the classes that one person performs and that two do; None where
    there is no such sample. Of several trainings also "std" over them (of n - 1) and "by_seed",
    each one's accuracy.

    Args:
        answer: The network's.
        label_N: True classes.
        mutual: Classes that two people perform.
    """
    right_N = torch.stack([(found == label_N).double() for found in answer.predicted]).mean(0)
    two_N = torch.isin(label_N, torch.tensor(sorted(mutual), dtype=torch.int64).to(label_N))
    row: dict[str, Any] = {
        "network": answer.network,
        "accuracy": _mean(right_N),
        "interval": list(bootstrap_interval(right_N)),
        "one_person": _mean(right_N[~two_N]),
        "mutual": _mean(right_N[two_N]),
    }
    by_seed = of_repeats([accuracy(found, label_N) for found in answer.predicted])
    return row | by_seed | answer.more


def of_repeats(accuracies: Sequence[float]) -> dict[str, Any]:
    """What a row says of several trainings beside their mean: each one's, and their deviation."""
    if len(accuracies) < 2:
        return {}
    return {"std": stdev(accuracies), "by_seed": list(accuracies)}


def headline(
    value: float, name: str = "accuracy", *, lower_is_better: bool = False
) -> dict[str, Any]:
    """What a record's "headline" says: the number that settings are chosen by."""
    return {"name": name, "value": value, "lower_is_better": lower_is_better}


def accuracy(predicted_N: Tensor, label_N: Tensor) -> float:
    """Top-1 accuracy in per cent."""
    return 100 * (predicted_N == label_N).double().mean().item()


def confusion(predicted: Sequence[Tensor], label_N: Tensor, classes: int) -> Tensor:
    """Counts over all trainings, shape (C, C): rows are true classes, columns predicted ones."""
    cells = torch.stack(
        [torch.bincount(label_N * classes + found, minlength=classes**2) for found in predicted]
    )
    return cells.sum(0).view(classes, classes)


def per_class(confusion_CC: Tensor) -> list[float | None]:
    """Accuracy of each class; None where it has no sample."""
    asked, right = confusion_CC.sum(1).tolist(), confusion_CC.diagonal().tolist()
    return [100 * hits / count if count else None for hits, count in zip(right, asked, strict=True)]


def bootstrap_interval(right_N: Tensor, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The percentile bootstrap's 95 % interval of an accuracy, over test samples.

    Each resample draws N samples with replacement by keyed hashes; the ends are quantiles of the
    resamples' means, interpolated between neighbours. Samples are drawn by counting: of values in
    ascending order a draw below the n-th boundary falls on the n-th value. It is the sampling of
    test samples alone: neither pre-training nor a probe's seeds are in it.

    Args:
        right_N: How right the answers to each sample are, 0 to 1: a share of several trainings.
        resamples: R.
    """
    count, device = len(right_N), right_N.device
    value_V, counts_V = right_N.unique(return_counts=True)
    bound_V = counts_V.cumsum(0)[:-1]  # below it, a draw is of that value or a lower one
    key_R = fold(0, torch.arange(resamples, device=device))
    means = []
    for key in key_R.split(max(_DRAWS // count, 1)):
        draw_RN = below(key, "bootstrap", count, count)
        higher_RV = [(draw_RN >= bound).double().mean(1) for bound in bound_V.tolist()]
        gains = zip(value_V.diff().tolist(), higher_RV, strict=True)
        means.append(sum((gain * share for gain, share in gains), value_V[0].expand(len(key))))
    ends = torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64, device=device)
    low, high = (100 * torch.cat(means).quantile(ends)).tolist()
    return low, high


def _mean(right_N: Tensor) -> float | None:
    return 100 * right_N.mean().item() if len(right_N) else None
