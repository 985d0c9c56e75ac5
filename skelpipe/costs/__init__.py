"""What a training step costs, by the method of its recipe."""

from __future__ import annotations

from skelpipe.config import Recipe, SLiMRecipe
from skelpipe.costs import pcm3, slim
from skelpipe.costs.roofline import DTYPES, STORED, Work


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


def finetuning_rows(
    recipe: Recipe, *, samples: int, bodies: float, joints: int, head: int
) -> list[Work]:
    """The work of training an encoder and a head by one view of each sample: both ways, and AdamW.

    As `step_rows` counts its passes; arguments are the same, and ``head`` is how many weights the
    head has, each of them used once a sample. The first two go forward in a third of it.
    """
    size, stored = DTYPES[recipe.train.precision].itemsize, STORED[recipe.train.precision]
    if isinstance(recipe, SLiMRecipe):
        frames, rows = recipe.views.frames, samples * bodies
        macs = slim.patch_macs(recipe, frames, joints) + slim.block_macs(recipe, frames, joints)
        cells, weights = slim.cells_of(recipe, frames, joints), slim.parameters(recipe, joints)[0]
    else:
        part, rows = pcm3.encoder_part(recipe, joints), float(samples)
        macs, cells, weights = part.macs, part.cells, part.weights
    return [
        Work("encoder", 6 * rows * macs, 2 * size * rows * cells + weights * (2 * size + stored)),
        Work("head", 6.0 * samples * head, float(head * (2 * size + stored))),
        Work("optimiser", 0.0, 7.0 * stored * (weights + head)),
    ]


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
