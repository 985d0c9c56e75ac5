"""What decides a pre-training run."""

from __future__ import annotations

from skelpipe.config.load import RECIPE, RECIPES, Recipe, build_recipe, load_recipe
from skelpipe.config.pcm3 import PCM3Recipe
from skelpipe.config.settings import (
    FromTo,
    Range,
    Settings,
    apply_changes,
    build,
    setting_names,
)
from skelpipe.config.slim import SLiMRecipe

__all__ = [
    "RECIPE",
    "RECIPES",
    "FromTo",
    "PCM3Recipe",
    "Range",
    "Recipe",
    "SLiMRecipe",
    "Settings",
    "apply_changes",
    "build",
    "build_recipe",
    "load_recipe",
    "setting_names",
]
