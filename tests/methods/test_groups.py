from __future__ import annotations

import pytest
import torch

from skelpipe.methods.groups import mean_weights


def test_mean_is_over_bodies_then_groups() -> None:
    terms = torch.tensor([1.0, 3.0, 10.0, 20.0])
    weight, groups = mean_weights(torch.tensor([5, 5, 2, 9]))
    assert groups == 3
    assert float((terms * weight).sum() / groups) == pytest.approx(32 / 3)


def test_no_rows_are_no_groups() -> None:
    weight, groups = mean_weights(torch.zeros(0, dtype=torch.int64))
    assert (len(weight), groups) == (0, 0)
