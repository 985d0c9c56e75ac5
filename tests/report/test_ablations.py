from __future__ import annotations

import json
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from skelpipe.config import load_recipe
from skelpipe.errors import UserError
from skelpipe.protocols.features import default_kind
from skelpipe.protocols.settings import load_protocol
from skelpipe.report.ablation_page import as_markdown, grids, write_report
from skelpipe.report.ablations import (
    Ablations,
    Entry,
    Score,
    ablation_report,
    compare,
    count_orderings,
    difference_variance,
    load_ablations,
    read_entries,
    row_recipes,
    run_folder,
)

SLIM = load_ablations("slim-ablations")
PCM3 = load_ablations("pcm3-ablations")
CL_16 = [{"frames": 16, "ratio": (0.15, 0.4)}] * 3
CL_8 = [{"frames": 8, "ratio": (0.15, 0.4)}] * 2
NO_MFM = {("loss", "mask_weight"): 0.0, ("mask", "global_kind"): "none"}
# What each row changes of the full one, in words of the recipe.
ROWS: dict[str, dict[tuple[str, str], Any]] = {
    "cl": {("views", "local"): CL_16, **NO_MFM},
    "glcl": NO_MFM,
    "mfm": {
        ("loss", "contrast_weight"): 0.0,
        ("loss", "koleo_weight"): 0.0,
        ("views", "crops"): 0,
    },
    "mfm-cl": {("views", "local"): CL_16},
    "full": {},
    "global-limited": {("mask", "global_kind"): "motion"},
    "local-none": {("mask", "local_kind"): "none"},
    "local-limited": {("mask", "local_kind"): "motion"},
    "rotation-none": {("augment", "rotation"): "none"},
    "rotation-limited": {("augment", "rotation"): "axis"},
    "mirroring-none": {("augment", "mirroring"): "none"},
    "mirroring-limited": {("augment", "mirroring"): "index"},
    "scaling-none": {("augment", "scaling"): "none"},
    "scaling-limited": {("augment", "scaling"): "axes"},
}


def differing(recipe: Any, other: Any) -> dict[tuple[str, str], Any]:
    mine, theirs = recipe.model_dump(), other.model_dump()
    assert mine.keys() == theirs.keys()
    return {
        (section, key): list(value) if isinstance(value, tuple) else value
        for section, settings in mine.items()
        if isinstance(settings, dict)
        for key, value in settings.items()
        if value != theirs[section][key]
    }


NO_PROMPTS = {("prompts", "domain"): "none", ("prompts", "task"): False}
NO_KL = {("loss", "kl_weight"): 0.0}
PCM3_ROWS: dict[str, dict[tuple[str, str], Any]] = {
    "mp": {("loss", "positives"): [], **NO_KL, **NO_PROMPTS},
    "cl": {
        ("loss", "positives"): ["intra", "inter"],
        ("loss", "mask_weight"): 0.0,
        **NO_KL,
        **NO_PROMPTS,
    },
    "multi-task": {("loss", "positives"): ["intra", "inter"], **NO_KL, **NO_PROMPTS},
    "full": {},
    "intra": {("loss", "positives"): ["intra"], **NO_KL, **NO_PROMPTS},
    "kl": {("loss", "positives"): ["intra", "inter"], **NO_PROMPTS},
    "predict-kl": {("loss", "positives"): ["intra", "inter", "predict"], **NO_PROMPTS},
    "mask-kl": {("loss", "positives"): ["intra", "inter", "mask"], **NO_PROMPTS},
    "prompts-none": NO_PROMPTS,
    "prompts-domain": {("prompts", "task"): False},
    "topology-20": {("mask", "ratio"): 0.2},
    "topology-40": {("mask", "ratio"): 0.4},
    "topology-80": {("mask", "ratio"): 0.8},
    "random-20": {("mask", "kind"): "random", ("mask", "ratio"): 0.2},
    "random-40": {("mask", "kind"): "random", ("mask", "ratio"): 0.4},
    "random-60": {("mask", "kind"): "random"},
    "random-80": {("mask", "kind"): "random", ("mask", "ratio"): 0.8},
}


@pytest.mark.parametrize("scale", SLIM.scales)
def test_a_row_differs_from_the_full_one_in_what_it_says_alone(scale: str) -> None:
    recipes = row_recipes(SLIM, scale)
    assert [name.removeprefix("slim-ablation-") for name in recipes] == list(ROWS)
    full = recipes["slim-ablation-full"]
    for row, changes in ROWS.items():
        expected = dict(changes)
        if scale == "tiny" and ("views", "local") in changes:
            expected["views", "local"] = CL_8
        recipe = recipes[f"slim-ablation-{row}"]
        assert recipe.name == f"slim-ablation-{row}"
        assert differing(recipe, full) == expected, row


@pytest.mark.parametrize("scale", PCM3.scales)
def test_a_row_of_pcm3_differs_from_the_full_one_in_what_it_says_alone(scale: str) -> None:
    recipes = row_recipes(PCM3, scale)
    assert [name.removeprefix("pcm3-ablation-") for name in recipes] == list(PCM3_ROWS)
    full = recipes["pcm3-ablation-full"]
    for row, changes in PCM3_ROWS.items():
        recipe = recipes[f"pcm3-ablation-{row}"]
        assert recipe.name == f"pcm3-ablation-{row}"
        assert differing(recipe, full) == changes, row


def test_the_full_row_of_pcm3_is_its_recipe() -> None:
    paper = row_recipes(PCM3, "paper")["pcm3-ablation-full"]
    assert differing(paper, load_recipe("pcm3")) == {}
    assert paper == load_recipe("pcm3-ablation-full")
    tiny = row_recipes(PCM3, "tiny")["pcm3-ablation-full"]
    tiny_only = differing(tiny, load_recipe("pcm3-tiny")).keys()
    assert tiny_only == {("train", "epochs"), ("mask", "ratio")}


@pytest.mark.parametrize("ablations", [SLIM, PCM3])
def test_sections_named_the_same_are_those_that_no_rows_differ_in(ablations: Ablations) -> None:
    for scale in ablations.scales:
        rows = [
            recipe.model_dump(exclude={"name"}) for recipe in row_recipes(ablations, scale).values()
        ]
        assert all(row[key] == rows[0][key] for row in rows for key in ablations.same)
        left = {"kind", "title", *ablations.same}
        assert all(any(row[key] != rows[0][key] for row in rows) for key in rows[0].keys() - left)


def test_the_full_row_is_the_recipe_for_100_epochs() -> None:
    paper = row_recipes(SLIM, "paper")["slim-ablation-full"]
    assert differing(paper, load_recipe("slim")) == {("train", "epochs"): 100}
    assert paper == load_recipe("slim-ablation-full")
    tiny = row_recipes(SLIM, "tiny")["slim-ablation-full"]
    changed = differing(tiny, load_recipe("slim-tiny"))
    assert changed.keys() == {("train", "epochs"), ("mask", "local_probability")}
    assert changed["mask", "local_probability"] == 0.5


@pytest.mark.parametrize("scale", SLIM.scales)
def test_contrast_of_one_clip_length_has_as_many_views(scale: str) -> None:
    recipes = row_recipes(SLIM, scale)
    full = recipes["slim-ablation-full"].views
    for row in ("cl", "mfm-cl"):
        views = recipes[f"slim-ablation-{row}"].views
        assert (len(views.local), views.crops) == (len(full.local), full.crops)
        (size,) = set(views.local)
        assert size in full.local
        assert size.frames * 4 == views.frames  # 16 of 64


def numbers_by_run(ablations: Ablations) -> dict[str, dict[str, set[float]]]:
    """What the paper says of each run, by column."""
    found: dict[str, dict[str, set[float]]] = {}
    for table in ablations.tables:
        for row in table.rows:
            of_run = found.setdefault(row.recipe.split("-ablation-")[1], {})
            for column, number in row.published.items():
                of_run.setdefault(column, set()).add(number)
    return found


def test_published_numbers_of_one_run_are_the_same_everywhere() -> None:
    found = numbers_by_run(SLIM)
    assert all(len(numbers) == 1 for columns in found.values() for numbers in columns.values())
    assert len(found) == 14
    assert [len(table.rows) for table in SLIM.tables] == [5, 5, 7]
    # The differences that Sec. 4.4 names.
    (full,) = found["full"]["xsub"]
    for row, points in {
        "global-limited": 3.5,
        "local-limited": 2.0,
        "rotation-limited": 2.9,
        "mirroring-limited": 1.8,
        "scaling-limited": 1.3,
    }.items():
        (xsub,) = found[row]["xsub"]
        assert full - xsub == pytest.approx(points)


def test_published_numbers_of_pcm3() -> None:
    found = numbers_by_run(PCM3)
    twice = {
        (row, column): numbers
        for row, columns in found.items()
        for column, numbers in columns.items()
        if len(numbers) > 1
    }
    assert twice == {("full", "recognition"): {90.4, 90.5}}  # P5: Table 10 and the others
    assert [len(table.rows) for table in PCM3.tables] == [4, 6, 3, 8]
    # Tables 1, 3, 4, 5 and 6 have the full method's numbers too, 5 both of detection (P9).
    assert found["full"] == {
        "recognition": {90.4, 90.5},
        "retrieval": {88.8},
        "occlusion": {87.0},
        "detection_a": {61.8},
        "detection_v": {61.3},
        "motion": {101.7},
    }
    # The differences that Sec. 4.4 names, over distillation without masked and predicted views.
    (base,) = found["kl"]["recognition"]
    for row, points in {"mask-kl": 1.1, "predict-kl": 1.5}.items():
        (accuracy,) = found[row]["recognition"]
        assert accuracy - base == pytest.approx(points)
    # Topology masks are better than random ones at each ratio, and 60 % is best of either.
    (masks,) = (table for table in PCM3.tables if table.number == 10)
    topology, random = (
        [row.published["recognition"] for row in masks.rows if row.label.startswith(kind)]
        for kind in ("topology", "random")
    )
    assert all(ours > other for ours, other in zip(topology, random, strict=True))
    assert topology.index(max(topology)) == random.index(max(random)) == 2


@pytest.mark.parametrize("ablations", [SLIM, PCM3])
def test_the_headline_protocol_has_a_column_and_scales_change_what_is_there(
    ablations: Ablations,
) -> None:
    for table in ablations.tables:
        first = ablations.columns[table.columns[0]]
        assert first.protocol == ablations.protocols[0]
    for scale in ablations.scales.values():
        assert scale.protocols.keys() <= set(ablations.protocols)
        assert scale.changes.keys() <= set(ablations.recipes())


def test_the_long_recipe_of_pku2_says_what_is_mamps() -> None:
    recipe = load_recipe("slim-pku2-long")
    changed = {("train", "batch"): 128, ("train", "epochs"): 400}
    assert differing(recipe, load_recipe("slim")) == changed
    assert "MAMP" in recipe.title


def test_settings_that_make_two_rows_one_are_refused() -> None:
    with pytest.raises(UserError, match=r"'slim-ablation-\S+' and 'slim-ablation-\S+' would be"):
        row_recipes(SLIM, "paper", ["views.local=[]"])


TWO_TABLES = Ablations.model_validate(
    {
        "kind": "ablations",
        "name": "toy",
        "title": "Toy",
        "source": "nobody",
        "full": "all",
        "protocols": ["linear", "knn"],
        "same": ["method", "pipeline", "encoder", "head", "optim", "train"],
        "columns": {"xsub": {"label": "X-Sub", "protocol": "linear"}, "xview": {"label": "X-View"}},
        "readings": ["how the toy is read"],
        "notes": [],
        "scales": {"tiny": {"title": "small", "base": "slim-tiny"}},
        "tables": [
            {
                "number": 1,
                "title": "first",
                "rows": [
                    {"label": "A", "recipe": "a", "published": {"xsub": 50.0, "xview": 60.0}},
                    {"label": "B", "recipe": "b", "published": {"xsub": 70.0, "xview": 65.0}},
                    {"label": "B too", "recipe": "c", "published": {"xsub": 70.0, "xview": 64.0}},
                    {"label": "all", "recipe": "all", "published": {"xsub": 80.0, "xview": 85.0}},
                ],
            },
            {
                "number": 2,
                "title": "second",
                "rows": [
                    {"label": "none", "recipe": "d", "published": {"xsub": 71.0, "xview": 60.0}},
                    {"label": "every", "recipe": "all", "published": {"xsub": 80.0, "xview": 85.0}},
                ],
            },
        ],
    }
)
SETTINGS = {name: {} for name in ("method", "pipeline")} | {
    "encoder": {"layers": 2, "dim": 64},
    "head": {"prototypes": 128},
    "optim": {"lr": 0.002},
    "train": {"epochs": 3, "batch": 32, "precision": "float32"},
}


def result(accuracy: float, protocol: str = "linear", **changes: Any) -> dict[str, Any]:
    record = {
        "protocol": {"kind": "protocol", "name": protocol, "title": protocol, "centre": 0.95},
        "subject": "run",
        "features": "patch",
        "dataset": "toy",
        "split": "half",
        "part": "test",
        "samples": {"train": 900, "test": 400},
        "data_digest": "d" * 64,
        "warnings": ["a part of it"],
        "readings": ["S9"],
        "results": [{"network": "student", "accuracy": accuracy}, {"accuracy": 1.0}],
    }
    return record | changes


def entries(**accuracies: list[float]) -> list[Entry]:
    """Runs of rows with accuracies by seed; k-NN's are 10 lower."""
    return [
        Entry(row, seed, SETTINGS, [result(value), result(value - 10, "knn")])
        for row, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_other_protocols_and_fusions_are_left_out() -> None:
    found = entries(a=[50], b=[60])
    plain = report_of(found)
    for entry in found:
        entry.results.append(result(99.0, "linear-pcm3"))
        entry.results.append(result(99.0, subject="fused"))
    assert report_of(found) == plain


def report_of(found: list[Entry]) -> dict[str, Any]:
    return ablation_report(TWO_TABLES, "tiny", found, part="test", features="patch")


def test_the_variance_is_that_of_differences_between_seeds() -> None:
    # A seed that lifts all rows alike is no noise.
    assert difference_variance([Score({0: 50.0, 1: 60.0}), Score({0: 52.0, 1: 62.0})]) == 0
    # Differences 2, 4 (variance 2); 1, -1 (2); -1, -5 (8): their mean is 4.
    rows = [Score({0: 52.0, 1: 64.0}), Score({0: 50.0, 1: 60.0}), Score({0: 51.0, 1: 65.0})]
    assert difference_variance(rows) == pytest.approx((2 + 2 + 8) / 3)
    # Three seeds weigh twice as much: (2 * 1 + 1 * 8) / 3.
    first = Score({0: 0.0, 1: 0.0, 2: 0.0})
    assert difference_variance([first, Score({0: 1.0, 1: 2.0, 2: 3.0})]) == pytest.approx(1)
    assert difference_variance([Score({0: 50.0}), Score({0: 60.0})]) is None
    assert difference_variance([Score({0: 50.0, 1: 2.0}), Score({2: 60.0, 1: 3.0})]) is None


def test_the_standard_error_has_a_part_of_seeds_and_one_of_queries() -> None:
    first, second = Score({0: 50.0, 1: 70.0}), Score({0: 80.0, 1: 80.0, 2: 5.0})
    binomial = (60 * 40 + 55 * 45) / 400
    found = compare(first, second, 8.0, 400)
    assert found is not None
    assert found.points == pytest.approx((-30 - 10) / 2)  # over the seeds that both have
    assert found.error == pytest.approx(sqrt(8 / 2 + binomial))
    alone = compare(first, second, None, 400)
    assert alone is not None
    assert alone.error == pytest.approx(sqrt(binomial))
    assert compare(Score({0: 1.0}), Score({1: 1.0}), None, 400) is None


def test_the_table_has_means_deviations_and_differences() -> None:
    report = report_of(entries(a=[50, 54], b=[60, 62], all=[70, 72]))
    rows = {row["label"]: row["ours"]["linear"] for row in report["tables"][0]["rows"]}
    assert rows["A"]["by_seed"] == {"0": 50, "1": 54}
    assert rows["A"]["mean"] == 52
    assert rows["A"]["std"] == pytest.approx(sqrt(8))
    assert rows["A"]["over_full"]["points"] == -19
    # a-b: -10, -8; a-all: -20, -18; b-all: -10, -10.
    spread = (2 + 2 + 0) / 3
    assert report["difference_std"]["linear"] == pytest.approx(sqrt(spread))
    error = sqrt(spread / 2 + (52 * 48 + 71 * 29) / 400)
    assert rows["A"]["over_full"]["error"] == pytest.approx(error)
    assert rows["B too"] is None
    assert "over_full" not in rows["all"]
    knn = {row["label"]: row["ours"]["knn"] for row in report["tables"][0]["rows"]}
    assert knn["A"]["mean"] == 42
    second = {row["label"]: row["ours"]["linear"] for row in report["tables"][1]["rows"]}
    assert second["every"] == rows["all"]  # one run stands in both tables


def test_orderings_are_those_of_strict_published_pairs() -> None:
    report = report_of(entries(a=[50, 54], b=[48, 53], c=[20, 22], all=[52, 54]))
    found = {
        (record["table"], record["better"], record["worse"]): record
        for record in report["orderings"]["linear"]
    }
    assert set(found) == {
        (1, "B", "A"), (1, "B too", "A"), (1, "all", "A"),
        (1, "all", "B"), (1, "all", "B too"), (2, "every", "none"),
    }  # fmt: skip
    assert found[1, "B", "A"]["published"] == 20
    assert found[1, "B", "A"]["ours"] == pytest.approx(-1.5)
    # Two standard errors of the queries alone are 2 sqrt(2 * 50 * 50 / 400) = 7 points.
    assert not found[1, "B", "A"]["holds"]
    assert found[1, "B", "A"]["within_noise"]
    assert not found[1, "B too", "A"]["holds"]
    assert not found[1, "B too", "A"]["within_noise"]
    assert found[1, "all", "A"]["holds"]
    assert found[1, "all", "A"]["within_noise"]
    assert found[1, "all", "B too"]["holds"]
    assert not found[1, "all", "B too"]["within_noise"]
    assert found[2, "every", "none"]["ours"] is None
    assert count_orderings(found.values()) == {
        "published": 6,
        "measured": 5,
        "hold": 3,
        "hold_beyond_noise": 1,
        "fail_beyond_noise": 1,
        "within_noise": 3,
        "noise_unknown": 0,
    }


def test_equal_accuracies_do_not_hold() -> None:
    report = report_of(entries(a=[50], all=[50]))
    (record,) = (r for r in report["orderings"]["linear"] if r["ours"] is not None)
    assert record["ours"] == 0
    assert not record["holds"]
    assert record["within_noise"]


def test_one_seed_has_no_deviation() -> None:
    report = report_of(entries(a=[50], all=[60]))
    assert report["difference_std"] == {"linear": None, "knn": None}
    assert report["tables"][0]["rows"][0]["ours"]["linear"]["std"] is None
    assert "unknown, one seed" in as_markdown(report)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"data_digest": "e" * 64}, "data_digest"),
        ({"split": "other"}, "split"),
        ({"dataset": "other"}, "dataset"),
        ({"samples": {"train": 900, "test": 399}}, "samples"),
        ({"protocol": {"name": "linear", "title": "linear", "centre": 0.9}}, "protocol"),
    ],
)
def test_results_of_different_data_or_protocols_are_never_mixed(
    change: dict[str, Any], key: str
) -> None:
    mixed = [*entries(a=[50]), Entry("b", 0, SETTINGS, [result(60) | change])]
    with pytest.raises(UserError, match=f"differ in '{key}'(.|\\n)*place: b, seed 0"):
        report_of(mixed)


def test_runs_of_different_sizes_are_never_mixed() -> None:
    longer = SETTINGS | {"train": {**SETTINGS["train"], "epochs": 4}}
    with pytest.raises(UserError, match="differ in 'train'"):
        report_of([*entries(a=[50]), Entry("b", 0, longer, [result(60)])])


def test_other_features_and_parts_do_not_count() -> None:
    extra = [result(99, features="class"), result(98, part="validation subjects [8]")]
    found = [Entry("a", 0, SETTINGS, [*extra, result(50)])]
    report = report_of(found)
    assert report["tables"][0]["rows"][0]["ours"]["linear"]["by_seed"] == {"0": 50}
    with pytest.raises(UserError, match="no result"):
        report_of([Entry("a", 0, SETTINGS, extra)])


def test_the_untrained_encoder_is_a_floor_and_no_row() -> None:
    found = [Entry("all", 0, SETTINGS, [result(60), result(40, subject="random-init")])]
    report = report_of(found)
    assert report["floor"]["linear"]["mean"] == 40
    assert report["tables"][0]["rows"][-1]["ours"]["linear"]["mean"] == 60
    assert "| untrained encoder | 40.0 |" in as_markdown(report)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_report_is_written_from_its_record_alone(tmp_path: Path) -> None:
    report = report_of(entries(a=[50, 54], b=[48, 53], all=[52, 54]))
    again = json.loads(json.dumps(report))
    files = write_report(tmp_path / "out", again)
    assert [path.name for path in files] == ["toy.json", "toy.md", "toy.html"]
    assert json.loads(files[0].read_text()) == again
    for path in files[1:]:
        text = path.read_text(encoding="utf-8")
        for words in (
            "a part of it", "d" * 64, "how the toy is read", "S9", "50.0, 54.0", "52.0 ± 2.8",
            "fails, within noise", "not run", "two standard errors", "3 epochs, batch 32",
        ):  # fmt: skip
            assert words in text, (path.name, words)
    tags = Tags()
    tags.feed(files[2].read_text(encoding="utf-8"))
    sources = [attrs[key] for _, attrs in tags.seen for key in ("src", "href") if key in attrs]
    assert sources
    assert all(str(source).startswith("data:") for source in sources)
    assert not any(tag in ("script", "link") for tag, _ in tags.seen)
    for grid in grids(report):
        assert all(len(row) == len(grid.columns) for row in grid.rows)


MANY_COLUMNS = Ablations.model_validate(
    {
        **TWO_TABLES.model_dump(exclude={"tables"}),
        "same": ["encoder", "optim", "train"],
        "columns": {
            "top": {"label": "recognition", "protocol": "linear"},
            "found": {"label": "retrieval", "protocol": "knn"},
            "error": {"label": "error in mm", "protocol": "forecast", "lower_is_better": True},
        },
        "tables": [
            {
                "number": 3,
                "title": "many",
                "rows": [
                    {
                        "label": label,
                        "recipe": recipe,
                        "published": {"error": error, "top": top, "found": found},
                    }
                    for label, recipe, error, top, found in (
                        ("A", "a", 140.5, 50.0, 65.0),
                        ("B", "b", 120.5, 70.0, 55.0),
                        ("all", "all", 100.5, 80.0, 90.0),
                    )
                ],
            },
            {
                "number": 4,
                "title": "errors alone, of a part",
                "full": "b",
                "rows": [
                    {"label": "C", "recipe": "c", "published": {"error": 125.0}},
                    {"label": "B again", "recipe": "b", "published": {"error": 120.5}},
                ],
            },
        ],
    }
)
OF_LAST_FRAME = {
    "encoder": {"layers": 3, "hidden": 96},
    "optim": {"lr": 0.02},
    "train": {"epochs": 5, "batch": 16, "precision": "float32"},
}


def many_columns() -> dict[str, Any]:
    """A report of one seed: C is better than B by 10 points, all than B by 30, than A by 20."""
    found = [
        Entry(
            row,
            0,
            OF_LAST_FRAME,
            [
                result(value, features="last"),
                result(value - 5, "knn", features="last"),
                result(99, features="patch"),
                result(99, "linear-other", features="last"),
            ],
        )
        for row, value in {"a": 60, "b": 50, "c": 60, "all": 80}.items()
    ]
    return ablation_report(MANY_COLUMNS, "tiny", found, part="test", features="last")


def test_a_protocol_is_compared_with_its_column_or_else_the_first() -> None:
    report = many_columns()
    assert report["protocols"].keys() == {"linear", "knn"}  # what was evaluated beside is no part
    found = {
        name: {
            (record["table"], record["better"], record["worse"]): record
            for record in report["orderings"][name]
        }
        for name in ("linear", "knn")
    }
    others = {(3, "all", "A"), (3, "all", "B"), (4, "B again", "C")}
    assert set(found["linear"]) == {(3, "B", "A"), *others}
    assert set(found["knn"]) == {(3, "A", "B"), *others}
    assert {record["column"] for record in found["linear"].values()} == {"top", "error"}
    assert {record["column"] for record in found["knn"].values()} == {"found", "error"}
    assert found["knn"][3, "A", "B"]["published"] == 10
    assert found["knn"][3, "A", "B"]["holds"]
    assert not found["linear"][3, "B", "A"]["holds"]
    # The lower error is better; of our accuracies the higher one is.
    assert found["linear"][4, "B again", "C"]["published"] == -4.5
    assert found["linear"][4, "B again", "C"]["ours"] == -10
    assert not found["linear"][4, "B again", "C"]["holds"]


def test_a_table_may_be_set_against_a_row_of_its_own() -> None:
    many, part = many_columns()["tables"]
    points = {row["label"]: row["ours"]["linear"].get("over_full") for row in many["rows"]}
    assert points["B"]["points"] == -30
    assert points["all"] is None
    points = {row["label"]: row["ours"]["linear"].get("over_full") for row in part["rows"]}
    assert points["C"]["points"] == 10
    assert points["B again"] is None


def test_columns_that_are_not_measured_have_a_dash(tmp_path: Path) -> None:
    report = many_columns()
    by_title = {grid.title: grid for grid in grids(report)}
    many = by_title["Table 3, many: published, and ours, k-NN"]
    assert many.columns[1:5] == (
        "published error in mm (lower is better) / ours",
        "published recognition",
        "published retrieval",
        "retrieval over full row",
    )
    assert many.rows[0][:6] == ("A", "140.5 / –", "50.0", "65.0", "-25.0", "55.0")
    part = by_title["Table 4, errors alone, of a part: published, and ours, linear"]
    assert part.rows[0][:4] == ("C", "125.0 / –", "+4.5", "60.0")
    every = by_title["Every ordering"]
    assert len(every.rows) == 7  # three by each of two columns, one by errors for both protocols
    assert every.rows[-3][:7] == ("A", "B", "retrieval", "3", "+10.0", "", "")
    text = as_markdown(report)
    assert "5 epochs, batch 16, float32, 3 layers of 96, peak lr 0.02" in text
    assert "student, last frame" in text
    for path in write_report(tmp_path, report):
        assert path.stat().st_size


def test_the_protocols_of_a_report_load() -> None:
    for scale in SLIM.scales.values():
        for name in SLIM.protocols:
            assert load_protocol(name, scale.protocols.get(name, ())).name == name


@pytest.mark.parametrize("ablations", [SLIM, PCM3])
def test_packaged_reports_are_written(ablations: Ablations, tmp_path: Path) -> None:
    recipes = row_recipes(ablations, "tiny")
    features = default_kind(recipes[ablations.full])
    found = [
        Entry(
            name,
            0,
            recipe.model_dump(mode="json"),
            [result(50 + place, protocol, features=features) for protocol in ablations.protocols],
        )
        for place, (name, recipe) in enumerate(recipes.items())
    ]
    report = ablation_report(ablations, "tiny", found, part="test", features=features)
    for path in write_report(tmp_path, report):
        assert path.stem == ablations.name
    for grid in grids(report):
        assert all(len(row) == len(grid.columns) for row in grid.rows)
        dashes = [cell for row in grid.rows for cell in row if cell.endswith(" / –")]
        expected = 0
        if ablations is PCM3 and grid.title.startswith("Table 7"):
            expected = 4 * 3  # occlusion, detection and motion prediction
        if ablations is PCM3 and grid.title.startswith("Table 9"):
            expected = 3  # detection
        assert len(dashes) == expected, grid.title


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"columns": {"top": {"label": "recognition"}}}, r"table 1 has unknown columns \['xsub'"),
        ({"full": "d"}, "the full row of table 1 is none of its rows"),
        (
            {
                "tables": [
                    {
                        "number": 9,
                        "title": "uneven",
                        "rows": [
                            {"label": "A", "recipe": "a", "published": {"xsub": 1.0}},
                            {"label": "B", "recipe": "b", "published": {"xview": 2.0}},
                        ],
                    }
                ]
            },
            "rows of table 9 have different columns",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ablations.model_validate(TWO_TABLES.model_dump() | change)


def test_entries_are_read_from_the_folders_of_rows_and_seeds(tmp_path: Path) -> None:
    for row, seed in (("a", 0), ("a", 1), ("b", 0)):
        folder = run_folder(tmp_path, row, seed)
        (folder / "results").mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(SETTINGS))
        if row == "a":
            (folder / "results" / "linear.json").write_text(json.dumps(result(50 + seed)))
    found = read_entries(tmp_path, ["a", "b", "c"], [0, 1, 2])
    assert [(entry.recipe, entry.seed) for entry in found] == [("a", 0), ("a", 1)]
    assert found[1].results[0]["results"][0]["accuracy"] == 51


def distance(value: float, **changes: Any) -> dict[str, Any]:
    """A record of motion prediction, whose headline is no accuracy."""
    told = {"name": "mpjpe", "value": value, "lower_is_better": True}
    return result(0, "forecast", features="last", **changes) | {
        "results": [{"network": "student", "mpjpe": value}],
        "headline": told,
    }


def with_distances(seeds: int) -> dict[str, Any]:
    """Rows with accuracies and, one a seed, distances: A's 150 and 152, B's 140 and 136."""
    ablations = MANY_COLUMNS.model_copy(update={"protocols": ("linear", "forecast")})
    rows = {"a": (60.0, [150.0, 152.0]), "b": (70.0, [140.0, 136.0]), "all": (80.0, [141.0, 141.0])}
    found = [
        Entry(
            row,
            seed,
            OF_LAST_FRAME,
            [
                result(accuracy, features="last"),
                distance(distances[seed], dataset="other", samples={"train": 9, "test": 4}),
            ],
        )
        for row, (accuracy, distances) in rows.items()
        for seed in range(seeds)
    ]
    floor = distance(160.0, subject="random-init", dataset="other", samples={"train": 9, "test": 4})
    found[-1].results.append(floor)
    return ablation_report(ablations, "tiny", found, part="test", features="last")


def test_of_distances_the_lower_is_better_and_seeds_alone_tell_noise() -> None:
    report = with_distances(2)
    assert report["measures"] == {
        "linear": {"name": "accuracy", "lower_is_better": False},
        "forecast": {"name": "mpjpe", "lower_is_better": True},
    }
    found = {
        (record["better"], record["worse"]): record
        for record in report["orderings"]["forecast"]
        if record["table"] == 3
    }
    # Published: all 100.5, B 120.5, A 140.5. Ours: a-b is 10 and 16, a-all 9 and 11, b-all -1, -5.
    spread = (18 + 2 + 8) / 3
    assert report["difference_std"]["forecast"] == pytest.approx(sqrt(spread))
    assert found["B", "A"]["published"] == -20
    assert found["B", "A"]["ours"] == -13
    assert found["B", "A"]["error"] == pytest.approx(sqrt(spread / 2))
    assert found["B", "A"]["holds"]
    assert found["B", "A"]["within_noise"] is False
    assert found["all", "B"]["ours"] == 3
    assert not found["all", "B"]["holds"]
    assert found["all", "B"]["within_noise"] is True
    rows = {row["label"]: row["ours"]["forecast"] for row in report["tables"][0]["rows"]}
    assert rows["A"]["by_seed"] == {"0": 150, "1": 152}
    assert rows["A"]["over_full"] == {"points": 10, "error": pytest.approx(sqrt(spread / 2))}
    assert report["floor"]["forecast"]["mean"] == 160
    assert report["noise_rule"].endswith("within noise.")
    # Accuracies are as they would be without.
    assert report["dataset"] == "toy"
    assert report["other_data"]["forecast"]["dataset"] == "other"
    linear = {row["label"]: row["ours"]["linear"] for row in report["tables"][0]["rows"]}
    error = sqrt((60 * 40 + 80 * 20) / 400)
    assert linear["A"]["over_full"] == {"points": -20, "error": pytest.approx(error)}


def test_noise_of_distances_is_unknown_with_one_seed(tmp_path: Path) -> None:
    report = with_distances(1)
    forecast = report["orderings"]["forecast"]
    counts = count_orderings(r for r in forecast if r["table"] == 3)
    assert (counts["measured"], counts["hold"], counts["noise_unknown"]) == (3, 3 - 1, 3)
    assert counts["hold_beyond_noise"] == counts["fail_beyond_noise"] == counts["within_noise"] == 0
    counts = count_orderings(r for r in report["orderings"]["linear"] if r["table"] == 3)
    assert counts["noise_unknown"] == 0
    text = as_markdown(report)
    for words in (
        "| holds, noise unknown |", "| fails, noise unknown |", "noise unknown |",
        "forecast by seed, MPJPE, mm (lower is better)", "data of forecast",
        "forecast: MPJPE, mm (lower is better).", "published error in mm (lower is better)",
    ):  # fmt: skip
        assert words in text, words
    assert "noise unknown" not in as_markdown(report_of(entries(a=[50], all=[60])))
    for path in write_report(tmp_path, json.loads(json.dumps(report))):
        assert path.stat().st_size
    for grid in grids(report):
        assert all(len(row) == len(grid.columns) for row in grid.rows)


def test_distances_of_different_data_are_never_mixed() -> None:
    ablations = MANY_COLUMNS.model_copy(update={"protocols": ("linear", "forecast")})
    found = [
        Entry(row, 0, OF_LAST_FRAME, [distance(100.0, split=split)])
        for row, split in (("a", "half"), ("b", "other"))
    ]
    with pytest.raises(UserError, match=r"differ in 'split'(.|\n)*place: b, seed 0"):
        ablation_report(ablations, "tiny", found, part="test", features="last")
