from __future__ import annotations

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import write_set
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.shards.card import read_card
from skelpipe.tables import sets
from skelpipe.tables.plan import make_plan
from skelpipe.tables.published import load_scales, load_table
from skelpipe.train import start_run, train

SLIM = {
    "train.epochs": "2",
    "train.batch": "4",
    "train.checkpoint_every": "1",
    "encoder.layers": "1",
    "encoder.dim": "16",
    "encoder.heads": "2",
    "head.hidden": "24",
    "head.bottleneck": "8",
    "head.prototypes": "12",
}
PCM3 = {
    "train.epochs": "1",
    "train.batch": "4",
    "train.checkpoint_every": "1",
    "encoder.layers": "1",
    "encoder.hidden": "8",
    "decoder.hidden": "6",
    "prompts.width": "3",
    "loss.embedding": "5",
    "loss.queue": "12",
}


def settings(changes: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in changes.items()]


def words(name: str, home: Path, *extra: str, **more: str) -> list[str]:
    """The command on the prepared sets and runs of a home, where there is no raw data."""
    changes = (SLIM if name.startswith("slim") else PCM3) | {
        key.replace("_", ".", 1): value for key, value in more.items()
    }
    places = [word for key in ("data", "runs", "raw") for word in (f"--{key}", str(home / key))]
    return [
        *("table", name, "--scale", "tiny", *places),
        *(word for change in settings(changes) for word in ("--set", change)),
        *extra,
    ]


def skelpipe(given: list[str]) -> Any:
    (script,) = entry_points(group="console_scripts", name="skelpipe")
    app = sys.modules[script.load().__module__].app
    return CliRunner().invoke(app, given)


def done(given: list[str]) -> str:
    result = skelpipe(given)
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


def refusal(given: list[str]) -> str:
    result = skelpipe(given)
    assert isinstance(result.exception, UserError), result.output
    return " ".join(str(result.exception).split())


def times(folder: Path) -> dict[str, int]:
    """When each file of the runs below a folder was last written."""
    files = (path for path in folder.rglob("*") if path.is_file() and "table" not in path.parts)
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def report(home: Path, name: str) -> Any:
    return json.loads((home / "runs/tables/tiny/table" / f"{name}.json").read_text())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Has a prepared set where NTU-60's cross-subject one belongs, and nothing else."""
    write_set(tmp_path / "data" / "ntu60" / "ctrgcn" / "xsub")
    return tmp_path


def test_a_plan_computes_nothing(home: Path) -> None:
    before = times(home)
    output = done(words("slim-table-4", home, "--plan", "--seeds", "0,1"))
    assert "2 of 2 runs are missing" in output
    assert "ntu60 xview (ctrgcn) is left out: there are no raw data" in output
    assert "rose1.ntu.edu.sg" in output
    assert str(home / "raw") in output.replace(" ", "")
    assert times(home) == before
    assert not (home / "runs").exists()


def test_cells_are_filled_once_and_what_is_absent_is_said(home: Path) -> None:
    given = words("slim-table-4", home, "--seeds", "0,1")
    done(given)
    root = home / "runs/tables/tiny"
    folders = [root / f"slim-ntu60-xsub-seed{seed}" for seed in (0, 1)]
    assert sorted(path.name for path in root.iterdir()) == [*(f.name for f in folders), "table"]
    values = [
        json.loads((folder / "results/knn.json").read_text())["results"][0]["accuracy"]
        for folder in folders
    ]
    found = report(home, "slim-table-4")
    row = found["rows"][-1]
    assert row["values"] == {"ntu60_xsub": 72.5, "ntu60_xview": 89.9}
    assert set(row["ours"]) == {"ntu60_xsub"}
    ours = row["ours"]["ntu60_xsub"]
    mean = sum(values) / 2
    assert ours["by_seed"] == {"0": values[0], "1": values[1]}
    assert ours["mean"] == pytest.approx(mean)
    assert ours["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert ours["over_published"] == pytest.approx(mean - 72.5)
    assert [one["set"] for one in found["absent"]] == ["ntu60 xview (ctrgcn)"]
    (data,) = found["sets"]
    assert (data["missing_list"], data["train"]) == ("not applied", 0)
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    for run in found["runs"]:
        assert run["hours_pretraining"] > 0
        assert run["hardware"][0].endswith(f"threads: {torch.get_num_threads()}")
        assert re.match("commit [0-9a-f]{12}|version ", run["code"][0])
    assert any(text.startswith("S28") for text in found["readings"])
    assert not found["generated"]

    page = (root / "table/slim-table-4.html").read_text()
    assert not re.search(r"<(script|link|iframe)|(src|href)=\"?(?!data:)|@import|url\(", page)
    assert "Thoker" in page
    assert '<p class="generated">' not in page
    text = (root / "table/slim-table-4.md").read_text()
    assert "| SLiM | NTU-60 X-View (%) | 89.9 | not run |" in text
    assert found["scale"]["changes"] == settings(SLIM)  # else it would claim the scale's numbers
    assert "; changed: train.epochs=2, " in text

    # Again: nothing is repeated. Of what is lost, only that is made again.
    before = times(root)
    assert "0 of 2 runs are missing" in done(given)
    assert times(root) == before
    (folders[1] / "results/knn.json").unlink()
    done(given)
    now = times(root)
    remade = {name for name in now if now[name] != before[name]}
    assert remade == {
        f"{folders[1].name}/{name}"
        for name in ("results/knn.json", "results/knn.scores.parquet", "work.jsonl")
    }

    # Another table asks more of the same runs; runs of anything else are refused.
    done(words("slim-table-2", home, "--only", "ntu60_xsub"))
    later = times(root)
    assert {name: later[name] for name in now} | {} == now | {
        f"{folders[0].name}/work.jsonl": later[f"{folders[0].name}/work.jsonl"]
    }
    assert (folders[0] / "results/linear.json").is_file()
    message = refusal(words("slim-table-4", home, optim_lr="1"))
    assert "another recipe" in message
    assert "optim.lr=1.0" in message
    assert times(root) == later


def test_an_interrupted_run_goes_on(home: Path) -> None:
    table = load_table("slim-table-4")
    root = home / "runs/tables/tiny"
    plan = make_plan(
        table, load_scales(table), "tiny", seeds=(0,), root=root, shards=home / "data",
        changes=settings(SLIM),
    )  # fmt: skip
    job = plan.jobs[root / "slim-ntu60-xsub-seed0"]
    run = start_run(job.folder, job.recipe, job.data, seed=0)
    train(run, job.data, device=torch.device("cpu"), stop_after=2)
    lines = (job.folder / "metrics.jsonl").read_text().splitlines()
    started = (job.folder / "data.json").read_bytes()

    given = words("slim-table-4", home)
    assert "step 2 of 6" in done([*given, "--plan"])
    done(given)
    now = (job.folder / "metrics.jsonl").read_text().splitlines()
    assert len(now) == 6
    assert now[:2] == lines  # with their timings: these steps were not done again
    assert (job.folder / "data.json").read_bytes() == started
    assert set(report(home, "slim-table-4")["rows"][-1]["ours"]) == {"ntu60_xsub"}


@pytest.mark.slow
def test_three_streams_are_fused(tmp_path: Path) -> None:
    write_set(tmp_path / "data" / "ntu60" / "agcn" / "xsub", pipeline="agcn")
    given = words("pcm3-table-1", tmp_path, "--only", "ntu60_xsub")
    done(given)
    root = tmp_path / "runs/tables/tiny"
    ours = {
        row["method"]: row["ours"]["ntu60_xsub"]["mean"]
        for row in report(tmp_path, "pcm3-table-1")["rows"]
        if row["ours"]
    }
    fused = json.loads((root / "pcm3-ntu60-xsub-seed0/results/fused-linear-pcm3.json").read_text())
    assert [stream["run"] for stream in fused["streams"]] == [
        f"pcm3{stream}-ntu60-xsub-seed0" for stream in ("", "-bone", "-motion")
    ]
    assert ours == {
        "PCM3": fused["streams"][0]["accuracy"],
        "3s-PCM3": fused["results"][0]["accuracy"],
    }
    before = times(root)
    done(given)
    assert times(root) == before


def test_generated_data_goes_the_whole_way_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sets._SMALL, "ntu60", {"classes": 3, "subjects": 3, "cameras": 2, "replications": 1}
    )
    home = tmp_path / "rehearsal"
    given = ["table", "slim-table-4", "--scale", "tiny", "--synth", str(home)]
    given += [word for change in settings(SLIM) for word in ("--set", change)]
    assert "2 of 2 runs are missing" in done([*given, "--plan"])
    assert not home.exists()
    output = done(given)
    assert "The data is generated" in output
    assert [path.name for path in (home / "raw").iterdir()] == ["ntu60.zip"]
    cards = [read_card(home / "shards/ntu60/ctrgcn" / split) for split in ("xsub", "xview")]
    assert cards[0].source == cards[1].source
    found = report(home, "slim-table-4")
    assert found["generated"]
    assert set(found["rows"][-1]["ours"]) == {"ntu60_xsub", "ntu60_xview"}
    page = (home / "runs/tables/tiny/table/slim-table-4.html").read_text()
    assert '<p class="generated">Generated data.' in page
    assert not (Path("data") / "raw" / "ntu60.zip").exists()


def test_raw_data_that_cannot_be_prepared_costs_its_columns_alone(home: Path) -> None:
    raw = home / "raw"
    raw.mkdir()
    for number in range(20):  # too many that are damaged
        (raw / f"S001C00{1 + number % 2}P001R001A0{10 + number}.skeleton").write_bytes(b"1\n")
    result = skelpipe(words("slim-table-4", home))
    assert isinstance(result.exception, UserError)
    assert "1 of the sets could not be prepared" in str(result.exception)
    assert "too many recordings cannot be used" in result.output
    assert set(report(home, "slim-table-4")["rows"][-1]["ours"]) == {"ntu60_xsub"}


def test_a_table_of_ablations_is_run_by_them(home: Path) -> None:
    data = home / "data" / "ntu60" / "ctrgcn" / "xsub"
    given = ["table", "slim-table-5", "--scale", "tiny", "--data", str(data), "--plan"]
    output = done([*given, "--runs", str(home / "runs")])
    assert "5 of 5 runs are missing" in output
    assert "slim-ablation-full-seed0" in output
    assert "do not" not in output
    assert "--data DIR instead" in refusal([*given, "--synth", str(home / "synth")])


@pytest.mark.parametrize(
    ("name", "extra", "said"),
    [
        ("slim-table-9", (), "did you mean 'slim-table-"),
        ("slim-table-4", ("--scale", "tinny"), "did you mean 'tiny'"),
        ("slim-table-4", ("--only", "ntu60_xsu"), "did you mean 'ntu60_xsub'"),
        ("slim-table-4", ("--val-subjects", "1"), "queries the test part"),
        ("slim-table-4", ("--synth", "there"), "leave out --raw, --data and --runs"),
        ("slim-table-4", ("--only", "ntu60_xview"), "there is no data for any column"),
        ("slim-table-4", ("--set", "train.epochs=99999999"), "days on this CPU"),
    ],
)
def test_mistakes_are_named(home: Path, name: str, extra: tuple[str, ...], said: str) -> None:
    assert said in refusal(words(name, home, *extra))
    assert not (home / "runs").exists()
