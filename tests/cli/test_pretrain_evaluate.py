from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TINY, write_set
from safetensors.torch import load_file
from typer.testing import CliRunner

from skelpipe import estimate
from skelpipe.costs.roofline import Peaks
from skelpipe.errors import UserError
from skelpipe.shards.card import CARD, card_bytes, read_card


def skelpipe(*words: str | Path) -> Any:
    (script,) = entry_points(group="console_scripts", name="skelpipe")
    app = sys.modules[script.load().__module__].app
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words: str | Path) -> str:
    result = skelpipe(*words)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_set(tmp_path / "shards" / "toy" / "ctrgcn" / "half")
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "shards"))
    monkeypatch.setenv("SKELPIPE_RUNS", str(tmp_path / "runs"))
    lines = [f"{key} = {json.dumps(value)}" for key, value in TINY.items() if key in ("kind",)]
    lines += ['name = "tiny"']
    for section in ("views", "encoder", "head", "optim", "train"):
        lines.append(f"[{section}]")
        for key, value in TINY[section].items():
            if key == "local":
                tables = ", ".join(
                    f"{{frames = {v['frames']}, ratio = {v['ratio']}}}" for v in value
                )
                value = f"[{tables}]"
            lines.append(f"{key} = {value}")
    (tmp_path / "tiny.toml").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_pretrain_and_evaluate_without_further_arguments(place: Path) -> None:
    trained = skelpipe("pretrain", "--recipe", place / "tiny.toml", "--seed", 3)
    assert trained.exit_code == 0, trained.output
    (run,) = (place / "runs").iterdir()
    assert run.name.endswith("-tiny-toy-half")
    assert json.loads((run / "data.json").read_text())["seed"] == 3

    for words, stored in (
        ((), "knn.json"),
        (("--features", "class"), "knn-class.json"),
        (("--random-init",), "knn-random-init.json"),
        (("--raw-features",), "knn-raw.json"),
        (("--val-subjects", "1,2"), "knn-val.json"),
    ):
        result = skelpipe("evaluate", "--protocol", "knn", *words)
        assert result.exit_code == 0, result.output
        record = json.loads((run / "results" / stored).read_text())
        assert 0 <= record["results"][0]["accuracy"] <= 100
        assert sum(map(sum, record["confusion"])) == record["samples"]["test"]
    linear = skelpipe("evaluate", "--protocol", "linear", "--set", "epochs=2", "--set", "batch=4")
    assert linear.exit_code == 0, linear.output
    assert "convention)" in linear.output
    assert "our reading" in linear.output


def test_streams_are_fused(place: Path) -> None:
    runs = [place / f"run{seed}" for seed in range(3)]
    for seed, run in enumerate(runs):
        skelpipe("pretrain", "--recipe", place / "tiny.toml", "--seed", seed, "--out", run)
    knn = ("evaluate", "--protocol", "knn")
    message = refusal(*knn, "--fuse", *runs)
    assert f"skelpipe evaluate --protocol knn --run {runs[0]}\n" in message + "\n"
    for run in runs:
        assert skelpipe(*knn, "--run", run).exit_code == 0
    stored = runs[0] / "results" / "fused-knn.json"
    given: list[tuple[str | Path, ...]] = [
        ("--fuse", *runs),
        ("--fuse", *runs, "--weights", "1,1,1"),
        ("--weights", "0.6,0.6,0.4", "--fuse", *runs),
        tuple(word for run in runs for word in ("--fuse", run)),
    ]
    for words in given:
        result = skelpipe(*knn, *words)
        assert result.exit_code == 0, result.output
        record = json.loads(stored.read_text())
        assert [stream["run"] for stream in record["streams"]] == ["run0", "run1", "run2"]
        weights = [0.6, 0.6, 0.4] if "0.6,0.6,0.4" in words else [1, 1, 1]
        assert [stream["weight"] for stream in record["streams"]] == weights
        for stream in (*record["streams"], *record["results"]):
            assert f"{stream['accuracy']:.1f}" in result.output
        assert f"stored: {stored}" in result.output
        stored.unlink()
    for words, named in (
        (("--fuse", runs[0]), "two runs at least"),
        (("--fuse", *runs, "--weights", "1,1"), "one weight for each run"),
        (("--fuse", *runs, "--weights", "1,1,one"), "--weights takes numbers"),
        (("--fuse", *runs[:2], "--fuse", runs[2]), "several --fuse"),
        (("--fuse", *runs, "--set", "k=5"), "for k 5"),
        (("--fuse", *runs, "--sweep", "k=1,5"), "--sweep"),
        (("--fuse", *runs, "--run", runs[0], "--raw-features"), "--run --raw-features"),
        (("--fuse", *runs, "--features", "class"), "--features class"),
        ((runs[0],), "belongs to no option"),
        (("--weights", "1,1"), "those of --fuse"),
    ):
        assert named in refusal(*knn, *words)
    assert not stored.exists()


def test_settings_are_chosen_on_held_out_subjects(place: Path) -> None:
    floor = ("evaluate", "--protocol", "knn", "--raw-features", "--recipe", place / "tiny.toml")
    assert "never on the test part" in refusal(*floor, "--sweep", "k=1,3")
    result = skelpipe(
        *floor, "--val-subjects", "1,2", "--sweep", "k=1,3", "--sweep", "centre=0.9,1"
    )
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("one test")]
    words = shlex.split(line.partition(": ")[2])
    assert "the highest" in result.output
    assert words[:4] == ["skelpipe", "evaluate", "--protocol", "knn"]
    assert "--val-subjects" not in words
    tested = skelpipe(*words[1:])
    assert tested.exit_code == 0, tested.output
    assert ", test: 6 samples" in tested.output


def test_held_out_subjects_are_not_trained_on(place: Path) -> None:
    skelpipe("pretrain", "--recipe", place / "tiny.toml", "--val-subjects", "1")
    (run,) = (place / "runs").iterdir()
    state = json.loads((run / "checkpoints" / "4" / "state.json").read_text())
    assert state["steps_per_epoch"] == 2  # 9 of 12 samples in batches of 4
    assert json.loads((run / "data.json").read_text())["val_subjects"] == [1]


def test_neighbours_are_found_while_it_trains(place: Path) -> None:
    words = ("--val-subjects", "1,2", "--knn-every", "1", "--log", "tensorboard")
    result = skelpipe("pretrain", "--recipe", place / "tiny.toml", *words)
    assert result.exit_code == 0, result.output
    (run,) = (place / "runs").iterdir()
    assert list((run / "tensorboard").iterdir())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [record["knn"] for record in map(json.loads, lines) if "knn" in record]
    assert len(found) == 2
    assert f"k-NN {found[-1]:.1f} %" in result.output


def test_an_encoder_is_fine_tuned_by_some_labels_and_streams_are_fused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = Peaks(flop_per_s=1e10, bytes_per_s=1e10)
    monkeypatch.setattr(estimate, "measure_peaks", lambda device, dtype: peaks)
    runs = [place / f"run{seed}" for seed in range(2)]
    quick = ("runs=2", "epochs=1", "batch=4", "random.shortest=4", "hidden=4", "share=0.25")
    changes = [word for change in quick for word in ("--set", change)]
    semi = ("evaluate", "--protocol", "semi")
    for seed, run in enumerate(runs):
        skelpipe("pretrain", "--recipe", place / "tiny.toml", "--seed", seed, "--out", run)
        result = skelpipe(*semi, *changes, "--run", run)
        assert result.exit_code == 0, result.output
        assert re.search(r"estimate on \S+: less than a minute", result.output)
        assert " ± " in result.output
        assert (run / "results" / "semi-25-random.subsets.csv").exists()
    result = skelpipe(*semi, *changes, "--run", run, "--random-init")
    assert "scratch" in result.output
    assert (run / "results" / "semi-25-random-random-init.subsets.csv").exists()
    result = skelpipe(*semi, "--set", "share=0.25", "--fuse", *runs)
    assert result.exit_code == 0, result.output
    assert (runs[0] / "results" / "fused-semi-25-random.json").exists()
    message = refusal(*semi, "--fuse", *runs)
    assert "semi-1-random.json" in message
    message = refusal(*semi, "--raw-features", "--run", run)
    assert "leave out --raw-features" in message
    slow = ("--random-init", "--recipe", "slim", "--device", "cpu", "--set", "epochs=1000000")
    message = refusal("evaluate", "--protocol", "finetune", *slow)
    assert "--yes starts it all the same" in message
    assert re.search("would take about [0-9]+ hours on this CPU", message)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("pretrain", "--recipe", "slin"), "did you mean 'slim'?"),
        (("pretrain", "--recipe", "slim-tiny", "--set", "optim.lrr=1"), "did you mean 'optim.lr'?"),
        (("pretrain", "--recipe", "slim-tiny", "--set", "train.epochs=none"), "train.epochs"),
        (("pretrain", "--recipe", "slim-tiny", "--set", "epochs"), "key=value"),
        (("pretrain", "--recipe", "slim-tiny", "--device", "tpu"), "unknown device 'tpu'"),
        (("pretrain", "--recipe", "slim-tiny", "--val-subjects", "77"), "subject 77"),
        (("pretrain", "--recipe", "slim-tiny", "--data", "nowhere"), "skelpipe prepare"),
        (("pretrain", "--recipe", "slim-tiny"), "a batch of 32 is larger"),
        (("pretrain", "--resume"), "there is no run"),
        (("pretrain", "--resume", "--seed", "1"), "keeps its recipe"),
        (
            ("pretrain", "--recipe", "slim", "--batch", "4", "--set", "train.epochs=10000000"),
            "--yes",
        ),
        (
            ("pretrain", "--recipe", "slim-tiny", "--set", "train.batch=4", "--knn-every", "1"),
            "--val-subjects 8,9",
        ),
        (
            ("pretrain", "--recipe", "slim-tiny", "--set", "train.batch=4", "--log", "wand"),
            "did you mean 'wandb'?",
        ),
        (("pretrain", "--resume", "--knn-every", "1"), "keeps its recipe"),
        (("evaluate", "--protocol", "kmn"), "did you mean 'knn'?"),
        (("evaluate", "--protocol", "knn"), "there is no run"),
        (("evaluate", "--protocol", "knn", "--run", "nowhere"), "no run folder"),
        (("evaluate", "--protocol", "knn", "--set", "kk=1"), "did you mean 'k'?"),
        (
            (
                "evaluate",
                "--protocol",
                "transfer-linear",
                "--recipe",
                "slim-tiny",
                "--raw-features",
            ),
            "shards/toy/ctrgcn/half",
        ),
    ],
)
def test_mistakes_are_named(place: Path, words: tuple[str, ...], named: str) -> None:
    assert named in refusal(*words)
    assert not (place / "runs").exists() or not list((place / "runs").glob("*/checkpoints"))


def test_a_set_of_another_pipeline_is_refused_with_the_command(place: Path) -> None:
    other = write_set(place / "other", pipeline="agcn")
    message = refusal("pretrain", "--recipe", place / "tiny.toml", "--data", other)
    assert "skelpipe prepare toy --split half --pipeline ctrgcn" in message


def test_what_pcm3_will_take_is_told_before_it_starts(place: Path) -> None:
    data = write_set(place / "agcn", pipeline="agcn")
    recipe = place / "contrast.toml"
    recipe.write_text('kind = "recipe"\nmethod = "pcm3"\n', encoding="utf-8")
    words = ("pretrain", "--recipe", recipe, "--data", data, "--batch", 4)
    result = skelpipe(*words, "--set", "train.epochs=10000000")
    assert re.search(r"estimate on \S+: about \S+ hours, \S+ GiB of memory, 1.8 GiB", result.output)
    message = str(result.exception)
    assert "recipe 'contrast' would take about" in message
    assert "skelpipe pretrain --recipe pcm3-tiny runs in minutes" in message


def test_a_run_without_checkpoint_is_refused(place: Path) -> None:
    skelpipe("pretrain", "--recipe", place / "tiny.toml", "--out", place / "run")
    for marker in (place / "run" / "checkpoints").glob("*/complete"):
        marker.unlink()
    assert "no complete checkpoint" in refusal(
        "evaluate", "--protocol", "knn", "--run", place / "run"
    )


def test_training_goes_round_a_damaged_checkpoint_and_evaluation_does_not(place: Path) -> None:
    skelpipe("pretrain", "--recipe", place / "tiny.toml", "--out", place / "run")
    checkpoints = place / "run" / "checkpoints"
    before, newest = sorted(checkpoints.iterdir(), key=lambda path: int(path.name))
    student = newest / "student.safetensors"
    whole = student.read_bytes()
    student.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    message = refusal("evaluate", "--protocol", "knn", "--run", place / "run")
    assert "the checkpoint is damaged" in message
    assert str(student) in message
    result = skelpipe("pretrain", "--resume", "--out", place / "run")
    assert result.exit_code == 0, result.output
    assert "the checkpoint before it is used" in " ".join(result.output.split())
    assert student.read_bytes() == whole
    assert before.exists()


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(place: Path) -> None:
    command = [sys.executable, "-m", "skelpipe.cli", "pretrain"]
    fresh = [*command, "--recipe", str(place / "tiny.toml"), "--set", "train.epochs=40"]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*fresh, "--out", str(place / "whole")], env=threads, check=True)
    killed = subprocess.Popen([*fresh, "--out", str(place / "cut")], env=threads)
    checkpoints = place / "cut" / "checkpoints"
    while killed.poll() is None and not list(checkpoints.glob("*/complete")):
        pass
    killed.kill()
    killed.wait()
    subprocess.run([*command, "--resume", "--out", str(place / "cut")], env=threads, check=True)
    for name in ("student", "teacher", "optimiser"):
        whole = load_file(place / "whole" / "checkpoints" / "120" / f"{name}.safetensors")
        cut = load_file(checkpoints / "120" / f"{name}.safetensors")
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)

    def losses(run: str) -> list[float]:
        lines = (place / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert losses("whole") == losses("cut")
    assert len(losses("cut")) == 120


def test_another_split_of_the_same_recordings_is_told_apart(place: Path) -> None:
    skelpipe("pretrain", "--recipe", place / "tiny.toml", "--out", place / "run")
    skelpipe("evaluate", "--protocol", "knn", "--run", place / "run", "--raw-features")
    half = place / "shards" / "toy" / "ctrgcn" / "half"
    other = write_set(place / "other")
    card = read_card(other)
    assert card.data_digest == read_card(half).data_digest
    (other / CARD).write_bytes(card_bytes(card.model_copy(update={"split": "third"})))

    message = refusal("pretrain", "--resume", "--out", place / "run", "--data", other)
    assert "started on other data" in message
    result = skelpipe("evaluate", "--protocol", "knn", "--run", place / "run", "--data", other)
    assert "third, test" in result.output
    assert "raw skeleton" not in result.output  # the floor of the other split


@pytest.mark.parametrize(
    "words",
    [
        ("knn", "k=0"),
        ("linear", "epochs=0"),
        ("linear", "lr=-1"),
        ("linear", "batch=0"),
        ("linear", "centre=2"),
    ],
)
def test_protocol_settings_out_of_range_are_refused(words: tuple[str, str]) -> None:
    assert words[1].partition("=")[0] in refusal(
        "evaluate", "--protocol", words[0], "--set", words[1]
    )


def test_a_start_that_fails_leaves_nothing_behind(place: Path) -> None:
    words = ("pretrain", "--recipe", place / "tiny.toml", "--out", place / "run")
    shard = place / "shards" / "toy" / "ctrgcn" / "half" / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + b"?" + whole[601:])
    assert "is damaged" in refusal(*words)
    assert not (place / "run").exists()
    shard.write_bytes(whole)
    assert skelpipe(*words).exit_code == 0
