from __future__ import annotations

from itertools import product

import pytest

from skelpipe.config import PCM3Recipe
from skelpipe.errors import UserError
from skelpipe.protocols.settings import PROTOCOLS, load_protocol
from skelpipe.report.ablations import load_ablations, only_table, single_tables
from skelpipe.tables.published import PublishedTable, load_scales, load_table, table_names

# Rows of others and of the paper, numbers, and their sum: counted in the papers' text.
COUNTED = {
    "slim-table-1": (5, 27, 1076.16),
    "slim-table-2": (18, 81, 6051.9),
    "slim-table-3": (13, 46, 3285.5),
    "slim-table-4": (10, 20, 1420.0),
    "slim-table-8": (9, 16, 1023.4),
    "pcm3-table-1": (18, 79, 5496.9),
    "pcm3-table-2": (6, 20, 1189.8),
    "pcm3-table-3": (6, 22, 1369.9),
    "pcm3-table-4": (6, 36, 1787.6),
    "pcm3-table-5": (6, 12, 612.1),
    "pcm3-table-6": (5, 5, 604.3),
}


def row(table: PublishedTable, method: str) -> dict[str, float]:
    (found,) = (row for row in table.rows if row.method == method)
    return found.values


def test_both_papers_tables_are_all_there() -> None:
    names = {*table_names(), *single_tables()}
    assert names == {
        *(f"slim-table-{number}" for number in range(1, 9)),
        *(f"pcm3-table-{number}" for number in range(1, 11)),
    }
    assert set(COUNTED) == set(table_names())


@pytest.mark.parametrize("name", COUNTED)
def test_every_number_is_there(name: str) -> None:
    table = load_table(name)
    assert name == f"{table.name[:4]}-table-{table.number}"
    rows = [row for row in table.rows if row.values]
    numbers = [value for row in rows for value in row.values.values()]
    found = len(rows), len(numbers), round(sum(numbers), 2)
    assert found == COUNTED[name]
    assert len({row.method for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize(
    ("name", "method", "values"),
    [
        ("slim-table-2", "SLiM", [87.9, 93.2, 81.2, 83.6, 59.7]),
        ("slim-table-2", "S-JEPA", [85.3, 89.8, 79.6, 79.9, 53.5]),
        ("slim-table-3", "SLiM", [72.1, 88.8, 75.8, 91.9]),
        ("slim-table-4", "SLiM", [72.5, 89.9]),
        ("slim-table-8", "SLiM", [72.7, 75.3]),
        ("pcm3-table-1", "PCM3", [83.9, 90.4, 76.5, 77.5, 51.5]),
        ("pcm3-table-1", "3s-PCM3", [87.4, 93.1, 80.0, 81.2, 58.2]),
        ("pcm3-table-2", "PCM3", [53.1, 82.8, 53.8, 77.1]),
        ("pcm3-table-3", "PCM3", [73.7, 88.8, 63.1, 66.8]),
        ("pcm3-table-4", "PCM3", [80.8, 87.0, 3.3, 77.6, 86.1, 5.4]),
        ("pcm3-table-5", "PCM3", [61.8, 61.3]),
        ("pcm3-table-5", "randomly initialised", [29.6, 28.2]),
        ("pcm3-table-6", "Random", [108.5]),
    ],
)
def test_what_the_papers_claim_stands_in_the_order_of_their_columns(
    name: str, method: str, values: list[float]
) -> None:
    table = load_table(name)
    assert [row(table, method)[column] for column in table.columns] == values


def test_numbers_that_two_tables_share_agree() -> None:
    first, second = load_table("slim-table-1"), load_table("slim-table-2")
    for one in first.rows:
        for column in ("ntu60_xsub", "ntu60_xview"):
            assert row(second, one.method)[column] == one.values[column]
    recognition = load_table("pcm3-table-1"), load_ablations("pcm3-ablations")
    (full,) = (r for t in recognition[1].tables for r in t.rows if r.label == "ours")
    assert row(recognition[0], "PCM3")["ntu60_xview"] == full.published["recognition"]
    assert row(load_table("pcm3-table-3"), "PCM3")["ntu60_xview"] == full.published["retrieval"]
    assert row(load_table("pcm3-table-4"), "PCM3")["spatial_xview"] == full.published["occlusion"]
    assert row(load_table("pcm3-table-5"), "PCM3")["map_a"] == full.published["detection_a"]
    assert row(load_table("pcm3-table-6"), "PCM3")["mpjpe"] == full.published["motion"]


def test_pcm3s_mean_drop_fits_its_clean_accuracy() -> None:
    """P21: the mean over both splits of clean less occluded."""
    clean = row(load_table("pcm3-table-1"), "PCM3")
    occluded = row(load_table("pcm3-table-4"), "PCM3")
    for kind in ("spatial", "temporal"):
        drops = [clean[f"ntu60_{split}"] - occluded[f"{kind}_{split}"] for split in SPLITS]
        assert sum(drops) / 2 == pytest.approx(occluded[f"{kind}_drop"], abs=0.1)


SPLITS = ("xsub", "xview")


def test_what_is_known_better_is_said() -> None:
    table = load_table("slim-table-8")
    measured = {row.method: row.measured for row in table.rows}
    assert "frozen" in table.measured
    assert "fine-tuned" in measured["MAMP"]
    assert "fine-tuned" in measured["CMD"]
    assert "frozen" in measured["SLiM"]
    protocols = {row.method: row.ours.protocol for row in table.rows if row.ours}
    assert protocols == {"SLiM": "", "SLiM, fine-tuned": "transfer-finetune"}
    for name in ("slim-table-4", "slim-table-8"):
        (isc,) = (row for row in load_table(name).rows if row.method == "ISC")
        assert isc.citation == "[29] Thoker et al. 2021"
        assert "S32" in isc.printed
    for name in ("slim-table-1", "slim-table-2"):
        (mae,) = (row for row in load_table(name).rows if row.method == "SkeletonMAE")
        assert (mae.venue, mae.printed[:7]) == ("ICMEW'23", "ICCV'23")


@pytest.mark.parametrize("name", COUNTED)
def test_our_rows_can_be_run_at_every_scale(name: str) -> None:
    table = load_table(name)
    scales = load_scales(table)
    assert list(scales.scales) == ["paper", "small", "tiny"]
    ours = [row for row in table.rows if row.ours]
    assert ours
    columns = [part for parts in table.measured_columns().values() for part in parts]
    places = [column.train.split("/") for column in columns]
    assert {split for _, split in places} <= {"xsub", "xview", "xset"}
    streams = {stream for row_ in ours if row_.ours for stream in row_.ours.streams}
    for scale, dataset, stream in product(scales.scales, {name for name, _ in places}, streams):
        recipe = scales.recipe(scale, dataset, stream)
        if isinstance(recipe, PCM3Recipe):
            assert recipe.views.modality == stream
    for row_ in ours:
        assert row_.ours is not None
        for column in columns:
            for settings in scales.scales.values():
                protocol = row_.ours.protocol or column.protocol
                if protocol in PROTOCOLS:
                    own = () if row_.ours.protocol else column.changes
                    load_protocol(protocol, [*own, *settings.protocols.get(protocol, ())])


def test_scales_differ_by_data_set() -> None:
    slim = load_scales(load_table("slim-table-2"))
    pcm3 = load_scales(load_table("pcm3-table-1"))
    assert slim.recipe("paper", "pku2", "joint").train.epochs == 150
    assert pcm3.recipe("paper", "ntu120", "bone").train.epochs == 450
    assert pcm3.recipe("paper", "pku2", "motion").train.epochs == 1001
    small = slim.recipe("small", "pku2", "joint", ["train.batch=64"])
    assert (small.train.epochs, small.train.batch) == (100, 64)
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        slim.scale("tinny")


def test_an_unknown_table_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'slim-table-"):
        load_table("slim-table-9")


def test_one_table_of_ablations_stands_alone() -> None:
    whole = load_ablations("pcm3-ablations")
    part = only_table(whole, 8)
    assert part.name == "pcm3-table-8"
    assert [table.number for table in part.tables] == [8]
    assert part.full == "pcm3-ablation-prompts-none"
    assert set(part.recipes()) < set(whole.recipes())
