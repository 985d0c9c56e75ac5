from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sets
import torch
from builders import CPU, KINECT, Poses, mixed_samples, tiny_pcm3_recipe, tiny_recipe, write_set
from torch import Tensor

from skelpipe.checkpoint import Run, read_run, save_checkpoint
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.methods import build_method
from skelpipe.protocols.evaluate import ask, evaluate
from skelpipe.protocols.question import Subject
from skelpipe.protocols.settings import load_protocol
from skelpipe.protocols.transfer import check_named_set, fit_skeleton, trained_topology
from skelpipe.report.tables import comparable, result_table
from skelpipe.shards.card import PipelineStamp, read_card
from skelpipe.skeleton import Topology
from skelpipe.train import start_run

QUICK = ("epochs=2", "batch=4", "random.shortest=4")
EXTRA = 4
ORDER = np.random.default_rng(0).permutation(25 + EXTRA)
"""Which joint stands at each place of the other skeleton; those from 25 on are its own."""
TRANSFER = load_protocol("transfer-linear", QUICK)
AGCN = PipelineStamp(name="agcn", version=1, switches={})
RECIPES: dict[str, Recipe] = {
    "slim": tiny_recipe("train.epochs=1"),
    "bone": tiny_pcm3_recipe("train.epochs=1", "views.modality=bone"),
}


def other_skeleton(*, without: Sequence[str] = (), **changes: Any) -> Topology:
    """Kinect's joints in another order and spelling, with joints that Kinect lacks."""
    plain = [name.title().replace("_", ("-", " ", "")[at % 3]) for at, name in
             enumerate(KINECT.joints)]  # fmt: skip
    names = [*plain, *(f"eye{number}" for number in range(EXTRA))]
    for name in without:
        names[KINECT.joints.index(name)] = f"no {name}"
    place = {int(joint): at for at, joint in enumerate(ORDER)}
    parents = [*KINECT.parents, *[3] * EXTRA]
    table = {
        "name": "other",
        "joints": [names[joint] for joint in ORDER],
        "parents": [-1 if parents[joint] < 0 else place[parents[joint]] for joint in ORDER],
        "mirror": [],
        "parts": {"all": list(range(25 + EXTRA))},
        "centre": place[KINECT.centre],
    }
    return Topology.model_validate(table | changes)


def in_other(poses: Poses) -> Poses:
    """Poses of Kinect in the other skeleton; its own joints are never at rest."""
    more = np.random.default_rng(1).normal(0, 1, (*poses.shape[:2], EXTRA, 3)).astype(np.float32)
    return np.concatenate([poses, more], 2)[:, :, ORDER]


def written(folder: Path, topology: Topology, *, other: bool, **changes: Any) -> Path:
    samples = [
        sets.Sample(f"k{part}{number}", in_other(poses) if other else poses, part, number % 2)
        for part in ("train", "test")
        for number, poses in enumerate(mixed_samples())
    ]
    return sets.write_set(folder, topology, samples, **changes)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs by recipe, and sets by pipeline: "toy", its "twin" of other data, and the "other"."""
    folder = tmp_path_factory.mktemp("transfer")
    for pipeline in ("ctrgcn", "agcn"):
        changes = {"pipeline": PipelineStamp(name=pipeline, version=1, switches={})}
        write_set(folder / pipeline / "toy", train=4, test=2, pipeline=pipeline)
        written(folder / pipeline / "twin", KINECT, other=False, **changes)
        written(folder / pipeline / "other", other_skeleton(), other=True, **changes)
    for name, recipe in RECIPES.items():
        run = start_run(folder / name, recipe, folder / recipe.pipeline / "toy", seed=1)
        method = build_method(recipe, KINECT, seed=1)
        for parameter in method.teacher.parameters():
            parameter.data *= 0.9
        state = {"recipe": recipe.model_dump(mode="json")}
        save_checkpoint(run.folder, 1, method.student, method.teacher, None, state, keep=1)
    return folder


def run_of(place: Path, name: str) -> Run:
    return read_run(place / name)


def features(run: Run, recipe: Recipe, data: Path, subject: Subject) -> list[Tensor]:
    question = ask(TRANSFER, recipe, data, subject=subject, device=CPU, run=run)
    return [
        feature
        for source in (question.train, question.test)
        for feature in question.centre_features(source, question.networks(), 0.95)
    ]


@pytest.mark.parametrize("subject", ["run", "random-init", "raw"])
@pytest.mark.parametrize(("name", "source"), [("slim", "resident"), ("slim", "mapped"),
                                             ("bone", "resident")])  # fmt: skip
def test_a_skeleton_in_other_words_has_the_same_features(
    place: Path, name: str, source: str, subject: Subject
) -> None:
    run = run_of(place, name)
    training = run.recipe.train.model_copy(update={"source": source})
    recipe, home = run.recipe.model_copy(update={"train": training}), place / run.recipe.pipeline
    twin, other = (features(run, recipe, home / folder, subject) for folder in ("twin", "other"))
    assert len(twin) == (4 if subject == "run" else 2)
    for one, two in zip(twin, other, strict=True):
        assert torch.equal(one, two)


def test_the_record_says_from_where_to_where_with_which_joints(place: Path) -> None:
    run = run_of(place, "slim")
    go = partial(evaluate, TRANSFER, run.recipe, subject="run", device=CPU, run=run)
    record = go(place / "ctrgcn" / "other").record
    told = record["transfer"]
    assert told["from"]["dataset"] == "toy"
    assert told["from"]["data_digest"] == run.data["data_digest"]
    assert (told["to"]["dataset"], told["to"]["split"]) == ("own", "half")
    assert list(told["joints"]["used"]) == list(KINECT.joints)
    assert told["joints"]["used"]["left_hand_tip"] == "Left-Hand-Tip"
    assert sorted(told["joints"]["left_out"]) == ["eye0", "eye1", "eye2", "eye3"]
    assert told["differences"] == []
    assert any(reading.startswith("S30") for reading in record["readings"])
    assert "pre-trained on toy half" in result_table(comparable([record])[0]).subtitle
    twin = go(place / "ctrgcn" / "twin").record
    assert twin["transfer"]["joints"] is None
    assert twin["results"] == record["results"]
    knn = partial(evaluate, load_protocol("knn"), run.recipe, subject="run", device=CPU, run=run)
    assert "transfer" not in knn(place / "ctrgcn" / "toy").record
    assert knn(place / "ctrgcn" / "other").record["transfer"] == told


def test_missing_joints_are_refused_and_named(place: Path, tmp_path: Path) -> None:
    lacking = other_skeleton(without=("head", "left_thumb"))
    folder = written(tmp_path / "lacking", lacking, other=True)
    run = run_of(place, "slim")
    for protocol in (TRANSFER, load_protocol("knn")):
        for subject in ("run", "random-init"):
            with pytest.raises(UserError, match="cannot be mapped") as error:
                ask(protocol, run.recipe, folder, subject=subject, device=CPU, run=run)  # type: ignore[arg-type]
            assert "'other' has no joint head, left_thumb" in str(error.value)
            assert "all joints of 'kinect_v2'" in str(error.value)
    floor = ask(TRANSFER, run.recipe, folder, subject="random-init", device=CPU)
    assert floor.topology == lacking  # without a run, the skeleton is the set's


def test_a_name_that_two_joints_have_is_refused_unless_one_is_exact(place: Path) -> None:
    run, folder = run_of(place, "slim"), place / "ctrgcn" / "other"
    card = read_card(folder)

    def named(first: str, second: str) -> list[int] | None:
        """With two of the set's own joints renamed."""
        names = {"eye0": first, "eye1": second}
        joints = tuple(names.get(name, name) for name in card.topology.joints)
        topology = card.topology.model_copy(update={"joints": joints})
        return fit_skeleton(run, card.model_copy(update={"topology": topology}), folder)[1]

    with pytest.raises(UserError, match="has no single joint head"):
        named("HEAD", "eye1")
    exact = named("head", "eye1")
    assert exact is not None
    assert exact[3] == card.topology.joints.index("eye0")


def test_the_runs_own_set_is_no_transfer(place: Path, tmp_path: Path) -> None:
    run, data = run_of(place, "slim"), place / "ctrgcn" / "toy"
    own = read_card(data)
    split = written(tmp_path / "split", KINECT, other=False, dataset="toy", split="other")
    same = written(tmp_path / "same", KINECT, other=False, data_digest=own.data_digest)
    for folder in (data, split, same):
        with pytest.raises(UserError, match="another set than the one the run was trained on"):
            ask(TRANSFER, run.recipe, folder, subject="run", device=CPU, run=run)
        ask(load_protocol("knn"), run.recipe, folder, subject="run", device=CPU, run=run)
        ask(TRANSFER, run.recipe, folder, subject="raw", device=CPU, run=run)  # a floor


def test_other_axes_are_refused(place: Path) -> None:
    run, folder = run_of(place, "slim"), place / "ctrgcn" / "other"
    card = read_card(folder)
    topology = card.topology.model_copy(update={"up": "z"})
    with pytest.raises(UserError, match="other axes") as error:
        fit_skeleton(run, card.model_copy(update={"topology": topology}), folder)
    assert "found: z up" in str(error.value)


def test_what_the_encoder_may_notice_is_said(place: Path, tmp_path: Path) -> None:
    switches: dict[str, Any] = {"centre": "none"}
    skeleton = other_skeleton(centre=int(np.argmax(ORDER == 3)))
    folder = written(
        tmp_path / "odd", skeleton, other=True, dataset="pku9", fps=25, metric=False,
        pipeline=PipelineStamp(name="ctrgcn", version=2, switches=switches),
    )  # fmt: skip
    run = run_of(place, "slim")
    stamp = {**run.data["pipeline"], "switches": {"centre": "first", "gaps": "closed"}}
    run = replace(run, data={**run.data, "pipeline": stamp})
    go = partial(evaluate, TRANSFER, run.recipe, folder, device=CPU, run=run)
    record = go(subject="run").record
    differences = record["transfer"]["differences"]
    assert record["warnings"] == differences
    for said in (
        "25 frames a second, 30 in pre-training",
        "positions in a unit that is not known, in pre-training in metres",
        "pipeline version 2, 1 in pre-training",
        "prepared with centre none, in pre-training with first",
        "normalised by another centre: Head, in pre-training by spine_mid",
    ):
        assert any(said in text for text in differences), said
    assert len(differences) == 5
    assert any("so does this set (centre none)" in reading for reading in record["readings"])
    assert go(subject="raw").record["warnings"] == []

    # A task with readings and warnings of its own hides none of this.
    some = load_protocol("transfer-finetune", (*QUICK, "epochs=1", "hidden=4", "share=0.4"))
    found = evaluate(some, run.recipe, folder, device=CPU, run=run, subject="run").record
    assert set(differences) <= set(found["warnings"])
    for said in ("so does this set (centre none)", "S28 student fine-tuned"):
        assert any(said in reading for reading in found["readings"]), said


def test_runs_that_recorded_no_skeleton(place: Path) -> None:
    run = run_of(place, "slim")
    data = {key: value for key, value in run.data.items() if key != "topology"}

    def like(**changes: Any) -> Run:
        return replace(run, data={**data, **changes})

    folder = place / "ctrgcn" / "other"
    card = read_card(folder)
    wanted = fit_skeleton(run, card, folder)[1]
    assert wanted is not None
    nothing = dict.fromkeys(("dataset", "split", "data_digest"))
    for older in (like(), like(**nothing, imported={"file": "released.pth"})):
        assert trained_topology(older) == KINECT
        assert fit_skeleton(older, card, folder) == (KINECT, wanted)
    assert trained_topology(like(joints=5)) is None
    with pytest.raises(UserError, match="did not record its joints' names") as error:
        fit_skeleton(like(joints=5), card, folder)
    assert "expected: 5 joints" in str(error.value)
    assert fit_skeleton(like(joints=29), card, folder) == (card.topology, None)
    # Whatever it is called, the set of a run has the run's skeleton.
    assert fit_skeleton(like(data_digest=card.data_digest), card, folder) == (card.topology, None)
    with pytest.raises(UserError, match="the run's data record is damaged"):
        trained_topology(like(topology={"joints": ["one"]}))


def test_without_data_the_sets_that_serve_are_named(place: Path, tmp_path: Path) -> None:
    run, root = run_of(place, "slim"), tmp_path / "shards"
    for name in ("twin", "other"):
        written(root / name / "ctrgcn" / "half", KINECT, other=False, dataset=name)
    written(root / "lacking" / "ctrgcn" / "half", other_skeleton(without=["head"]), other=True)
    written(root / "toy" / "ctrgcn" / "other", KINECT, other=False, dataset="toy")
    written(root / "b" / "agcn" / "half", KINECT, other=False, pipeline=AGCN)
    given = (TRANSFER, run.recipe, run)
    with pytest.raises(UserError, match="'transfer-linear' needs --data") as error:
        check_named_set(*given, None, root)
    for name in ("twin", "other"):
        assert str(root / name / "ctrgcn" / "half") in str(error.value)
    assert not any(str(root / name) in str(error.value) for name in ("toy", "b", "lacking"))
    with pytest.raises(UserError, match="skelpipe prepare pku2 --pipeline ctrgcn"):
        check_named_set(*given, None, tmp_path / "nothing")
    check_named_set(*given, root / "twin", root)
    check_named_set(load_protocol("knn"), run.recipe, run, None, root)
