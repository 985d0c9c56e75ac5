"""Optimisers, and their schedules as pure functions of the share of the run done."""

from __future__ import annotations

import math

import torch
from torch import nn

from skelpipe.config import PCM3Recipe, Recipe, SLiMRecipe


def cosine(first: float, last: float, progress: float) -> float:
    """From ``first`` at 0 to ``last`` at 1 along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimiser(student: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser of a student: SLiM's AdamW, PCM3's SGD."""
    if isinstance(recipe, SLiMRecipe):
        return _adamw(student, recipe)
    optim = recipe.optim
    return torch.optim.SGD(
        student.parameters(),
        lr=0.0,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
    )


def set_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, progress: float) -> float:
    """Set every group's rates for a step; returns the learning rate.

    Args:
        optimiser: Of `build_optimiser`.
        recipe: The same.
        progress: Share of the run done, in [0, 1].
    """
    if isinstance(recipe, SLiMRecipe):
        return _set_adamw(optimiser, recipe, progress)
    lr = dropped_rate(recipe, progress)
    for group in optimiser.param_groups:
        group["lr"] = lr
    return lr


def dropped_rate(recipe: PCM3Recipe, progress: float) -> float:
    """Constant, with one drop (PCM3, Sec. 4.2)."""
    optim = recipe.optim
    return optim.lr * (optim.drop_to if progress >= optim.drop_after else 1.0)


def learning_rate(recipe: SLiMRecipe, progress: float) -> float:
    """Linear warm-up from 0, then cosine to the smallest rate (SLiM, Sec. 4.2)."""
    optim = recipe.optim
    peak = optim.lr * (math.sqrt(recipe.train.batch / 1024) if optim.lr_scaling == "sqrt" else 1)
    if progress < optim.warmup:
        return peak * progress / optim.warmup
    return cosine(peak, optim.min_lr, (progress - optim.warmup) / max(1 - optim.warmup, 1e-9))


def weight_decay(recipe: SLiMRecipe, progress: float) -> float:
    """Cosine between the recipe's two values (S25)."""
    return cosine(*recipe.optim.weight_decay, progress)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for a parameter of this name: not for vectors and embeddings."""
    embedding = name.endswith(("joint_embedding", "step_embedding", "prefix"))
    return parameter.ndim > 1 and not embedding


def _adamw(student: nn.Module, recipe: SLiMRecipe) -> torch.optim.AdamW:
    """AdamW in three groups: decayed matrices, the rest without decay (S25), prototypes.

    Groups carry "decay" and "prototypes" so that a step can set their rates.
    """
    decayed, plain, directions = [], [], []
    for name, parameter in student.named_parameters():
        if name.endswith("prototypes"):
            directions.append(parameter)
        elif decays(name, parameter):
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "decay": True, "prototypes": False},
        {"params": plain, "decay": False, "prototypes": False},
        {"params": directions, "decay": True, "prototypes": True},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=recipe.optim.betas, weight_decay=0.0)


def _set_adamw(optimiser: torch.optim.Optimizer, recipe: SLiMRecipe, progress: float) -> float:
    """Learning rate and weight decay of each group.

    Prototypes stand still for the first epochs of a run (DINOv2: one).
    """
    lr = learning_rate(recipe, progress)
    frozen = progress * recipe.train.epochs < recipe.optim.freeze_prototypes
    for group in optimiser.param_groups:
        group["lr"] = 0.0 if group["prototypes"] and frozen else lr
        group["weight_decay"] = weight_decay(recipe, progress) if group["decay"] else 0.0
    return lr
