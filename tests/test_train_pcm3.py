from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import CPU, tiny_pcm3_recipe, tiny_recipe, write_set

from skelpipe.checkpoint import Run, load_network, read_run
from skelpipe.errors import UserError
from skelpipe.methods import build_method
from skelpipe.methods.pcm3 import PCM3
from skelpipe.protocols.evaluate import ask, evaluate
from skelpipe.protocols.features import encode_by
from skelpipe.protocols.online import online_knn
from skelpipe.protocols.question import load_encoder
from skelpipe.protocols.settings import load_protocol
from skelpipe.shards.card import read_card
from skelpipe.train import read_metrics, start_run, train

# Losses of 20 steps, as in tests/test_train.py.
RECORDED = [
    48.989008, 47.910771, 39.55482, 46.537678, 34.494328, 42.689643, 43.345716, 40.660749,
    37.374015, 40.536532, 38.525594, 45.923315, 44.807075, 39.227873, 29.786022, 36.73826,
    38.926295, 32.668606, 44.408336, 37.307012,
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=13, pipeline="agcn")


def fresh(folder: Path, data: Path, *changes: str) -> Run:
    return start_run(folder, tiny_pcm3_recipe(*changes), data, seed=1)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = fresh(tmp_path_factory.mktemp("runs") / "whole", data)
    train(run, data, device=CPU)
    return run


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    data: Path, whole: Run, tmp_path: Path, stop: int
) -> None:
    run = fresh(tmp_path / "run", data)
    train(run, data, device=CPU, stop_after=stop)
    train(read_run(run.folder), data, device=CPU)
    files = [path.name for path in whole.checkpoint().iterdir() if path.suffix == ".safetensors"]
    assert len(files) == 3
    for name in files:  # the queue is the teacher's, statistics of batch norms are everyone's
        assert (run.checkpoint() / name).read_bytes() == (whole.checkpoint() / name).read_bytes()
    losses = [[record["loss"] for record in read_metrics(each.folder)] for each in (run, whole)]
    assert losses[0] == losses[1]


def test_the_whole_trainer_gives_the_recorded_losses(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", data, "train.epochs=7")
    train(run, data, device=CPU, stop_after=20)
    losses = [round(record["loss"], 6) for record in read_metrics(run.folder)]
    print("RECORDED =", losses)
    assert losses == pytest.approx(RECORDED, rel=1e-4)


def test_every_term_is_recorded(whole: Run) -> None:
    record = read_metrics(whole.folder)[-1]
    positives = {"intra", "inter", "mask", "predict"}
    assert positives | {f"kl_{name}" for name in positives} | {"error", "loss", "lr"} <= set(record)
    parts = ("encoder", "projector", "decoder", "domain_prompts", "task_prompts")
    assert all(record[f"{part}_grad_norm"] > 0 for part in parts)


def test_the_rate_drops_once(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", data, "train.epochs=4", "optim.drop_after=0.75", "optim.lr=0.5")
    train(run, data, device=CPU)
    assert [record["lr"] for record in read_metrics(run.folder)] == [0.5] * 9 + [0.05] * 3


def test_half_precision_trains(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", data, "train.precision=bf16")
    train(run, data, device=CPU, stop_after=2)
    exact = fresh(tmp_path / "exact", data)
    train(exact, data, device=CPU, stop_after=2)
    first, other = (read_metrics(each.folder)[0]["loss"] for each in (run, exact))
    assert first == pytest.approx(other, rel=0.05)
    assert first != other


def test_a_set_of_another_pipeline_is_refused_with_the_command(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    with pytest.raises(UserError, match="needs a set prepared with pipeline 'agcn'") as error:
        fresh(tmp_path / "run", folder)
    assert "skelpipe prepare toy --split half --pipeline agcn" in str(error.value)


def test_a_run_of_another_method_is_refused(data: Path, whole: Run, tmp_path: Path) -> None:
    other = write_set(tmp_path / "set")
    slim = start_run(tmp_path / "slim", tiny_recipe(), other, seed=1)
    train(slim, other, device=CPU, stop_after=1)
    for run, wrong, folder in ((slim, whole.recipe, other), (whole, slim.recipe, data)):
        mixed = Run(run.folder, wrong, run.data)
        with pytest.raises(UserError, match="under another recipe") as error:
            load_encoder(mixed, read_card(folder).topology)
        assert "place: method" in str(error.value)


def test_a_run_is_evaluated_by_its_last_frame(data: Path, whole: Run) -> None:
    for name in ("knn", "linear"):
        changes = () if name == "knn" else ("epochs=2",)
        record = evaluate(
            load_protocol(name, changes), whole.recipe, data, subject="run", device=CPU, run=whole
        ).record
        assert record["features"] == "last"
        assert [row["network"] for row in record["results"]] == ["student", "teacher"]
    for subject in ("random-init", "raw"):
        evaluate(load_protocol("knn"), whole.recipe, data, subject=subject, device=CPU)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no features 'class'"):
        evaluate(
            load_protocol("knn"), whole.recipe, data,
            subject="run", device=CPU, run=whole, kind="class",
        )  # fmt: skip


def test_prompts_queue_and_decoder_decide_no_feature(data: Path, whole: Run) -> None:
    topology = read_card(data).topology
    method = build_method(whole.recipe, topology, seed=9)
    assert isinstance(method, PCM3)
    for name, network in (("student", method.student), ("teacher", method.teacher)):
        load_network(whole.checkpoint(), name, network)
        x = torch.randn(3, 16, 150)
        own, alone = network.encoder.eval(), load_encoder(whole, topology, name).eval()
        with torch.no_grad():
            torch.testing.assert_close(encode_by(own, "last")(x), encode_by(alone, "last")(x))


def test_a_run_without_positives_has_no_teacher(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", data, "loss.positives=[]")
    train(run, data, device=CPU, stop_after=1)
    question = ask(load_protocol("knn"), run.recipe, data, subject="run", device=CPU, run=run)
    assert list(question.networks()) == ["student"]
    readings = " ".join(run.recipe.readings())
    assert "P13" not in readings
    assert "P3 " in readings


def test_knn_during_training(data: Path, tmp_path: Path) -> None:
    recipe = tiny_pcm3_recipe("train.knn_every=1")
    run = start_run(tmp_path / "run", recipe, data, seed=1, val_subjects=(1,))
    train(run, data, device=CPU, validate=online_knn(run, data, CPU))
    assert sum("knn" in record for record in read_metrics(run.folder)) == 2


def test_initial_weights_depend_on_the_seed_alone(data: Path) -> None:
    recipe, topology = tiny_pcm3_recipe(), read_card(data).topology
    first, again, other = (build_method(recipe, topology, seed).state_dict() for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
    assert not torch.equal(first["teacher.queue.keys_KP"], other["teacher.queue.keys_KP"])


def test_a_set_of_another_skeleton_is_refused(data: Path, whole: Run) -> None:
    topology = read_card(data).topology
    older = {key: value for key, value in whole.data.items() if key != "topology"} | {"joints": 5}
    turned = topology.model_copy(update={"joints": topology.joints[::-1]})
    for known, given in ((older, topology), (whole.data, turned)):
        run = Run(whole.folder, whole.recipe, known)
        with pytest.raises(UserError, match="another skeleton than the run was") as error:
            load_encoder(run, given)
        assert "25 joints (kinect_v2)" in str(error.value)
