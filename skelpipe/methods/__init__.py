"""The methods by name, and how one is built with its initial weights."""

from __future__ import annotations

from typing import TypeAlias

import torch

from skelpipe.config import Recipe, SLiMRecipe
from skelpipe.methods.slim import SLiM
from skelpipe.skeleton import Topology

METHODS = {"slim": SLiM}
Method: TypeAlias = SLiM


def build_method(recipe: Recipe, topology: Topology, seed: int) -> Method:
    """The recipe's method with its initial weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        assert isinstance(recipe, SLiMRecipe)
        return SLiM(recipe, topology)
