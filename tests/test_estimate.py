from __future__ import annotations

import pytest
import torch
from builders import CPU

from skelpipe import distributed, estimate
from skelpipe.config import PCM3Recipe, apply_changes, build, load_recipe
from skelpipe.costs import (
    checkpoint_bytes,
    finetuning_rows,
    fixed_memory,
    sample_memory,
    step_rows,
)
from skelpipe.costs.roofline import Peaks
from skelpipe.estimate import micro_batch

PEAKS = Peaks(flop_per_s=1e12, bytes_per_s=1e11)


def pcm3(*changes: str) -> PCM3Recipe:
    table = {"kind": "recipe", "method": "pcm3", "name": "pcm3"}
    return build(PCM3Recipe, apply_changes(table, changes), what="recipe 'pcm3'")


@pytest.mark.parametrize(("memory", "pieces"), [(8e9, 30), (24e9, 7), (80e9, 7)])
def test_a_micro_batch_fits_the_device(
    monkeypatch: pytest.MonkeyPatch, memory: float, pieces: int
) -> None:
    monkeypatch.setattr(estimate, "memory_of", lambda device: int(memory))
    recipe = load_recipe("slim", ["train.precision=bf16"])
    size = micro_batch(recipe, bodies=1.22, joints=25, device=torch.device("cuda"))
    needed = fixed_memory(recipe, 25) + size * sample_memory(recipe, bodies=1.22, joints=25)
    assert needed < min(memory, 16e9)
    assert -(-recipe.train.batch // size) == pieces


def test_a_recipe_may_name_its_micro_batch() -> None:
    recipe = load_recipe("slim", ["train.micro_batch=5"])
    assert micro_batch(recipe, bodies=1.0, joints=25, device=CPU) == 5


@pytest.mark.parametrize("world", [1, 4])
def test_pcm3s_share_is_never_cut(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    monkeypatch.setattr(estimate, "memory_of", lambda device: 10**9)
    monkeypatch.setattr(distributed, "world", lambda: world)
    for recipe in (pcm3("train.batch=128"), pcm3("train.batch=128", "train.micro_batch=128")):
        assert micro_batch(recipe, bodies=1.22, joints=25, device=CPU) == 128 // world


def test_an_estimate_of_pcm3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measure_peaks", lambda device, dtype: PEAKS)
    recipe = pcm3("train.batch=128", "train.epochs=450", "train.keep=1")
    found = estimate.estimate(recipe, samples=12800, bodies=1.22, joints=25, device=CPU)
    step = sum(
        row.least_seconds(PEAKS) for row in step_rows(recipe, samples=128, bodies=1.22, joints=25)
    )
    assert found.hours == pytest.approx(450 * 100 * step / 0.3 / 3600)
    assert found.disk == 2 * checkpoint_bytes(recipe, 25)
    one = estimate.estimate(recipe, samples=12800, bodies=2.0, joints=25, device=CPU)
    assert one == found  # channels for all bodies, present or not
    # 54 M weights and as many momenta, 49.5 M of the key encoder, 2 M of the queue.
    assert checkpoint_bytes(recipe, 25) == pytest.approx(4 * 159.6e6, rel=1e-3)
    half = estimate.estimate(
        pcm3("train.batch=64", "train.epochs=450"), samples=12800, bodies=1.22, joints=25,
        device=CPU,
    )  # fmt: skip
    kept = 64 * sample_memory(recipe, bodies=1.22, joints=25)
    assert found.memory - half.memory == pytest.approx(kept, rel=1e-6)


def test_an_estimate_of_a_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "measure_peaks", lambda device, dtype: PEAKS)
    recipe = load_recipe("slim")
    given = {"bodies": 1.5, "joints": 25, "head": 13_000_000}
    encoder, head, optimiser = finetuning_rows(recipe, samples=48, **given)
    # 8 steps x 25 joints and 5 tokens; forward and back are three products of each.
    tokens, block = 205, 8 * (205 * 12 * 256**2 + 2 * 205**2 * 256)
    assert encoder.flop == pytest.approx(6 * 48 * 1.5 * (block + 64 * 25 * 3 * 256))
    assert head.flop == 6 * 48 * 13_000_000
    assert tokens == 205
    both = encoder.least_seconds(PEAKS) + head.least_seconds(PEAKS)
    least = 100 * (both + optimiser.least_seconds(PEAKS)) + 480 / 48 * both / 3
    hours = estimate.finetuning_hours(recipe, batch=48, steps=100, tested=480, device=CPU, **given)
    assert hours == pytest.approx(least / 0.3 / 3600)
    rows = finetuning_rows(pcm3(), samples=48, bodies=1.0, joints=25, head=0)
    assert rows[0].flop == pytest.approx(6 * 48 * 2.88e9, rel=0.01)  # as `costs.pcm3` counts it
