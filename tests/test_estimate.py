from __future__ import annotations

import pytest
import torch

from skelpipe import estimate
from skelpipe.config import load_recipe
from skelpipe.estimate import micro_batch


def test_a_gpu_takes_few_large_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "memory_of", lambda device: int(80e9))
    recipe = load_recipe("slim", ["train.precision=bf16"])

    def of(device: str) -> tuple[int, float]:
        size = micro_batch(recipe, bodies=1.22, joints=25, device=torch.device(device))
        needed = estimate._fixed(recipe, 25) + size * estimate._of_a_sample(recipe, 1.22, 25)
        return -(-recipe.train.batch // size), needed

    pieces, needed = of("cuda")
    assert pieces == 3
    assert needed < 40e9
    pieces, needed = of("cpu")
    assert pieces == 10
    assert needed < 12e9
