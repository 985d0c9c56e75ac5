"""The methods by name, and how one is built with its initial weights."""

from __future__ import annotations

from typing import TypeAlias

import torch

from skelpipe.config import Recipe
from skelpipe.methods.pcm3 import PCM3
from skelpipe.methods.slim import SLiM
from skelpipe.skeleton import Topology

Method: TypeAlias = SLiM | PCM3
METHODS: dict[str, type[Method]] = {"slim": SLiM, "pcm3": PCM3}


def build_method(recipe: Recipe, topology: Topology, seed: int) -> Method:
    """The recipe's method with its initial weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return METHODS[recipe.method](recipe, topology)  # type: ignore[arg-type]
