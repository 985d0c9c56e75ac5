from __future__ import annotations

import pytest
import torch

from skelpipe import estimate
from skelpipe.config import load_recipe
from skelpipe.estimate import micro_batch


@pytest.mark.parametrize(("memory", "pieces"), [(8e9, 30), (24e9, 7), (80e9, 7)])
def test_a_micro_batch_fits_the_device(
    monkeypatch: pytest.MonkeyPatch, memory: float, pieces: int
) -> None:
    monkeypatch.setattr(estimate, "memory_of", lambda device: int(memory))
    recipe = load_recipe("slim", ["train.precision=bf16"])
    size = micro_batch(recipe, bodies=1.22, joints=25, device=torch.device("cuda"))
    needed = estimate._fixed(recipe, 25) + size * estimate._of_a_sample(recipe, 1.22, 25)
    assert needed < min(memory, 16e9)
    assert -(-recipe.train.batch // size) == pieces


def test_a_recipe_may_name_its_micro_batch() -> None:
    recipe = load_recipe("slim", ["train.micro_batch=5"])
    assert micro_batch(recipe, bodies=1.0, joints=25, device=torch.device("cpu")) == 5
