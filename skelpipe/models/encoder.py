"""The encoder of a recipe's method: what is left of it when pre-training is over."""

from __future__ import annotations

from typing import TypeAlias, overload

from skelpipe.config import PCM3Recipe, Recipe, SLiMRecipe
from skelpipe.models.gru import SkeletonGRU
from skelpipe.models.vit import SkeletonViT
from skelpipe.skeleton import Topology

Encoder: TypeAlias = SkeletonViT | SkeletonGRU


@overload
def build_encoder(recipe: SLiMRecipe, topology: Topology) -> SkeletonViT: ...


@overload
def build_encoder(recipe: PCM3Recipe, topology: Topology) -> SkeletonGRU: ...


def build_encoder(recipe: Recipe, topology: Topology) -> Encoder:
    """A recipe's encoder with initial weights, drawn from torch's generator."""
    settings = recipe.encoder.model_dump()
    if isinstance(recipe, SLiMRecipe):
        return SkeletonViT(len(topology.joints), steps=recipe.most_steps, **settings)
    return SkeletonGRU(len(topology.joints) * 3 * recipe.views.bodies, **settings)
