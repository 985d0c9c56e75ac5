from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import CPU, tiny_recipe, write_set
from released_files import skelpipe

from skelpipe.checkpoint import Run, read_run, write_json
from skelpipe.errors import UserError
from skelpipe.protocols.settings import load_protocol
from skelpipe.report.comparison import compare, notes, write_comparison
from skelpipe.train import start_run, train

Record = dict[str, Any]


def run_of(folder: Path, **records: Record) -> Run:
    """A run folder that holds a recipe and these records."""
    recipe = tiny_recipe(f"name={folder.name}")
    write_json(folder / "recipe.json", recipe.model_dump())
    write_json(folder / "data.json", {"seed": 0})
    for name, record in records.items():
        write_json(folder / "results" / f"{name}.json", record)
    return read_run(folder)


def record(
    *accuracies: float, subject: str = "run", protocol: str = "knn", changes: tuple[str, ...] = (),
    **others: Any,
) -> Record:  # fmt: skip
    return {
        "protocol": load_protocol(protocol, changes).model_dump(mode="json"),
        "subject": subject,
        "features": "patch",
        "dataset": "toy",
        "split": "half",
        "part": "test",
        "data_digest": "d1",
        "warnings": [],
        "readings": [],
        "results": [
            {"network": name, "accuracy": accuracy}
            for name, accuracy in zip(("student", "teacher"), accuracies, strict=False)
        ],
        **others,
    }


def rows(group: Record) -> list[tuple[Any, ...]]:
    return [
        (row["run"], row["network"], row["value"], row["difference"], row["best"])
        for row in group["rows"]
    ]


def test_differences_are_to_the_first_run(tmp_path: Path) -> None:
    floor = record(40.0, subject="random-init")
    raw = record(55.0, subject="raw", features="raw coordinates")
    one = run_of(tmp_path / "one", knn=record(50.0, 51.0), floor=floor, raw=raw)
    two = run_of(tmp_path / "two", knn=record(52.5, 49.0))
    (group,) = compare([one, two])["groups"]
    assert rows(group) == [
        ("one", "student", 50.0, 0.0, False),
        ("one", "teacher", 51.0, 1.0, False),
        ("one", "student", 40.0, -10.0, False),
        ("one", "student", 55.0, 5.0, True),  # nothing learned is the best of all
        ("two", "student", 52.5, 2.5, False),
        ("two", "teacher", 49.0, -1.0, False),
    ]
    assert [row["floor"] for row in group["rows"]] == [False, False, True, True, False, False]
    (group,) = compare([two, one])["groups"]
    assert group["rows"][0]["run"] == "two"
    assert group["rows"][2]["difference"] == -2.5


def test_lower_may_be_better(tmp_path: Path) -> None:
    def motion(value: float) -> Record:
        told = {
            "headline": {"name": "mpjpe", "value": value, "lower_is_better": True},
            "results": [{"network": "student", "mpjpe": value}],
        }
        return record(protocol="motion", **told)

    one, two = (run_of(tmp_path / name, motion=motion(value))
                for name, value in (("one", 80.0), ("two", 75.5)))  # fmt: skip
    (group,) = compare([one, two])["groups"]
    assert group["value"] == "MPJPE, mm"
    assert rows(group) == [
        ("one", "student", 80.0, 0.0, False),
        ("two", "student", 75.5, -4.5, True),
    ]


def test_headlines_hide_no_network_and_part_no_fusion(tmp_path: Path) -> None:
    told = {"name": "accuracy", "value": 50.0, "lower_is_better": False}
    fused = record(53.0, subject="fused")  # a fusion tells no headline
    one = run_of(tmp_path / "one", knn=record(50.0, 51.0, headline=told), fused=fused)
    write_json(one.folder / "results" / "knn-sweep.json", {"tried": []})  # no result
    two = run_of(tmp_path / "two", knn=record(52.0, 49.0))
    (group,) = compare([one, two])["groups"]
    assert group["value"] == "accuracy, %"
    assert [row[:4] for row in rows(group)] == [
        ("one", "student", 50.0, 0.0),
        ("one", "teacher", 51.0, 1.0),
        ("one", "student", 53.0, 3.0),
        ("two", "student", 52.0, 2.0),
        ("two", "teacher", 49.0, -1.0),
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (record(60.0, changes=("k=5",)), "k 5, not 1"),
        (record(60.0, data_digest="d2"), "the set was prepared otherwise"),
        (record(60.0, features="class"), "features class token, not patch mean"),
    ],
)
def test_what_is_not_alike_has_no_difference_and_is_never_best(
    tmp_path: Path, other: Record, said: str
) -> None:
    one = run_of(tmp_path / "one", knn=record(50.0, 49.0))
    two = run_of(tmp_path / "two", knn=other)
    (group,) = compare([one, two])["groups"]
    assert rows(group)[-1] == ("two", "student", 60.0, None, False)
    assert rows(group)[0][-1]  # best of those that are alike
    assert f"not alike: two: {said}" in notes(group)


def test_methods_are_alike_by_their_own_features(tmp_path: Path) -> None:
    one = run_of(tmp_path / "one", knn=record(50.0))
    two = run_of(tmp_path / "two", knn=record(60.0, features="last"))
    (group,) = compare([one, two])["groups"]
    assert rows(group)[-1] == ("two", "student", 60.0, 10.0, True)


@pytest.mark.parametrize("key", ["dataset", "split", "part"])
def test_other_data_is_another_table(tmp_path: Path, key: str) -> None:
    one = run_of(tmp_path / "one", knn=record(50.0, changes=("k=3",)))
    two = run_of(tmp_path / "two", knn=record(60.0, **{key: "validation subjects [8, 9]"}))
    first, second = compare([one, two])["groups"]
    assert rows(first) == [("one", "student", 50.0, 0.0, False)]
    assert first["missing"].keys() == {"two"}
    assert "--set k=3" in first["missing"]["two"]
    assert second["missing"].keys() == {"one"}
    assert ("--val-subjects 8,9" in second["missing"]["one"]) == (key == "part")


def test_mistakes_are_named(tmp_path: Path) -> None:
    one, two = run_of(tmp_path / "one"), run_of(tmp_path / "two")
    with pytest.raises(UserError, match="two runs at least"):
        compare([one])
    with pytest.raises(UserError, match="twice"):
        compare([one, two, read_run(tmp_path / "two" / ".." / "one")])
    with pytest.raises(UserError, match=r"none of these(.|\n)*skelpipe evaluate --run"):
        compare([one, two])
    for wrong, place in (
        ({"protocol": {}}, "subject"),
        (record(1.0) | {"results": [{"network": "x"}]}, "accuracy"),
    ):
        write_json(one.folder / "results" / "odd.json", wrong)
        with pytest.raises(UserError, match=f"no record(.|\n)*odd.json(.|\n)*place: {place}"):
            compare([one, two])


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / place / "joint", knn=record(1.0)) for place in ("a", "b")]
    (group,) = compare(runs)["groups"]
    assert [row["run"] for row in group["rows"]] == [str(run.folder) for run in runs]


def test_files_say_what_the_screen_does(tmp_path: Path) -> None:
    one = run_of(tmp_path / "a|b<i>", knn=record(50.0))
    two = run_of(tmp_path / "two", knn=record(52.5), linear=record(60.0, protocol="linear"))
    found = compare([one, two])
    write_comparison(tmp_path / "c.json", found)
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads(json.dumps(found))
    write_comparison(tmp_path / "new" / "c.md", found)
    text = (tmp_path / "new" / "c.md").read_text()
    assert "| a\\|b<i> | student | patch mean | 50.0 | +0.0 |" in text
    assert "| two | student | patch mean | 52.5 best | +2.5 |" in text
    write_comparison(tmp_path / "c.html", found)
    page = (tmp_path / "c.html").read_text()
    assert "<td>a|b&lt;i&gt;</td>" in page
    assert "52.5 best" in page
    with pytest.raises(UserError, match="not written so"):
        write_comparison(tmp_path / "c.pdf", found)


def test_runs_are_evaluated_by_their_methods_probe_and_compared(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", train=6, test=4)
    folders = []
    for seed in (0, 1):
        run = start_run(tmp_path / f"seed-{seed}", tiny_recipe(), data, seed=seed)
        train(run, data, device=CPU, stop_after=1)
        for floor in ((), ("--raw-features",)):
            result = skelpipe("evaluate", "--run", run.folder, "--set", "epochs=2", *floor)
            assert result.exit_code == 0, result.output
            assert "protocol linear: what slim is published with" in result.output
        folders.append(run.folder)
    result = skelpipe("compare", *folders, "--out", tmp_path / "both.json")
    assert result.exit_code == 0, result.output
    (group,) = json.loads((tmp_path / "both.json").read_text())["groups"]
    assert [(row["run"], row["network"]) for row in group["rows"]] == [
        (f"seed-{seed}", network)
        for seed in (0, 1)
        for network in ("student", "teacher", "raw skeleton")
    ]
    for seed in (0, 1):
        stored = json.loads((folders[seed] / "results" / "linear.json").read_text())
        accuracy = stored["results"][0]["accuracy"]
        assert group["rows"][3 * seed]["value"] == accuracy
        assert f"{accuracy:.1f}" in result.output
    result = skelpipe("compare", *folders, "--out", tmp_path / "both.pdf")
    assert "not written so" in str(result.exception)
