from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import write_set
from typer.testing import CliRunner

from skelpipe.checkpoint import complete_checkpoints
from skelpipe.errors import UserError

SMALL = {
    "train.epochs": 2,
    "train.batch": 4,
    "train.checkpoint_every": 1,
    "encoder.layers": 1,
    "encoder.dim": 16,
    "encoder.heads": 2,
    "head.hidden": 24,
    "head.bottleneck": 8,
    "head.prototypes": 12,
}
ROWS = ("slim-ablation-mfm", "slim-ablation-full")


def words(data: Path, runs: Path, *extra: str, **changes: int) -> list[str]:
    settings = SMALL | {key.replace("_", ".", 1): value for key, value in changes.items()}
    given = ["--scale", "tiny", "--data", str(data), "--runs", str(runs), "--seeds", "0,1"]
    given += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    if "--only" not in extra:
        given += ["--only", ",".join(ROWS)]
    return ["table", "slim-ablations", *given, *extra]


def skelpipe(given: list[str]) -> Any:
    (script,) = entry_points(group="console_scripts", name="skelpipe")
    app = sys.modules[script.load().__module__].app
    return CliRunner().invoke(app, given)


def done(given: list[str]) -> str:
    result = skelpipe(given)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.output)


def refusal(given: list[str]) -> str:
    result = skelpipe(given)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def times(folder: Path) -> dict[str, int]:
    """When each file below a folder was last written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_set(tmp_path / "shards" / "toy" / "ctrgcn" / "half")


@pytest.mark.slow
def test_rows_and_seeds_are_run_evaluated_and_reported_once(data: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    given = words(data, runs, "--val-subjects", "1")
    plan = done([*given, "--plan"])
    assert "4 of 4 runs are missing" in plan
    assert not runs.exists()

    threads = torch.get_num_threads()
    try:
        done([*given, "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    root = runs / "slim-ablations" / "tiny"
    folders = [root / f"{row}-seed{seed}" for row in ROWS for seed in (0, 1)]
    assert sorted(path.name for path in root.iterdir()) == sorted(
        [*(folder.name for folder in folders), "table"]
    )
    for folder in folders:
        record = json.loads((folder / "data.json").read_text())
        assert record["seed"] == int(folder.name[-1])
        assert record["val_subjects"] == [1]
        for protocol in ("linear", "knn"):
            result = json.loads((folder / "results" / f"{protocol}-val.json").read_text())
            assert result["threads"] == 1
            assert result["part"] == "validation subjects [1]"
            floor = (folder / "results" / f"{protocol}-random-init-val.json").is_file()
            assert floor == ("full" in folder.name)
    report = json.loads((root / "table" / "slim-ablations.json").read_text())
    assert report["seeds"] == [0, 1]
    assert report["samples"] == {"train": 9, "test": 3}
    rows = {row["label"]: row["ours"] for row in report["tables"][0]["rows"]}
    for label, row in (("MFM", "slim-ablation-mfm"), ("MFM + GLCL", "slim-ablation-full")):
        for protocol in ("linear", "knn"):
            expected = {
                str(seed): json.loads(
                    (root / f"{row}-seed{seed}" / "results" / f"{protocol}-val.json").read_text()
                )["results"][0]["accuracy"]
                for seed in (0, 1)
            }
            assert rows[label][protocol]["by_seed"] == expected
    assert rows["CL"] == {"linear": None, "knn": None}
    assert (root / "table" / "slim-ablations.html").is_file()

    before = {folder: times(folder) for folder in folders}
    assert "0 of 4 runs are missing" in done([*given, "--plan"])
    done(given)
    assert {folder: times(folder) for folder in folders} == before

    # One evaluation that is lost is made again, and nothing else.
    (folders[0] / "results" / "knn-val.json").unlink()
    done(given)
    now = {folder: times(folder) for folder in folders}
    for name in ("results/knn-val.json", "results/knn-val.scores.parquet", "work.jsonl"):
        remade = now[folders[0]][name]
        assert remade > before[folders[0]][name]
        before[folders[0]][name] = remade
    assert now == before

    # The same folder cannot hold runs of anything else.
    for wrong, said in (
        (words(data, runs, "--val-subjects", "1", optim_lr=1), "another recipe(.*)optim.lr=1.0"),
        (words(data, runs), "another val_subjects"),
        (
            words(write_set(tmp_path / "other", train=15), runs, "--val-subjects", "1"),
            "another data digest",
        ),
    ):
        message = refusal(wrong).replace("\n", " ")
        assert re.search(said, message), message
    assert {folder: times(folder) for folder in folders} == now


@pytest.mark.slow
def test_a_killed_table_goes_on_and_repeats_nothing(data: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    given = words(data, runs, train_epochs=12, train_batch=12)
    root = runs / "slim-ablations" / "tiny"
    first, second = root / f"{ROWS[0]}-seed0", root / f"{ROWS[1]}-seed0"
    process = subprocess.Popen(
        [sys.executable, "-m", "skelpipe.cli", *given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    try:
        for _ in range(6000):
            if len(complete_checkpoints(second)) > 1:
                break
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = times(first)
    assert {"results/linear.json", "results/knn.json"} <= finished.keys()
    started = (second / "data.json").read_bytes()
    step = int(complete_checkpoints(second)[-1].name)
    assert 0 < step < 12
    kept = (second / "metrics.jsonl").read_text().splitlines()[:step]
    assert not (second / "results").exists()

    plan = done([*given, "--plan"])
    assert "3 of 4 runs are missing or incomplete" in plan
    output = done(given)
    assert f"run 2 of 4: {ROWS[1]}, seed 0" in output
    assert "run 1 of 4" not in output
    assert times(first) == finished
    assert (second / "data.json").read_bytes() == started
    lines = (second / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 12
    assert lines[:step] == kept  # with their timings: these steps were not done again
    assert (root / "table" / "slim-ablations.md").is_file()


@pytest.mark.slow
def test_a_run_in_another_process_is_left_to_it(data: Path, tmp_path: Path) -> None:
    given = words(data, tmp_path / "runs", "--only", ROWS[0])
    root = tmp_path / "runs" / "slim-ablations" / "tiny"
    folder = root / f"{ROWS[0]}-seed1"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    output = done(given)
    assert f"another process is at {ROWS[0]}, seed 1:" in " ".join(output.split())
    assert not any(folder.iterdir())
    assert "1 of 2 runs are missing" in done([*given, "--plan"])
    os.close(descriptor)
    done(given)
    assert (folder / "results" / "knn.json").is_file()


def test_a_row_that_fails_stops_no_other(data: Path, tmp_path: Path) -> None:
    given = words(data, tmp_path / "runs", "--only", ROWS[0])
    done(given)
    root = tmp_path / "runs" / "slim-ablations" / "tiny"
    broken, lost = root / f"{ROWS[0]}-seed0", root / f"{ROWS[0]}-seed1"
    for folder in (broken, lost):
        (folder / "results" / "knn.json").unlink()
    (weights,) = (broken / "checkpoints").glob("6/student.safetensors")
    weights.write_bytes(weights.read_bytes()[:50])
    result = skelpipe(given)
    assert "1 of 2 runs failed" in str(result.exception)
    assert "the checkpoint is damaged" in result.output
    assert (lost / "results" / "knn.json").is_file()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--only", "slim-ablation-ful"), "did you mean 'slim-ablation-full'"),
        (("--scale", "tinny"), "did you mean 'tiny'"),
        (("--seeds", "one"), "--seeds takes numbers"),
        (("--seeds", "-1"), "--seeds takes numbers"),
        (("--set", "mask.local_kind=none"), "would be the same run"),
        (("--set", "train.epoch=3"), "did you mean 'train.epochs'"),
    ],
)
def test_mistakes_are_named(data: Path, tmp_path: Path, extra: tuple[str, ...], said: str) -> None:
    assert said in refusal(words(data, tmp_path / "runs", *extra))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["slim-ablations", "pcm3-ablations"])
def test_an_unknown_table_is_named(data: Path, name: str) -> None:
    assert f"did you mean '{name}'" in refusal(["table", name[:-1]])
    assert name in skelpipe(["table", "--help"]).output


def test_the_papers_scale_on_a_cpu_needs_a_yes(data: Path, tmp_path: Path) -> None:
    given = ["table", "slim-ablations", "--data", str(data), "--runs", str(tmp_path / "runs")]
    changes = ["--set", "train.epochs=10000000", "--set", "train.batch=4", "--device", "cpu"]
    assert "days on this CPU" in refusal([*given, *changes])
    assert not (tmp_path / "runs").exists()
