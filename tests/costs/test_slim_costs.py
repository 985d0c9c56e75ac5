"""The work of a step of SLiM, against torch's counter on the real modules and plain loops."""

from __future__ import annotations

from functools import partial
from math import prod

import pytest
import torch
from builders import KINECT, batch_of, recording
from torch import Tensor, nn

from skelpipe.bench.flops import count
from skelpipe.config import SLiMRecipe, load_recipe
from skelpipe.costs.roofline import Work
from skelpipe.costs.slim import parameters, step_rows
from skelpipe.methods.slim import SLiM
from skelpipe.models.encoder import build_encoder
from skelpipe.models.heads import PrototypeHead
from skelpipe.models.vit import SkeletonViT

JOINTS = 25
RECIPES = {
    "wide": load_recipe("slim", ["encoder.layers=2"]),
    "tiny": load_recipe("slim-tiny"),
    "clean": load_recipe("slim-tiny", ["loss.clean_pass=true", "views.anchors=1"]),
    "no locals": load_recipe("slim-tiny", ["views.crops=0", "loss.sinkhorn_iterations=2"]),
    "no class token": load_recipe(
        "slim-tiny",
        [
            "encoder.class_token=false",
            "encoder.registers=0",
            "encoder.positions=learned",
            "loss.contrast_weight=0",
            "loss.koleo_weight=0",
        ],
    ),
}


@pytest.fixture(params=list(RECIPES))
def recipe(request: pytest.FixtureRequest) -> SLiMRecipe:
    return RECIPES[request.param]


def work(recipe: SLiMRecipe, samples: int = 1, bodies: float = 1) -> dict[str, Work]:
    rows = step_rows(recipe, samples=samples, bodies=bodies, joints=JOINTS)
    return {row.what: row for row in rows}


def modules(recipe: SLiMRecipe) -> tuple[SkeletonViT, PrototypeHead]:
    with torch.device("meta"):
        return (
            build_encoder(recipe, KINECT),
            PrototypeHead(recipe.encoder.dim, **recipe.head.model_dump()),
        )


def views(recipe: SLiMRecipe) -> tuple[Tensor, list[Tensor]]:
    """Global views and local views of one body."""
    crops = recipe.views.anchors * recipe.views.crops
    with torch.device("meta"):
        locals_ = [torch.empty(crops, v.frames, JOINTS, 3) for v in recipe.views.local if crops]
        return torch.empty(2, recipe.views.frames, JOINTS, 3), locals_


def masked(recipe: SLiMRecipe) -> int:
    """Masked tokens of both globals; whole numbers under these recipes' mean ratios."""
    patches = recipe.views.frames // recipe.encoder.patch_frames * JOINTS
    tokens = 2 * patches * sum(recipe.mask.ratio) / 2
    assert tokens == pytest.approx(round(tokens))
    return round(tokens)


def test_encoder_flop_equal_the_counter(recipe: SLiMRecipe) -> None:
    encoder, _ = modules(recipe)
    globals_, locals_ = views(recipe)

    def there_and_back(x_BTJC: Tensor) -> None:
        tokens = encoder(x_BTJC)
        (tokens.class_BD.sum() + tokens.patch_BSJD.sum()).backward()

    rows = work(recipe)
    passes = 2 if recipe.loss.clean_pass else 1
    student = passes * count(partial(there_and_back, globals_)).products
    assert rows["encoder, student's globals"].flop == student
    of_locals = sum(count(partial(there_and_back, x_BTJC)).products for x_BTJC in locals_)
    assert rows["encoder, student's locals"].flop == of_locals
    teacher = count(lambda: encoder.requires_grad_(False)(globals_)).products
    assert rows["encoder, teacher"].flop == teacher


def test_head_flop_equal_the_counter(recipe: SLiMRecipe) -> None:
    _, head = modules(recipe)
    crops = recipe.views.anchors * recipe.views.crops
    student = masked(recipe) + 2 + crops * len(recipe.views.local)
    teacher = masked(recipe) + 2
    seen = torch.empty(student, recipe.encoder.dim, device="meta", requires_grad=True)
    shown = torch.empty(teacher, recipe.encoder.dim, device="meta")
    plain = count(lambda: (head(seen) @ head.directions().T).sum().backward()).products
    plain += count(lambda: head.requires_grad_(False)(shown) @ head.directions().T).products
    rows = work(recipe)
    assert rows["head MLPs"].flop + rows["prototypes"].flop == pytest.approx(plain)


def test_products_are_made_again_in_every_pass(recipe: SLiMRecipe) -> None:
    """The rows that are multiplied with K directions, pass by pass; and the cells that move."""
    crops = recipe.views.anchors * recipe.views.crops
    patch, classes = masked(recipe), 2 + crops * len(recipe.views.local)
    products, cells = 0, 0
    for of_teacher, of_student in ((patch, patch), (2, classes)):
        for _ in range(recipe.loss.sinkhorn_iterations):
            products += of_teacher
            cells += 2 * of_teacher  # written, read
        products += of_student  # the teacher's row beside the student's
        cells += 2 * of_student
        products += 3 * of_student  # the student's logits and two gradients
        cells += 2 * of_student + 3 * of_student  # the gradient is read by two products
    rows = work(recipe)
    directions = recipe.head.prototypes * recipe.head.bottleneck
    both = rows["prototypes"], rows["prototypes, recomputed"]
    assert sum(row.flop for row in both) == pytest.approx(2 * directions * products)
    # Directions: teacher's in every pass, in the last the student's too, and their gradient.
    passes = 2 * directions * 4 * (recipe.loss.sinkhorn_iterations + 3)
    moved = 4 * recipe.head.prototypes * cells + passes
    assert sum(row.bytes for row in both) == pytest.approx(moved)


def test_a_step_of_slim() -> None:
    """What the paper's recipe takes for a sample with one body, in GFLOP."""
    flop = {what: row.flop / 1e9 for what, row in work(load_recipe("slim")).items()}
    encoder = sum(value for what, value in flop.items() if what.startswith("encoder"))
    heads = flop["head MLPs"] + flop["prototypes"]
    assert encoder == pytest.approx(54, abs=0.5)
    assert heads == pytest.approx(51, abs=0.5)
    assert encoder + heads == pytest.approx(104, rel=0.01)
    assert flop["prototypes, recomputed"] == pytest.approx(28, rel=0.03)


def test_parameters_are_the_modules(recipe: SLiMRecipe) -> None:
    counts = [sum(p.numel() for p in module.parameters()) for module in modules(recipe)]
    assert parameters(recipe, JOINTS) == tuple(counts)
    rows = work(recipe)
    weights = counts[0] + 2 * counts[1]
    assert rows["optimiser"].bytes == 4 * weights * (1 + 4 + 3)
    assert rows["teacher's average"].bytes == 4 * weights * (2 + 1)


def test_bytes_are_those_of_the_tensors_between_products(recipe: SLiMRecipe) -> None:
    encoder, _ = modules(recipe)
    moved = 0

    def entered(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += prod(inputs[0].shape)

    def left(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += prod(output.shape)

    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(entered)
        if name.endswith((".qkv", ".mlp.0")) or name == "norm":
            module.register_forward_hook(left)
    globals_, _ = views(recipe)
    encoder(globals_)
    weights, _ = parameters(recipe, JOINTS)
    assert work(recipe)["encoder, teacher"].bytes == 4 * (2 * moved + weights)


def test_work_grows_with_bodies_and_weights_do_not(recipe: SLiMRecipe) -> None:
    small, same, large = work(recipe, 2, 3.0), work(recipe, 3, 2.0), work(recipe, 12, 1.0)
    for what, row in small.items():
        assert row == same[what]
        assert large[what].flop == pytest.approx(2 * row.flop)
        if what in ("optimiser", "teacher's average"):
            assert large[what].bytes == row.bytes
        elif row.flop:
            assert row.bytes < large[what].bytes < 2 * row.bytes


def test_bytes_follow_precision() -> None:
    def bytes_of(precision: str) -> dict[str, float]:
        recipe = load_recipe("slim", [f"train.precision={precision}"])
        return {what: row.bytes for what, row in work(recipe, 10**6).items()}

    half, single, double = (bytes_of(name) for name in ("bf16", "float32", "float64"))
    for what in single:
        stored = what in ("optimiser", "teacher's average")
        assert single[what] / half[what] == pytest.approx(1 if stored else 2, rel=1e-3)
        assert double[what] / single[what] == pytest.approx(2)


def test_a_real_step_takes_the_operations_that_are_told() -> None:
    recipe = RECIPES["tiny"]
    method = SLiM(recipe, KINECT)
    batch = batch_of([recording(number, 60) for number in range(16)])
    counted = count(lambda: method.learn(batch, 0.5)).products
    told = sum(row.flop for row in step_rows(recipe, samples=16, bodies=1, joints=JOINTS))
    # How many tokens are masked is drawn, and the targets' entropy makes a chunk of logits more.
    assert counted == pytest.approx(told, rel=0.05)
