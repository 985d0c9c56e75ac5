from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from builders import CPU, tiny_recipe, write_set

from skelpipe.checkpoint import Run
from skelpipe.errors import UserError
from skelpipe.protocols import sweep as module
from skelpipe.protocols.evaluate import evaluate
from skelpipe.protocols.question import Question
from skelpipe.protocols.settings import load_protocol
from skelpipe.protocols.sweep import read_axes, sweep, write_sweep
from skelpipe.report.tables import read_results, sweep_table
from skelpipe.train import start_run

QUICK = ("epochs=3", "drops=[1]", "train_view=centre")
HELD_OUT = (1, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=24)


def tried(data: Path, *axes: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"subject": "raw", "device": CPU, "val_subjects": HELD_OUT} | changes
    name = given.pop("name", "linear-cmd")
    settings = given.pop("settings", QUICK)
    return sweep(name, settings, read_axes(axes), tiny_recipe(), data, **given)


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["lr=0.01,0.1,batch=64,256"], {"lr": ["0.01", "0.1"], "batch": ["64", "256"]}),
        (["lr=0.01", "batch = 64 , 256"], {"lr": ["0.01"], "batch": ["64", "256"]}),
        (["drops=[50,70],[20]"], {"drops": ["[50,70]", "[20]"]}),
        (["random.ratio=[0.5, 1.0]"], {"random.ratio": ["[0.5, 1.0]"]}),
    ],
)
def test_a_word_with_an_equals_sign_opens_a_setting(
    texts: list[str], wanted: dict[str, list[str]]
) -> None:
    assert read_axes(texts) == wanted


@pytest.mark.parametrize("text", ["0.1", "lr", "lr=", "lr=0.1,", "lr=1,lr=2", "lr=1,1", "=1", ""])
def test_what_is_no_sweep_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"such as --sweep lr="):
        read_axes([text])


def test_each_combination_is_what_an_evaluation_finds(data: Path) -> None:
    record = tried(data, "lr=0.001,0.1,batch=4,8")
    settings = [row["settings"] for row in record["tried"]]
    assert settings == [
        {"lr": lr, "batch": batch} for lr in ("0.001", "0.1") for batch in ("4", "8")
    ]
    for row in record["tried"]:
        words = [f"{key}={value}" for key, value in row["settings"].items()]
        protocol = load_protocol("linear-cmd", (*QUICK, *words))
        alone = evaluate(
            protocol, tiny_recipe(), data, subject="raw", device=CPU, val_subjects=HELD_OUT
        )
        assert row["results"] == alone.record["results"]
        assert row["value"] == alone.record["headline"]["value"]
    values = [row["value"] for row in record["tried"]]
    assert len(set(values)) > 1
    assert record["chosen"] == settings[values.index(max(values))]
    assert record["samples"] == {"train": 12, "test": 12}
    assert json.loads(json.dumps(record)) == record


def test_features_of_a_fixed_crop_are_extracted_once(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = Question.centre_features

    def note(self: Question, *arguments: Any) -> Any:
        calls.append(len(arguments[0]))
        return plain(self, *arguments)

    monkeypatch.setattr(Question, "centre_features", note)
    tried(data, "lr=0.01,0.1,batch=4,8")
    assert len(calls) == 2
    calls.clear()
    tried(data, "k=1,3,5", name="knn", settings=())
    assert len(calls) == 2


def test_the_lowest_is_chosen_where_lower_is_better(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.solve

    def error(*arguments: Any) -> Any:
        found = plain(*arguments)
        head = {"name": "error", "value": 100 - found.rows[0]["accuracy"], "lower_is_better": True}
        return type(found)(found.rows, {"headline": head})

    monkeypatch.setattr(module, "solve", error)
    record = tried(data, "lr=0.001,0.1,batch=4,8")
    values = [row["value"] for row in record["tried"]]
    assert record["chosen"] == record["tried"][values.index(min(values))]["settings"]
    assert "error (the lowest is chosen)" in sweep_table(record).columns


def test_it_is_stored_beside_results_and_told_as_a_command(data: Path, tmp_path: Path) -> None:
    run: Run = start_run(tmp_path / "run", tiny_recipe(), data, seed=0)
    words = ["skelpipe", "evaluate", "--protocol", "linear-cmd", "--run", "a folder"]
    record = tried(data, "lr=0.001,0.1", command=words)
    path = write_sweep(run.folder, record)
    assert path == run.folder / "results" / "linear-cmd-raw-sweep.json"
    assert read_results(run.folder) == []
    told = shlex.split(record["command"])
    assert told[:6] == words
    chosen = f"lr={record['chosen']['lr']}"
    assert told[6:] == [word for change in (*QUICK, chosen) for word in ("--set", change)]
    table = sweep_table(record)
    assert [row[0] for row in table.rows].count("chosen") == 1
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_test_part_is_never_asked(data: Path) -> None:
    with pytest.raises(UserError, match="never on the test part"):
        tried(data, "lr=0.1", val_subjects=())


def test_settings_that_do_not_fit_are_told_before_any_is_tried(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "solve", pytest.fail)
    with pytest.raises(UserError, match="'batch'"):
        tried(data, "lr=0.1,bacth=4")
    with pytest.raises(UserError, match="lr"):
        tried(data, "lr=0.1,-1")
