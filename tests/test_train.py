from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CPU, KINECT, tiny_recipe, write_set
from safetensors.torch import load_file
from torch import nn

from skelpipe.checkpoint import Run, complete_checkpoints, read_run
from skelpipe.errors import UserError
from skelpipe.methods.slim import SLiM
from skelpipe.optim import cosine
from skelpipe.stream.loader import Loader
from skelpipe.stream.source import Batch
from skelpipe.train import (
    RunInterrupted,
    build_method,
    clip_gradients,
    read_metrics,
    start_run,
    train,
)

STEPS = 6  # two epochs of three batches of four samples
RECIPE = tiny_recipe()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=13)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = start_run(tmp_path_factory.mktemp("runs") / "whole", RECIPE, data, seed=1)
    train(run, data, device=CPU)
    return run


def fresh(folder: Path, data: Path, *changes: str) -> Run:
    return start_run(folder / "run", tiny_recipe(*changes), data, seed=1)


def tensors(run: Run) -> dict[str, bytes]:
    """All saved bytes of the last checkpoint."""
    return {
        path.name: path.read_bytes()
        for path in run.checkpoint().iterdir()
        if path.suffix == ".safetensors"
    }


def untimed(run: Run) -> list[dict[str, float]]:
    return [
        {name: value for name, value in record.items() if name != "samples_per_s"}
        for record in read_metrics(run.folder)
    ]


def assert_equal(run: Run, other: Run) -> None:
    assert run.checkpoint().name == other.checkpoint().name == str(STEPS)
    assert tensors(run) == tensors(other)
    assert untimed(run) == untimed(other)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    data: Path, whole: Run, tmp_path: Path, stop: int
) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU, stop_after=stop)
    assert run.checkpoint().name == str(stop)
    train(read_run(run.folder), data, device=CPU)
    assert_equal(run, whole)


def test_a_mapped_source_trains_to_the_same_bits(data: Path, whole: Run, tmp_path: Path) -> None:
    run = fresh(tmp_path, data, "train.source=mapped")
    train(run, data, device=CPU)
    assert_equal(run, whole)


def test_a_run_records_every_step(whole: Run) -> None:
    records = read_metrics(whole.folder)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert records[2]["epoch"] == 1
    assert records[0]["lr"] == 0
    for record in records:
        assert {"loss", "mfm", "glcl", "koleo", "class_entropy", "class_spread",
                "patch_entropy", "encoder_grad_norm", "samples_per_s"} <= record.keys()  # fmt: skip
        assert all(math.isfinite(value) for value in record.values())
    state = json.loads((whole.checkpoint() / "state.json").read_text(encoding="utf-8"))
    assert (state["seed"], state["step"], state["epoch"], state["epoch_step"]) == (1, 6, 2, 0)
    assert {"threads", "world", "global_batch", "versions", "data_digest"} <= state.keys()


def test_training_changes_student_and_teacher(whole: Run) -> None:
    initial = build_method(RECIPE, KINECT, 1).student.state_dict()
    student = load_file(whole.checkpoint() / "student.safetensors")
    teacher = load_file(whole.checkpoint() / "teacher.safetensors")
    for name, tensor in initial.items():
        assert not torch.equal(student[name], tensor), name
        assert not torch.equal(teacher[name], student[name]), name


def test_the_teacher_moves_by_the_share_of_the_run_done(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data, "optim.warmup=0.0")
    saved = []
    for step in (1, 2):
        path = train(run, data, device=CPU, stop_after=step)
        files = {name: path / f"{name}.safetensors" for name in ("student", "teacher")}
        saved.append({name: load_file(file) for name, file in files.items()})
    momentum = cosine(0.9, 1.0, 2 / STEPS)
    for name, teacher in saved[1]["teacher"].items():
        wanted = momentum * saved[0]["teacher"][name] + (1 - momentum) * saved[1]["student"][name]
        assert torch.allclose(teacher, wanted, rtol=0, atol=1e-6), name


def test_a_finished_run_is_left_alone(data: Path, whole: Run) -> None:
    before = tensors(whole), untimed(whole)
    assert train(whole, data, device=CPU).name == str(STEPS)
    assert (tensors(whole), untimed(whole)) == before


def test_checkpoints_come_by_epochs_and_old_ones_go(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data, "train.epochs=5", "train.checkpoint_every=2", "train.keep=2")
    seen: list[list[str]] = []

    def note(record: dict[str, float]) -> None:
        seen.append([path.name for path in complete_checkpoints(run.folder)])

    train(run, data, device=CPU, report=note)
    assert seen[5] == []
    assert seen[6] == ["6"]
    assert seen[12] == ["6", "12"]
    assert [path.name for path in complete_checkpoints(run.folder)] == ["12", "15"]


def test_records_beyond_the_checkpoint_are_written_anew(
    data: Path, whole: Run, tmp_path: Path
) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU, stop_after=3)
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    train(run, data, device=CPU)
    assert_equal(run, whole)


def test_other_data_are_refused(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU, stop_after=1)
    other = write_set(tmp_path / "other", train=13, seed=1)
    with pytest.raises(UserError, match="started on other data"):
        train(run, other, device=CPU)


def test_another_batch_is_refused(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU, stop_after=1)
    with pytest.raises(UserError, match=r"another recipe\n  place: train\.batch"):
        train(Run(run.folder, tiny_recipe("train.batch=5"), run.data), data, device=CPU)


def test_another_number_of_threads_is_announced(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU, stop_after=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    said: list[str] = []
    train(run, data, device=CPU, warn=said.append, stop_after=2)
    assert len(said) == 1
    assert "another threads (64, was 1)" in said[0]


def test_another_order_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU, stop_after=1)
    monkeypatch.setattr(Loader, "order_digest", lambda self: "0123456789abcdef")
    with pytest.raises(UserError, match="another order digest") as error:
        train(run, data, device=CPU)
    assert "found: 0123456789abcdef" in str(error.value)


def test_a_run_without_a_single_step_is_refused(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data, "train.tail=carry", "train.batch=40", "train.epochs=3")
    with pytest.raises(UserError, match="larger than what the run reads in all"):
        train(run, data, device=CPU)


def test_another_recipe_is_refused(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU, stop_after=1)
    with pytest.raises(UserError, match="another recipe") as error:
        train(Run(run.folder, tiny_recipe("optim.lr=0.002"), run.data), data, device=CPU)
    assert "place: optim.lr" in str(error.value)
    with pytest.raises(UserError, match="another recipe") as error:
        train(Run(run.folder, tiny_recipe("encoder.layers=2"), run.data), data, device=CPU)
    assert "place: encoder.layers" in str(error.value)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    data: Path, whole: Run, tmp_path: Path
) -> None:
    run = fresh(tmp_path, data)
    train(run, data, device=CPU)
    teacher = run.checkpoint() / "teacher.safetensors"
    teacher.write_bytes(teacher.read_bytes()[:-1])
    said: list[str] = []
    train(run, data, device=CPU, warn=said.append)
    assert [str(teacher) in text for text in said] == [True]
    assert_equal(run, whole)


def test_a_second_run_in_one_folder_is_refused(data: Path, tmp_path: Path) -> None:
    fresh(tmp_path, data)
    with pytest.raises(UserError, match="a run stands here already"):
        fresh(tmp_path, data)


def test_another_pipeline_is_refused(tmp_path: Path) -> None:
    data = write_set(tmp_path / "toy", pipeline="agcn")
    with pytest.raises(UserError, match="prepared with pipeline 'ctrgcn'"):
        fresh(tmp_path, data)


def test_held_out_subjects_are_not_trained_on(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", RECIPE, data, seed=1, val_subjects=(1, 2))
    train(run, data, device=CPU)
    assert run.checkpoint().name == "2"  # 6 samples are left: one batch in each of two epochs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(
    data: Path, whole: Run, tmp_path: Path, number: signal.Signals
) -> None:
    run = fresh(tmp_path, data)
    before = signal.getsignal(number)

    def send(record: dict[str, float]) -> None:
        if record["step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(RunInterrupted):
        train(run, data, device=CPU, report=send)
    assert signal.getsignal(number) == before
    assert run.checkpoint().name == "2"
    train(run, data, device=CPU)
    assert_equal(run, whole)


def test_a_signal_before_the_first_step_leaves_a_run_that_can_be_continued(
    data: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fresh(tmp_path, data)
    plain = Loader.__next__

    def interrupted(self: Loader) -> Batch:
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "__next__", interrupted)
        with pytest.raises(RunInterrupted):
            train(run, data, device=CPU)
    assert complete_checkpoints(run.folder) == []
    train(read_run(run.folder), data, device=CPU)
    assert_equal(run, whole)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_stops_with_step_and_keys_before_it_spreads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = fresh(tmp_path, data)
    methods: list[SLiM] = []
    plain = SLiM.learn

    def poisoned(self: SLiM, *how: Any) -> dict[str, torch.Tensor]:
        methods.append(self)
        found = plain(self, *how)
        if len(methods) == 5 and where == "loss":
            found["loss"] = found["loss"] * math.nan
        if len(methods) == 5 and where == "gradient":
            assert self.student.encoder.prefix.grad is not None
            self.student.encoder.prefix.grad *= math.nan
        return found

    monkeypatch.setattr(SLiM, "learn", poisoned)
    with pytest.raises(UserError, match="not finite at step 5") as error:
        train(run, data, device=CPU)
    assert "train0" in str(error.value)
    assert [path.name for path in complete_checkpoints(run.folder)] == ["3"]
    assert [record["step"] for record in read_metrics(run.folder)] == [1, 2, 3, 4]
    for network in (methods[0].teacher, methods[0].student):
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def test_half_precision_trains(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data, "train.precision=bf16", "train.epochs=1")
    train(run, data, device=CPU)
    for tensor in load_file(run.checkpoint() / "student.safetensors").values():
        assert tensor.dtype == torch.float32
        assert bool(tensor.isfinite().all())


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = build_method(RECIPE, KINECT, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = build_method(RECIPE, KINECT, 3), build_method(RECIPE, KINECT, 4)
    weights = [m.student.encoder.patch.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_gradients_are_clipped_for_each_sub_network() -> None:
    student = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    for parameter in student["one"].parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    for parameter in student["two"].parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    norms = clip_gradients(student, 3.0)
    assert norms["one_grad_norm"] == pytest.approx(10 * 12**0.5)
    after = [
        sum(float((p.grad**2).sum()) for p in part.parameters() if p.grad is not None) ** 0.5
        for part in student.values()
    ]
    assert after == pytest.approx([3.0, 0.01 * 12**0.5], rel=1e-4)


# Losses of 20 steps. `test_the_whole_trainer_gives_the_recorded_losses` prints what it found as
# this line: it goes here where draws, order, model, losses or optimiser were changed on purpose.
RECORDED = [
    10.468905,
    10.188601,
    10.961287,
    8.935281,
    7.656754,
    6.321452,
    5.769914,
    5.673999,
    5.366659,
    5.339408,
    5.351393,
    5.166355,
    5.15663,
    5.01195,
    5.1317,
    5.081181,
    4.985364,
    4.984259,
    4.981002,
    4.91826,
]


def test_the_whole_trainer_gives_the_recorded_losses(data: Path, tmp_path: Path) -> None:
    run = fresh(tmp_path, data, "train.epochs=7")
    train(run, data, device=CPU, stop_after=20)
    losses = [round(record["loss"], 6) for record in read_metrics(run.folder)]
    print("RECORDED =", losses)
    assert losses == pytest.approx(RECORDED, rel=1e-4)


AFTER_STEP = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from skelpipe.checkpoint import read_run
from skelpipe.train import train

def kill(record):
    if record["step"] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

train(read_run(Path(sys.argv[1])), Path(sys.argv[2]), device=torch.device("cpu"), report=kill)
"""


def test_forty_steps_are_twenty_and_a_kill_and_twenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_set(tmp_path / "set", train=21)  # ten batches of two an epoch
    changes = ("train.epochs=4", "train.checkpoint_every=2", "train.batch=2", "views.crops=1")
    seen: list[list[int]] = []
    plain = SLiM.learn

    def noted(self: SLiM, batch: Batch, *how: Any) -> dict[str, torch.Tensor]:
        seen.append(batch.row_N.tolist())
        return plain(self, batch, *how)

    monkeypatch.setattr(SLiM, "learn", noted)
    whole = start_run(tmp_path / "whole", tiny_recipe(*changes), data, seed=1)
    train(whole, data, device=CPU)
    order = list(seen)
    assert len(order) == 40

    run = fresh(tmp_path, data, *changes)
    # The record of step 21 is written and its optimiser step done, but not saved.
    command = [sys.executable, "-c", AFTER_STEP, str(run.folder), str(data), "21"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert [path.name for path in complete_checkpoints(run.folder)] == ["20"]
    assert len(read_metrics(run.folder)) == 21
    seen.clear()
    train(read_run(run.folder), data, device=CPU)
    assert seen == order[20:]
    assert tensors(run).keys() == {f"{n}.safetensors" for n in ("student", "teacher", "optimiser")}
    assert tensors(run) == tensors(whole)
    assert untimed(run) == untimed(whole)
    assert len(untimed(run)) == 40


def test_validation_comes_every_so_many_epochs_and_is_recorded(
    data: Path, whole: Run, tmp_path: Path
) -> None:
    run = fresh(tmp_path, data, "train.epochs=5", "train.knn_every=2")
    reported: list[dict[str, float]] = []
    train(
        run,
        data,
        device=CPU,
        report=reported.append,
        validate=lambda method: {"knn": float(method.training)},
    )
    assert [record["step"] for record in reported if "knn" in record] == [6, 12]
    assert read_metrics(run.folder) == reported
    assert json.loads((whole.folder / "recipe.json").read_text())["train"]["knn_every"] == 0


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from skelpipe.checkpoint import read_run
from skelpipe.train import train
run, data = Path(sys.argv[1]), Path(sys.argv[2])
train(read_run(run), data, device=torch.device("cpu"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.03])
def test_a_killed_run_continues_bit_for_bit(data: Path, tmp_path: Path, delay: float) -> None:
    changes = ("train.epochs=30", "train.checkpoint_every=1")
    whole = start_run(tmp_path / "whole", tiny_recipe(*changes), data, seed=1)
    train(whole, data, device=CPU)
    run = fresh(tmp_path, data, *changes)
    command = [sys.executable, "-c", KILLED, str(run.folder), str(data)]
    kills = 0
    while not complete_checkpoints(run.folder) or run.checkpoint().name != "90":
        done = len(complete_checkpoints(run.folder)) and int(run.checkpoint().name)
        process = subprocess.Popen(command)
        while process.poll() is None:
            found = complete_checkpoints(run.folder)
            if found and int(found[-1].name) > done + 15 and kills < 3:
                time.sleep(delay)
                process.kill()
                kills += 1
                break
            time.sleep(0.001)
        assert process.wait() in (0, -signal.SIGKILL)
    assert kills > 1
    assert tensors(run) == tensors(whole)
    assert untimed(run) == untimed(whole)
