from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sets
import torch
from builders import (
    CPU,
    KINECT,
    batch_of,
    mixed_samples,
    recording,
    tiny_pcm3_recipe,
    tiny_recipe,
    write_set,
)
from torch import Tensor

from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import ask, evaluate
from skelpipe.protocols.features import clip, encode_by, extract, view, viewer
from skelpipe.protocols.occlusion import _hide
from skelpipe.protocols.question import Question, untrained_encoder
from skelpipe.protocols.settings import Occlusion, load_protocol
from skelpipe.random import fold, named
from skelpipe.report.tables import comparable, result_table
from skelpipe.stream.source import Batch
from skelpipe.views.occlusion import occlusion_masks

QUICK = ("epochs=4", "batch=8", "drops=[2]")


def occlusion(kind: str, *changes: str) -> Occlusion:
    protocol = load_protocol(f"occlusion-{kind}", changes)
    assert isinstance(protocol, Occlusion)
    return protocol


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sets")
    return {
        pipeline: write_set(place / pipeline, train=14, test=7, pipeline=pipeline)
        for pipeline in ("ctrgcn", "agcn")
    }


def asked(recipe: Recipe, folders: dict[str, Path], **more: Any) -> Question:
    data = folders[recipe.pipeline]
    return ask(occlusion("spatial"), recipe, data, subject="random-init", device=CPU, **more)


def hidden_of(name: str, kind: str, seed: int, frames: int = 16) -> Tensor:
    """What is hidden of one sample, by nothing but its name: shape (T, J)."""
    key_N = fold(seed, named([name]))
    return occlusion_masks(key_N, kind, frames, KINECT, (0.3, 0.7))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize(
    "recipe",
    [
        tiny_recipe(),
        tiny_pcm3_recipe(),
        tiny_pcm3_recipe("views.modality=bone"),
        tiny_pcm3_recipe("views.modality=motion", "train.source=mapped"),
    ],
    ids=["slim", "joint", "bone", "motion"],
)
def test_features_are_those_of_views_zeroed_one_by_one(
    folders: dict[str, Path], recipe: Recipe, kind: str
) -> None:
    """A plain loop over samples: view, zeros, streams, encoder, mean over bodies."""
    question = asked(recipe, folders, seed=5)
    hide = _hide(occlusion(kind), question)
    encoder = question.encoder().eval()
    encode = encode_by(encoder, question.kind)
    see = viewer(recipe, KINECT, 0.95, None, hide)
    (found,) = extract(question.test, [encode], see, chunk=4)
    for place, name in enumerate(question.test.table["key"].to_pylist()):
        batch = question.test.take(torch.tensor([place]))
        hidden = hidden_of(name, kind, 5)
        assert 0 < int(hidden.sum()) < hidden.numel()
        if recipe.method == "slim":
            x = view(batch, 16, centre=0.95, absent_body="skip")[0]
            x[:, hidden] = 0
        else:
            joints = tiny_pcm3_recipe()
            x = clip(batch, joints, KINECT, centre=0.95)[0].view(1, 16, 25, 3, 2)
            x[:, hidden] = 0
            if recipe.views.modality == "bone":
                x = x - x[:, :, list(KINECT.bone_parents)]
            if recipe.views.modality == "motion":
                x = torch.cat([x[:, 1:] - x[:, :-1], torch.zeros_like(x[:, :1])], 1)
            x = x.reshape(1, 16, 150)
        with torch.no_grad():
            wanted = encode(x).mean(0)
        assert torch.allclose(found[place], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_masks_are_of_the_name_and_seed_alone(folders: dict[str, Path], kind: str) -> None:
    recipe, protocol = tiny_recipe(), occlusion(kind)
    question = asked(recipe, folders, seed=5)
    whole = _hide(protocol, question)(question.train.take(torch.arange(14)))
    names = question.train.table["key"].to_pylist()
    for places in ([3], [13, 2, 2, 8], range(7, 14)):  # as chunks and ranks divide a part
        part = _hide(protocol, question)(question.train.take(torch.tensor(list(places))))
        assert torch.equal(part, whole[list(places)])
    held = asked(recipe, folders, seed=5, val_subjects=(1, 2))  # other parts, the same names
    for source in (held.train, held.test):
        found = _hide(protocol, held)(source.take(torch.arange(len(source))))
        for mask, name in zip(found, source.table["key"].to_pylist(), strict=True):
            assert torch.equal(mask, whole[names.index(name)])
    # A set in which the same names stand at other rows.
    samples = [sets.Sample(name, recording(1, 20)) for name in names[::-1]]
    samples = [*samples, sets.Sample("alone", recording(2, 20), part="test")]
    turned = sets.write_set(folders["ctrgcn"].parent / f"turned-{kind}", KINECT, samples)
    other = asked(recipe, {"ctrgcn": turned}, seed=5)
    assert torch.equal(_hide(protocol, other)(other.train.take(torch.arange(14))), whole)
    reseeded = _hide(protocol, asked(recipe, folders, seed=6))
    assert not torch.equal(reseeded(question.train.take(torch.arange(14))), whole)


@pytest.mark.parametrize("absent_body", ["skip", "zeros", "copy"])
def test_two_bodies_are_hidden_alike_and_none_is_lost(absent_body: str) -> None:
    batch = batch_of(mixed_samples())

    def hide(given: Batch) -> Tensor:
        key_N = fold(1, given.row_N)
        return occlusion_masks(key_N, "temporal", 16, KINECT, (0.9, 0.9))

    see = partial(view, batch, 16, centre=0.95, absent_body=absent_body)  # type: ignore[arg-type]
    clean, sample_B = see()
    found, sample_again_B = see(hide=hide)
    assert torch.equal(sample_B, sample_again_B)
    hidden = hide(batch)[sample_B]
    assert not found[hidden].any()
    assert torch.equal(found[~hidden], clean[~hidden])
    # Body 1 of sample 3 stands in the first frames alone: here nothing of it is left.
    gone = (clean != 0).flatten(1).any(1) & ~(found != 0).flatten(1).any(1)
    assert bool(gone.any())
    encode = encode_by(untrained_encoder(tiny_recipe(), KINECT, 0).eval(), "both")
    assert bool(encode(found).isfinite().all())


@pytest.mark.parametrize("name", ["occlusion-spatial", "occlusion-temporal"])
@pytest.mark.parametrize("recipe", [tiny_recipe(), tiny_pcm3_recipe()], ids=["slim", "pcm3"])
def test_clean_is_the_linear_protocol_of_the_same_evaluation(
    folders: dict[str, Path], recipe: Recipe, name: str
) -> None:
    data = folders[recipe.pipeline]
    steps: list[tuple[int, int]] = []
    run = partial(evaluate, recipe=recipe, data=data, subject="random-init", device=CPU, seed=2)
    clean = run(load_protocol("linear-pcm3", QUICK)).record["results"][0]["accuracy"]
    record = run(
        load_protocol(name, QUICK), report=lambda done, total: steps.append((done, total))
    ).record
    (row,) = record["results"]
    assert row["clean_accuracy"] == clean
    assert row["drop"] == pytest.approx(clean - row["accuracy"])
    right = sum(record["confusion"][label][label] for label in range(2))
    assert row["accuracy"] == pytest.approx(100 * right / 7)  # of occluded views
    assert steps == [(done, 8) for done in range(1, 9)]
    assert any(reading.startswith("P21") for reading in record["readings"])
    (group,) = comparable([record])
    table = result_table(group)
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert cells["clean, %"] == f"{clean:.1f}"
    assert cells["Δ↓, points"] == f"{row['drop']:.1f}"


def test_random_training_views_are_occluded_too(folders: dict[str, Path]) -> None:
    recipe = tiny_recipe()
    question = asked(recipe, folders)
    question = replace(question, hide=_hide(occlusion("temporal"), question))
    random = load_protocol("linear").random.model_copy(update={"shortest": 4})  # type: ignore[union-attr]
    see = viewer(recipe, KINECT, 1.0, random, question.hide)
    keys = fold(0, torch.arange(14))
    x, sample_B = see(question.train.take(torch.arange(14), keys))
    assert question.hide is not None
    hidden = question.hide(question.train.take(torch.arange(14)))[sample_B]
    assert not x[hidden].any()
    assert bool((x[~hidden] != 0).all())
    networks = question.networks()
    (found,) = question.random_features(question.train, networks, random, keys)
    (clean,) = replace(question, hide=None).random_features(question.train, networks, random, keys)
    assert not torch.allclose(found, clean, atol=1e-3)


def test_what_cannot_be_occluded_is_said_before_training(tmp_path: Path) -> None:
    whole = sets.tree(6, parts={"all": list(range(6))})
    samples = [
        sets.Sample(f"k{number}", sets.walk(number, 20, 6), part, label=number % 2)
        for number, part in enumerate(["train", "train", "test", "test"])
    ]
    folder = sets.write_set(tmp_path / "own", whole, samples)
    run = partial(evaluate, recipe=tiny_recipe(), data=folder, subject="raw", device=CPU)
    steps: list[int] = []
    with pytest.raises(UserError, match="has a single part"):
        run(occlusion("spatial", *QUICK), report=lambda done, total: steps.append(done))
    assert not steps
    run(occlusion("temporal", *QUICK))
    with pytest.raises(UserError, match="a share is at most 1"):
        occlusion("spatial", "ratio=[0.5, 1.5]")
