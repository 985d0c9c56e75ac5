from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import CPU, tiny_recipe, write_set

from skelpipe.checkpoint import Run
from skelpipe.errors import UserError
from skelpipe.methods.slim import SLiM
from skelpipe.protocols.evaluate import evaluate
from skelpipe.protocols.online import online_knn
from skelpipe.protocols.settings import load_protocol
from skelpipe.shards.index import INDEX
from skelpipe.train import read_metrics, start_run, train

HELD_OUT = (1, 2)  # one of each class


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=40)


def start(folder: Path, data: Path, *changes: str, val_subjects: tuple[int, ...] = HELD_OUT) -> Run:
    return start_run(folder, tiny_recipe(*changes), data, seed=1, val_subjects=val_subjects)


def test_it_is_the_protocols_accuracy_of_the_student(data: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", data, "train.knn_every=1")
    train(run, data, device=CPU, validate=online_knn(run, data, CPU))
    records = read_metrics(run.folder)
    found = [record["knn"] for record in records if "knn" in record]
    assert len(found) == 2
    record = evaluate(
        load_protocol("knn"),
        run.recipe,
        data,
        subject="run",
        run=run,
        device=CPU,
        val_subjects=HELD_OUT,
    ).record
    assert record["results"][0]["network"] == "student"
    assert found[-1] == record["results"][0]["accuracy"]
    assert 0 < found[-1] < 100  # of twenty samples: neither nothing nor all is told apart


@pytest.mark.parametrize("source", ["resident", "mapped"])
def test_a_run_with_it_has_the_same_bits(data: Path, tmp_path: Path, source: str) -> None:
    kind = f"train.source={source}"
    plain = start(tmp_path / "plain", data, kind)
    watched = start(tmp_path / "watched", data, kind, "train.knn_every=1")
    last = train(plain, data, device=CPU)
    other = train(watched, data, device=CPU, validate=online_knn(watched, data, CPU))
    for name in ("student", "teacher", "optimiser"):
        file = f"{name}.safetensors"
        assert (last / file).read_bytes() == (other / file).read_bytes()
    losses = [[r["loss"] for r in read_metrics(run.folder)] for run in (plain, watched)]
    assert losses[0] == losses[1]


def test_the_mode_of_the_method_comes_back(data: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", data)
    from builders import KINECT

    method = SLiM(run.recipe, KINECT)
    state = torch.get_rng_state()
    for training in (True, False):
        method.train(training)
        online_knn(run, data, CPU)(method)
        assert method.training == training
    assert torch.equal(torch.get_rng_state(), state)


def test_without_subjects_it_is_refused(data: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", data, val_subjects=())
    with pytest.raises(UserError, match="subjects that are held out") as error:
        online_knn(run, data, CPU)
    assert "--val-subjects 8,9" in str(error.value)


def test_the_test_part_is_not_read(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in data.iterdir():
        if not file.name.startswith("test-"):
            (copy / file.name).write_bytes(file.read_bytes())
    assert (copy / INDEX).exists()
    run = start(tmp_path / "run", copy, "train.knn_every=1")
    train(run, copy, device=CPU, validate=online_knn(run, copy, CPU))
    assert "knn" in read_metrics(run.folder)[-1]
