from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from builders import KINECT, tiny_recipe
from torch import nn

from skelpipe.methods.slim import Network
from skelpipe.optim import build_optimiser, cosine, learning_rate, set_rates, weight_decay

PROGRESS = [step / 300 for step in range(301)]


def test_cosine_goes_from_first_to_last() -> None:
    assert cosine(3.0, 7.0, 0.0) == pytest.approx(3)
    assert cosine(3.0, 7.0, 0.5) == pytest.approx(5)
    assert cosine(3.0, 7.0, 1.0) == pytest.approx(7)
    assert cosine(3.0, 7.0, 1 / 3) == pytest.approx(4)


def test_rate_warms_up_from_0_and_falls_to_its_least() -> None:
    recipe = tiny_recipe("optim.lr=2e-4", "optim.min_lr=1e-6", "optim.warmup=0.2")
    rates = [learning_rate(recipe, progress) for progress in PROGRESS]
    assert rates[0] == 0
    assert rates[30] == pytest.approx(1e-4)
    assert rates[60] == pytest.approx(2e-4) == max(rates)
    assert rates[180] == pytest.approx((2e-4 + 1e-6) / 2)
    assert rates[300] == pytest.approx(1e-6)
    assert all(a < b for a, b in pairwise(rates[:61]))
    assert all(a > b for a, b in pairwise(rates[60:]))


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_warm_up_may_be_nothing_or_everything(warmup: float) -> None:
    recipe = tiny_recipe(f"optim.warmup={warmup}", "optim.lr=1e-3")
    assert learning_rate(recipe, 0.0) == pytest.approx(1e-3 * (1 - warmup))
    assert learning_rate(recipe, 0.999) == pytest.approx(1e-3 * warmup, abs=2e-6)
    assert math.isfinite(learning_rate(recipe, 1.0))


def test_rate_scales_with_the_root_of_the_batch_where_asked() -> None:
    recipe = tiny_recipe(
        "optim.lr=2e-4", "optim.warmup=0.0", "optim.lr_scaling=sqrt", "train.batch=768"
    )
    assert learning_rate(recipe, 0.0) == pytest.approx(1.732e-4, rel=1e-3)


def test_weight_decay_follows_a_cosine() -> None:
    found = [weight_decay(tiny_recipe(), progress) for progress in (0.0, 0.5, 1.0)]
    assert found == pytest.approx([0.04, 0.12, 0.2])


def groups() -> tuple[Network, torch.optim.AdamW]:
    recipe = tiny_recipe()
    network = Network(recipe, KINECT)
    return network, build_optimiser(network, recipe)


def test_every_parameter_is_in_one_group() -> None:
    network, optimiser = groups()
    found = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in network.parameters())


def test_biases_norms_and_embeddings_do_not_decay() -> None:
    network, optimiser = groups()
    names = {id(p): name for name, p in network.named_parameters()}
    kept = {
        names[id(p)]
        for group in optimiser.param_groups
        if not group["decay"]
        for p in group["params"]
    }
    wanted = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name in (f"{name}.weight", f"{name}.bias")
    }
    wanted |= {name for name in names.values() if name.endswith("bias")}
    wanted |= {f"encoder.{name}" for name in ("joint_embedding", "prefix", "mask_token")}
    assert kept == wanted


def test_prototypes_are_a_group_of_their_own() -> None:
    network, optimiser = groups()
    (found,) = (group["params"] for group in optimiser.param_groups if group["prototypes"])
    wanted = [network.class_head.prototypes, network.patch_head.prototypes]
    assert {id(p) for p in found} == {id(p) for p in wanted}


@pytest.mark.parametrize(("epochs", "steps"), [(10, 7), (90, 37), (150, 52)])
def test_prototypes_stand_still_for_exactly_the_first_epoch(epochs: int, steps: int) -> None:
    recipe = tiny_recipe(f"train.epochs={epochs}")
    _, optimiser = groups()
    for step in range(2 * steps):
        rate = set_rates(optimiser, recipe, step / (steps * epochs))
        for group in optimiser.param_groups:
            still = group["prototypes"] and step < steps
            assert group["lr"] == (0.0 if still else rate)


def test_frozen_prototypes_do_not_move() -> None:
    network, optimiser = groups()
    before = network.class_head.prototypes.detach().clone()
    recipe = tiny_recipe("optim.warmup=0.0")
    for progress, moves in ((0.0, False), (0.49, False), (0.5, True)):
        set_rates(optimiser, recipe, progress)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        assert torch.equal(network.class_head.prototypes, before) != moves


def test_decay_and_betas_are_the_recipes() -> None:
    _, optimiser = groups()
    set_rates(optimiser, tiny_recipe(), 0.5)
    for group in optimiser.param_groups:
        assert group["betas"] == (0.9, 0.999)
        assert group["weight_decay"] == pytest.approx(0.12 if group["decay"] else 0.0)
