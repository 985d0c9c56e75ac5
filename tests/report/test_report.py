from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CPU, KINECT, batch_of, recording, tiny_recipe, write_set

from skelpipe.checkpoint import Run
from skelpipe.methods.slim import SLiM
from skelpipe.protocols.evaluate import evaluate, write_result
from skelpipe.protocols.settings import PROTOCOLS, load_protocol
from skelpipe.report.page import _SHORT, write_page
from skelpipe.report.plots import (
    confusion_figure,
    data_uri,
    feature_map_figure,
    horizon_figure,
    loss_figure,
    views_figure,
)
from skelpipe.report.tables import comparable, gains, read_results, result_tables
from skelpipe.train import start_run, train

EVIL = "<script>alert('&\"')</script>"


def record(subject: str = "run", accuracy: float = 70.0, **changes: Any) -> dict[str, Any]:
    names = {"run": "student", "random-init": "untrained encoder", "raw": "raw skeleton"}
    return {
        "protocol": {"kind": "protocol", "name": "knn", "title": "Retrieval", "k": 1},
        "subject": subject,
        "features": "raw coordinates" if subject == "raw" else "patch",
        "dataset": "toy",
        "split": "half",
        "part": "test",
        "samples": {"train": 12, "test": 6},
        "data_digest": "d",
        "warnings": ["official list not applied"],
        "readings": ["S6 contiguous = tree"],
        "results": [{"network": names[subject], "accuracy": accuracy}],
        "classes": ["rest", "shift"],
        "confusion": [[3, 0], [1, 2]],
        **changes,
    }


def test_gains_are_the_students_points_over_each_floor() -> None:
    group = [record("raw", 62.0), record("random-init", 50.5), record()]
    found = {gain.floor: gain.points for gain in gains(comparable(group)[0])}
    assert found == {"untrained encoder": 19.5, "raw skeleton": 8.0}


def test_a_table_holds_the_run_then_the_floors_and_what_limits_it() -> None:
    (table,) = result_tables([record("raw", 62.0), record()])
    assert [row[0] for row in table.rows] == ["student", "raw skeleton (floor)"]
    assert table.columns == ("network", "features", "accuracy, %", "over raw skeleton, points")
    assert table.rows[0][2:] == ("70.0", "+8.0")
    assert table.rows[1][2:] == ("62.0", "")
    assert table.numbers == "k 1"
    assert table.warnings == ("official list not applied",)
    assert table.readings == ("S6 contiguous = tree",)


def test_the_best_epoch_is_never_what_a_gain_is_taken_from() -> None:
    best = {"accuracy": 99.0, "epoch": 3}
    row = {"network": "student", "accuracy": 70.0, "best_epoch_peer_convention": best}
    trained = record(results=[row])
    (table,) = result_tables([trained, record("raw", 62.0)])
    assert table.columns[2] == "last epoch, %"
    assert table.columns[-1] == "best epoch, % (peer convention)"
    assert table.rows[0][2:] == ("70.0", "+8.0", "99.0 (epoch 3)")
    assert gains([trained, record("raw", 62.0)])[0].points == 8.0


def test_a_table_shows_interval_groups_and_deviation_where_records_have_them() -> None:
    row = {"network": "student", "accuracy": 70.04, "std": 1.26, "interval": [68.0, 72.125],
           "one_person": 71.0, "mutual": 60.5}  # fmt: skip
    (table,) = result_tables([record(results=[row]), record("raw", 62.0)])
    assert table.columns[2:] == ("accuracy, %", "95 % interval", "over raw skeleton, points",
                                 "one person, %", "mutual, %")  # fmt: skip
    assert table.rows[0][2:] == ("70.0 ± 1.3", "68.0–72.1", "+8.0", "71.0", "60.5")
    assert table.rows[1][2:] == ("62.0", "", "", "", "")
    del row["std"]
    (alone,) = result_tables([record(results=[row | {"mutual": None}])])
    assert alone.columns[2:] == ("accuracy, %", "95 % interval")
    assert alone.rows[0][2:] == ("70.0", "68.0–72.1")


def test_pcm3s_probe_is_told_from_mamps() -> None:
    def linear(name: str) -> dict[str, Any]:
        return record(protocol=load_protocol(name).model_dump(mode="json"), features="last")

    mamp, pcm3 = result_tables([linear("linear"), linear("linear-pcm3")])
    assert mamp.title != pcm3.title
    assert "norm True" in mamp.numbers
    assert "schedule cosine, momentum 0.9" in mamp.numbers
    assert "norm False" in pcm3.numbers
    assert "schedule steps, drops 20/50/80, momentum 0.9" in pcm3.numbers
    assert pcm3.rows[0][1] == "last frame"
    assert set(_SHORT) == set(PROTOCOLS)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": {"kind": "protocol", "name": "knn", "title": "Retrieval", "k": 5}},
        {"data_digest": "other"},
        {"part": "validation subjects [8]"},
    ],
)
def test_a_floor_of_other_settings_data_or_part_is_not_set_beside_the_run(
    change: dict[str, Any],
) -> None:
    groups = comparable([record(), record("raw", 10.0, **change)])
    assert [len(group) for group in groups] == [1, 1]
    assert not any(gains(group) for group in groups)


def test_a_run_without_results_has_none(tmp_path: Path) -> None:
    assert read_results(tmp_path) == []


def test_masked_joints_are_the_hollow_ones() -> None:
    recipe = tiny_recipe()
    method = SLiM(recipe, KINECT)
    bodies, globals_, locals_ = method.views(batch_of([recording(0, 40), recording(1, 50)]))
    figure = views_figure(["a", "b"], bodies.sample_B.tolist(), [globals_, *locals_], KINECT)
    joints = [
        line
        for panel in figure.axes
        for line in panel.lines
        if line.get_marker() not in ("None", "")
    ]
    masks = torch.cat([group.mask_BSJ.flatten() for group in (globals_, *locals_)])
    hollow = sum(line.get_markerfacecolor() == "white" for line in joints)
    assert (len(joints), hollow) == (masks.numel(), int(masks.sum()))
    assert [panel.get_title("left") for panel in figure.axes] == [
        "a, anchor 1",
        "a, anchor 2",
        "b, anchor 1",
        "b, anchor 2",
    ]


def test_the_confusion_matrix_leaves_out_classes_that_do_not_occur() -> None:
    counts = [[3, 0, 0], [0, 0, 0], [1, 0, 2]]
    panel = confusion_figure(counts, ["rest", "unseen", "shift"]).axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["rest", "shift"]
    assert sorted(text.get_text() for text in panel.texts) == ["1", "2", "3"]


def test_the_feature_map_keeps_what_varies_most() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], 20)
    features = rng.normal(0, 0.01, (40, 8)).astype(np.float32)
    features[:, 0] += 1
    features[:, 5] += labels  # the classes lie apart in this direction alone
    panel = feature_map_figure(features, labels, ["rest", "unseen", "shift"]).axes[0]
    left, right = (np.asarray(points.get_offsets())[:, 0] for points in panel.collections)
    assert max(left.min(), right.min()) > min(left.max(), right.max())


def test_a_figure_gives_the_same_bytes_again() -> None:
    metrics = [metric(step) for step in range(1, 6)]
    assert data_uri(loss_figure(metrics, 2.5)) == data_uri(loss_figure(metrics, 2.5))


def test_a_page_loads_nothing_and_escapes_everything(tmp_path: Path) -> None:
    run = fabricated_run(tmp_path)
    evil = record(
        results=[{"network": EVIL, "accuracy": 70.0}],
        warnings=[EVIL],
        classes=[EVIL, "shift"],
        part=EVIL,
    )
    (run.folder / "results").mkdir()
    (run.folder / "results" / "knn.json").write_text(json.dumps(evil))
    page = tmp_path / "report.html"
    write_page(run, page, title=EVIL, about=[EVIL])
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert_self_contained(text)


def test_a_page_draws_how_far_off_predictions_are(tmp_path: Path) -> None:
    def predicted(network: str, near: float, far: float) -> dict[str, Any]:
        both = {"33": near, "67": far}
        return {"network": network, "mpjpe": (near + far) / 2, "by_horizon": both}

    run = fabricated_run(tmp_path)
    (run.folder / "results").mkdir()
    settings = load_protocol("motion").model_dump(mode="json")
    for name, subject, row in (
        ("motion", "run", predicted("student", 10.0, 16.0)),
        ("motion-random-init", "random-init", predicted("untrained encoder", 12.0, 18.5)),
    ):
        told = record(
            subject,
            protocol=settings,
            results=[row],
            headline={"name": "mpjpe", "value": row["mpjpe"], "lower_is_better": True},
            baselines=[predicted("zero velocity", 12.0, 20.0)],
            windows={part: {"samples": 3, "left_out": ["short"]} for part in ("train", "test")},
        )
        (run.folder / "results" / f"{name}.json").write_text(json.dumps(told))
    page = tmp_path / "report.html"
    write_page(run, page, title="A run")
    text = page.read_text()
    assert "error by horizon" in text
    assert "<td>student</td>" in text
    for cell in ("13.0", "-3.0", "-2.2", "15.2", "16.0"):
        assert f">{cell}<" in text, cell
    assert "2 have none" in text
    assert_self_contained(text)


def test_a_curve_has_an_error_for_each_horizon() -> None:
    panel = horizon_figure(
        {"student": {"33": 1.5, "67": 2.5}, "rule": {"33": 2.0, "67": 4.0}}
    ).axes[0]
    assert [list(line.get_xdata()) for line in panel.lines] == [[33, 67]] * 2
    assert [list(line.get_ydata()) for line in panel.lines] == [[1.5, 2.5], [2.0, 4.0]]


def test_a_page_says_that_nothing_was_evaluated(tmp_path: Path) -> None:
    run = fabricated_run(tmp_path)
    page = tmp_path / "report.html"
    write_page(run, page, title="A run")
    text = page.read_text()
    assert "has not been evaluated" in text
    assert "S6 contiguous" in text  # the readings stand without results, too
    assert text.count("<img") == 1  # the curves


def test_a_page_of_a_real_run_holds_every_picture(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set")
    recipe = tiny_recipe("train.epochs=1")
    run = start_run(tmp_path / "run", recipe, data, seed=0)
    train(run, data, device=CPU)
    for subject in ("run", "random-init", "raw"):
        found = evaluate(load_protocol("knn"), recipe, data, subject=subject, device=CPU, run=run)
        write_result(run.folder, found)
    page = tmp_path / "report.html"
    write_page(run, page, title="A run", about=["Generated."], data=data)
    text = page.read_text()
    assert_self_contained(text)
    assert re.findall(r'<img alt="([^"]*)"', text) == [
        "loss curves",
        "views of two samples with their masks",
        "map of the test features",
        "confusion matrix",
    ]
    for what in (
        "over untrained encoder",
        "over raw skeleton",
        "data digest",
        "torch",
        "Generated.",
    ):
        assert what in text


def assert_self_contained(text: str) -> None:
    assert all(uri.startswith("data:") for uri in re.findall(r'src="([^"]*)"', text))
    assert not re.search(r"<(script|link|iframe|object|base)\b|href=|@import|url\(", text)


def metric(step: int) -> dict[str, float]:
    names = ("loss", "mfm", "glcl", "koleo", "class_entropy", "class_spread", "patch_entropy")
    return {
        "step": step,
        "epoch": step / 3,
        "lr": 1e-3,
        "samples_per_s": 60.0,
        **{name: math.exp(-step / 9) for name in names},
    }


def fabricated_run(tmp_path: Path) -> Run:
    run = start_run(tmp_path / "run", tiny_recipe(), write_set(tmp_path / "set"), seed=0)
    lines = [json.dumps(metric(step)) + "\n" for step in range(1, 7)]
    (run.folder / "metrics.jsonl").write_text("".join(lines))
    return run
