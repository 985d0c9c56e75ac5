from __future__ import annotations

import pytest
import torch

from skelpipe.protocols.metrics import (
    accuracy,
    bootstrap_interval,
    confusion,
    per_class,
    row_of,
)
from skelpipe.protocols.question import Answer
from skelpipe.random import below, fold

LABEL = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
ONE = torch.tensor([0, 1, 0, 1, 1, 2, 0, 1])  # 5 of 8
OTHER = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])  # 4 of 8


def answer(*predicted: torch.Tensor) -> Answer:
    scores = [torch.eye(4)[found] for found in predicted]
    return Answer("student", scores, predicted, {"more": 1})


def test_a_row_has_the_groups_apart() -> None:
    row = row_of(answer(ONE), LABEL, {2})
    assert (row["network"], row["accuracy"], row["more"]) == ("student", 62.5, 1)
    assert row["one_person"] == pytest.approx(80)  # classes 0 and 1: 4 of 5
    assert row["mutual"] == pytest.approx(100 / 3)
    assert not row.keys() & {"std", "by_seed"}
    assert row_of(answer(ONE), LABEL, ())["mutual"] is None
    assert row_of(answer(ONE), LABEL, {0, 1, 2})["one_person"] is None
    assert row_of(answer(ONE), LABEL, {3})["mutual"] is None  # nobody performs it here


def test_several_trainings_are_averaged() -> None:
    row = row_of(answer(ONE, OTHER), LABEL, {2})
    assert row["accuracy"] == pytest.approx((62.5 + 50) / 2)
    assert row["by_seed"] == [62.5, 50]
    assert row["std"] == pytest.approx(12.5 / 2**0.5)
    assert row["one_person"] == pytest.approx(100 * (4 + 4) / 10)
    assert row["mutual"] == pytest.approx(100 * (1 + 0) / 6)


def test_confusion_counts_all_trainings_and_gives_classes() -> None:
    counts = confusion([ONE, OTHER], LABEL, 4)
    wanted = [[0] * 4 for _ in range(4)]
    for found in (ONE, OTHER):
        for true, predicted in zip(LABEL.tolist(), found.tolist(), strict=True):
            wanted[true][predicted] += 1
    assert counts.tolist() == wanted
    assert per_class(counts) == [
        pytest.approx(100 * 5 / 6),
        pytest.approx(100 * 3 / 4),
        pytest.approx(100 * 1 / 6),
        None,
    ]


@pytest.mark.parametrize("trainings", [1, 3])
def test_the_interval_equals_a_literal_bootstrap(trainings: int) -> None:
    label = torch.arange(37) % 4
    found = torch.stack(
        [
            torch.where((label * 7 + torch.arange(37)) % (5 + t) < 3, label, 0)
            for t in range(trainings)
        ]
    )
    right = (found == label).double().mean(0)
    ordered = sorted(right.tolist())
    means = []
    for resample in range(200):
        draws = below(fold(0, torch.tensor(resample)), "bootstrap", 37, 37).tolist()
        means.append(sum(ordered[draw] for draw in draws) / 37)
    means.sort()

    def quantile(share: float) -> float:
        place = share * (len(means) - 1)
        low = int(place)
        return means[low] + (place - low) * (means[low + 1] - means[low])

    low, high = bootstrap_interval(right, 200)
    assert (low, high) == pytest.approx((100 * quantile(0.025), 100 * quantile(0.975)))
    assert low < 100 * right.mean().item() < high


def test_the_interval_has_the_width_of_the_binomial() -> None:
    right = (torch.arange(1000) % 10 < 8).double()
    low, high = bootstrap_interval(right)
    deviation = 100 * (0.8 * 0.2 / 1000) ** 0.5
    assert (low, high) == pytest.approx((80 - 1.96 * deviation, 80 + 1.96 * deviation), abs=0.25)
    shuffled = right[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    assert bootstrap_interval(shuffled) == (low, high)
    assert bootstrap_interval(torch.ones(9).double()) == (100, 100)


def test_accuracy_is_in_per_cent() -> None:
    assert accuracy(ONE, LABEL) == 62.5
