"""What a training step costs, by the method of its recipe."""

from __future__ import annotations

from skelpipe.config import Recipe, SLiMRecipe
from skelpipe.costs import pcm3, slim
from skelpipe.costs.roofline import Work


def step_rows(recipe: Recipe, *, samples: int, bodies: float, joints: int) -> list[Work]:
    """The work of one step, piece by piece: see `slim.step_rows` and `pcm3.step_rows`.

    Args:
        recipe: What is run.
        samples: Samples of the step.
        bodies: Mean bodies of a sample; PCM3 has channels for all, present or not.
        joints: J.
    """
    if isinstance(recipe, SLiMRecipe):
        return slim.step_rows(recipe, samples=samples, bodies=bodies, joints=joints)
    return pcm3.step_rows(recipe, samples=samples, joints=joints)


def fixed_memory(recipe: Recipe, joints: int) -> float:
    """Bytes that a step takes whatever the number of samples at once."""
    if isinstance(recipe, SLiMRecipe):
        return slim.fixed_memory(recipe, joints)
    return pcm3.fixed_memory(recipe, joints)


def sample_memory(recipe: Recipe, *, bodies: float, joints: int) -> float:
    """Bytes that one sample's forward pass keeps for its backward pass."""
    if isinstance(recipe, SLiMRecipe):
        return slim.sample_memory(recipe, bodies=bodies, joints=joints)
    return pcm3.sample_memory(recipe, joints)


def checkpoint_bytes(recipe: Recipe, joints: int) -> int:
    """Of one checkpoint on disk."""
    if isinstance(recipe, SLiMRecipe):
        return slim.checkpoint_bytes(recipe, joints)
    return pcm3.checkpoint_bytes(recipe, joints)
