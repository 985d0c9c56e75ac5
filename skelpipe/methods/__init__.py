"""The methods by name, and how one is built with its initial weights."""

from __future__ import annotations

import torch

from skelpipe.config import Recipe
from skelpipe.methods.slim import SLiM
from skelpipe.skeleton import Topology

METHODS = {"slim": SLiM}


def build_method(recipe: Recipe, topology: Topology, seed: int) -> SLiM:
    """The recipe's method with its initial weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return METHODS[recipe.method](recipe, topology)
