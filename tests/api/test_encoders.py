from __future__ import annotations

import copy
import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from builders import CPU, KINECT, tiny_pcm3_recipe, tiny_recipe, write_set
from runs import write_run
from safetensors.torch import save_file
from torch import Tensor

import skelpipe
from skelpipe import api
from skelpipe.api.encoders import save_encoder
from skelpipe.checkpoint import Run
from skelpipe.errors import UserError
from skelpipe.protocols.features import CENTRE, encode_by, extract, viewer
from skelpipe.protocols.question import load_encoder
from skelpipe.protocols.settings import Recognition
from skelpipe.stream.source import Resident, select

RECIPES = {
    "slim": tiny_recipe(),
    "slim-zeros": tiny_recipe("views.absent_body=zeros"),
    "pcm3": tiny_pcm3_recipe(),
    "pcm3-bone": tiny_pcm3_recipe("views.modality=bone", "encoder.direction=both"),
}
Place = tuple[Path, dict[str, Run]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("encoders")
    runs = {}
    for pipeline in ("ctrgcn", "agcn"):
        write_set(root / pipeline, train=9, test=3, pipeline=pipeline)
    for name, recipe in RECIPES.items():
        runs[name] = write_run(root / name, recipe, root / recipe.pipeline)
    return root, runs


def evaluated(run: Run, data: Path, kind: str, network: str = "student") -> Tensor:
    """The features that `skelpipe evaluate` has of the training part."""
    encode = encode_by(load_encoder(run, KINECT, network).eval(), kind)  # type: ignore[arg-type]
    source = Resident(data, select(data, "train"), CPU)
    return extract(source, [encode], viewer(run.recipe, KINECT, CENTRE))[0]


def test_the_centre_is_that_of_protocols() -> None:
    assert Recognition.model_fields["centre"].default == CENTRE


@pytest.mark.parametrize(
    ("name", "kind", "network"),
    [
        ("slim", "patch", "student"),
        ("slim", "both", "teacher"),
        ("slim-zeros", "class", "student"),
        ("pcm3", "last", "student"),
        ("pcm3-bone", "last", "teacher"),
    ],
)
def test_features_are_those_of_evaluation(place: Place, name: str, kind: str, network: str) -> None:
    root, runs = place
    data = root / runs[name].recipe.pipeline
    wanted = evaluated(runs[name], data, kind, network)
    encoder = skelpipe.load_encoder(root / name, kind=kind, network=network)  # type: ignore[arg-type]
    samples = skelpipe.open_set(data)
    found = torch.cat([encoder(batch.x, batch.frames) for batch in samples.batches(4)])
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-6
    assert wanted.std(0).min() > 1e-4
    alone = torch.cat([encoder(sample.x[None]) for sample in samples])
    assert (alone - wanted).abs().max() <= 1e-6
    assert (encoder.frames, encoder.kind, encoder.topology) == (16, kind, KINECT)


def test_views_that_are_made_already_are_taken_as_they_are(place: Place) -> None:
    root, runs = place
    encoder = skelpipe.load_encoder(root / "slim", centre=1)
    samples = skelpipe.open_set(root / "ctrgcn")
    (batch,) = samples.batches(9, frames=encoder.frames, centre=CENTRE)
    wanted = evaluated(runs["slim"], root / "ctrgcn", "patch")
    assert (encoder(batch.x) - wanted).abs().max() <= 1e-6


def test_it_is_frozen_and_can_be_trained(place: Place) -> None:
    root, _ = place
    x = skelpipe.open_set(root / "ctrgcn")[0].x[None]
    encoder = skelpipe.load_encoder(root / "slim")
    assert not encoder.training
    assert not encoder(x).requires_grad
    assert encoder(x.clone().requires_grad_()).requires_grad
    mine = copy.deepcopy(encoder).requires_grad_().train()
    before = mine(x)
    before.square().sum().backward()
    for name, parameter in mine.encoder.named_parameters():
        if name != "mask_token":
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
            parameter.data -= 0.1 * parameter.grad
    assert (mine(x) - before).abs().max() > 1e-3
    assert torch.equal(encoder(x), before)


@pytest.mark.parametrize("name", ["slim", "pcm3-bone"])
def test_an_encoder_in_a_file(place: Place, tmp_path: Path, name: str) -> None:
    root, runs = place
    encoder = skelpipe.load_encoder(root / name, network="teacher")
    file = tmp_path / "encoder.safetensors"
    save_encoder(encoder, file)
    again = skelpipe.load_encoder(file)
    x = skelpipe.open_set(root / runs[name].recipe.pipeline)[1].x[None]
    assert torch.equal(again(x), encoder(x))
    assert again.about == encoder.about == {"run": name, "checkpoint": "0", "network": "teacher"}
    assert (again.kind, again.recipe, again.topology) == (encoder.kind, RECIPES[name], KINECT)
    with pytest.raises(UserError, match="one network"):
        skelpipe.load_encoder(file, network="student")


def test_files_that_hold_no_encoder(place: Place, tmp_path: Path) -> None:
    root, _ = place
    file = tmp_path / "encoder.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="holds no encoder"):
        skelpipe.load_encoder(file)
    encoder = skelpipe.load_encoder(root / "slim")
    save_encoder(encoder, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="holds no encoder"):
        skelpipe.load_encoder(file)
    del encoder.encoder._parameters["mask_token"]
    save_encoder(encoder, file)
    with pytest.raises(UserError, match="mask_token"):
        skelpipe.load_encoder(file)


def test_a_run_that_does_not_tell_its_skeleton(place: Place, tmp_path: Path) -> None:
    root, _ = place
    run, data = tmp_path / "run", tmp_path / "set"
    shutil.copytree(root / "slim", run)
    shutil.copytree(root / "ctrgcn", data)
    record = json.loads((run / "data.json").read_text())
    del record["topology"]
    (run / "data.json").write_text(json.dumps(record | {"folder": str(data)}))
    assert skelpipe.load_encoder(run).topology == KINECT
    shutil.rmtree(data)
    assert skelpipe.load_encoder(run).topology == KINECT  # of 25 joints
    (run / "data.json").write_text(json.dumps(record | {"folder": str(data), "joints": 17}))
    with pytest.raises(UserError, match="does not tell its skeleton"):
        skelpipe.load_encoder(run)


def test_what_does_not_fit_is_refused(place: Place, tmp_path: Path) -> None:
    root, _ = place
    encoder = skelpipe.load_encoder(root / "slim")
    for shape in ((2, 30, 25, 3), (1, 2, 30, 24, 3), (0, 1, 30, 25, 3)):
        with pytest.raises(UserError, match=re.escape(str(shape))):
            encoder(torch.ones(shape))
    for frames in ([3], [3, 31], [0, 30]):
        with pytest.raises(UserError, match="from 1 to 30"):
            encoder(torch.ones(2, 1, 30, 25, 3), torch.tensor(frames))
    with pytest.raises(UserError, match="a GRU has no features 'class'"):
        skelpipe.load_encoder(root / "pcm3", kind="class")
    with pytest.raises(UserError, match="no network 'pupil'"):
        skelpipe.load_encoder(root / "slim", network="pupil")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="centre is a share"):
        skelpipe.load_encoder(root / "slim", centre=0)
    with pytest.raises(UserError, match="no run folder"):
        skelpipe.load_encoder(tmp_path)
    write_run(tmp_path / "alone", tiny_pcm3_recipe("loss.positives=[]"), root / "agcn")
    with pytest.raises(UserError, match="the run has no teacher"):
        skelpipe.load_encoder(tmp_path / "alone", network="teacher")


def test_a_recording_without_a_body_has_no_features(place: Place) -> None:
    root, _ = place
    x = torch.stack([torch.zeros(2, 30, 25, 3), torch.ones(2, 30, 25, 3)])
    finite = skelpipe.load_encoder(root / "slim")(x).isfinite()
    assert finite.all(1).tolist() == [False, True]


def test_the_examples_run_as_they_are_written(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, runs = place
    shutil.copytree(root / "ctrgcn", tmp_path / "data" / "shards" / "ntu60" / "ctrgcn" / "xsub")
    shutil.copytree(root / "slim", tmp_path / "runs" / "slim")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", api.__doc__ or "")
    assert len(blocks) == 2
    first, second = ({}, {})  # type: tuple[dict[str, Tensor], dict[str, Tensor]]
    exec(textwrap.dedent(blocks[0]), first)
    wanted = evaluated(runs["slim"], root / "ctrgcn", "patch")
    assert (first["features"] - wanted).abs().max() <= 1e-6
    exec(textwrap.dedent(blocks[1]), second)
    assert second["scores"].shape == (9, 2)
    assert second["loss"].isfinite()


def test_names_are_found_when_they_are_used() -> None:
    assert set(skelpipe.__all__) <= set(dir(skelpipe))
    for name in skelpipe.__all__:
        assert getattr(skelpipe, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'open_sets'"):
        skelpipe.open_sets  # noqa: B018
