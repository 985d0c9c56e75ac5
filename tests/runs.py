"""Runs with a checkpoint that took no training, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from skelpipe.checkpoint import Run, save_checkpoint
from skelpipe.config import Recipe
from skelpipe.methods import build_method
from skelpipe.random import uniform
from skelpipe.shards.card import read_card
from skelpipe.train import start_run


def write_run(folder: Path, recipe: Recipe, data: Path) -> Run:
    """A run on a prepared set, every weight of whose student and teacher is moved from the start.

    What starts as zeros or ones (biases, running statistics) would hide that it was not loaded.
    """
    run = start_run(folder, recipe, data, seed=0)
    method = build_method(recipe, read_card(data).topology, 0)
    for seed, network in enumerate((method.student, method.teacher)):
        with torch.no_grad():
            for number, tensor in enumerate(network.state_dict().values()):
                if tensor.is_floating_point():
                    keys = torch.arange(tensor.numel()) + 10**6 * (number + 1000 * seed)
                    tensor += 0.2 * uniform(keys, "test weights", 1).view(tensor.shape)
    state = {"step": 0, "recipe": recipe.model_dump(mode="json")}
    save_checkpoint(folder, 0, method.student, method.teacher, None, state, keep=1)
    return run
