from __future__ import annotations

from pathlib import Path

import pytest

from skelpipe.errors import UserError
from skelpipe.protocols.settings import PROTOCOLS
from skelpipe.tables.plan import Plan, make_plan
from skelpipe.tables.published import Column, PublishedTable, Row, load_scales, load_table
from skelpipe.tables.sets import SetName, about

ROOT, SHARDS = Path("runs"), Path("shards")


def plan_of(table: PublishedTable, *, seeds: tuple[int, ...] = (0,), scale: str = "tiny") -> Plan:
    return make_plan(table, load_scales(table), scale, seeds=seeds, root=ROOT, shards=SHARDS)


def test_tables_share_the_runs_of_a_split_and_seed() -> None:
    linear, nearest = plan_of(load_table("slim-table-2")), plan_of(load_table("slim-table-4"))
    assert set(nearest.jobs) < set(linear.jobs)
    folder = ROOT / "slim-ntu60-xsub-seed0"
    assert linear.jobs[folder].recipe == nearest.jobs[folder].recipe
    assert [a.protocol.name for a in linear.jobs[folder].asked] == ["linear"]
    assert [a.protocol.name for a in nearest.jobs[folder].asked] == ["knn"]


def test_a_table_needs_its_sets_and_a_cell_for_every_seed() -> None:
    plan = plan_of(load_table("slim-table-2"), seeds=(0, 3))
    assert [str(name) for name in plan.sets] == [
        "ntu60 xsub (ctrgcn)",
        "ntu60 xview (ctrgcn)",
        "ntu120 xsub (ctrgcn)",
        "ntu120 xset (ctrgcn)",
        "pku2 xsub (ctrgcn)",
    ]
    assert len(plan.cells) == len(plan.jobs) == 10
    pku = plan.jobs[ROOT / "slim-pku2-xsub-seed3"]
    assert (pku.seed, pku.data) == (3, SHARDS / "pku2" / "ctrgcn" / "xsub")
    (asked,) = pku.asked
    assert (asked.protocol.lr, asked.protocol.batch) == (0.01, 32)  # type: ignore[union-attr]


def test_three_streams_are_three_runs_whose_scores_are_added() -> None:
    plan = plan_of(load_table("pcm3-table-1"))
    assert len(plan.jobs) == 15
    fused = [cell for cell in plan.cells if len(cell.sources[0].folders) == 3]
    assert len(fused) == 5
    assert [folder.name for folder in fused[0].sources[0].folders] == [
        f"pcm3{stream}-ntu60-xsub-seed0" for stream in ("", "-bone", "-motion")
    ]
    # Both rows ask the joint stream for the same evaluation.
    assert len(plan.jobs[ROOT / "pcm3-ntu60-xsub-seed0"].asked) == 1


def example(**columns: Column) -> PublishedTable:
    row = Row(method="mine", values={}, ours={})  # type: ignore[arg-type]
    return load_table("slim-table-4").model_copy(update={"columns": columns, "rows": (row,)})


def test_a_mean_column_reads_the_results_of_others() -> None:
    table = example(
        one=Column(label="1", train="ntu60/xsub", protocol="knn"),
        two=Column(label="2", train="ntu60/xview", protocol="knn"),
        mean=Column(label="both", mean_of=("one", "two"), metric="drop"),
    )
    plan = plan_of(table)
    assert len(plan.jobs) == 2
    (cell,) = (cell for cell in plan.cells if cell.column == "mean")
    assert cell.metric == "drop"
    assert [source.folders[0].name for source in cell.sources] == [
        "slim-ntu60-xsub-seed0",
        "slim-ntu60-xview-seed0",
    ]


def test_what_cannot_be_evaluated_is_not_pre_trained() -> None:
    table = example(
        near=Column(label="1", train="ntu60/xsub", protocol="knn"),
        far=Column(label="2", train="ntu120/xsub", test="pku2/xsub", protocol="knn"),
        there=Column(label="3", train="ntu60/xsub", test="pku2/xsub", protocol="knn"),
    )
    plan = plan_of(table)
    shared = plan.jobs[ROOT / "slim-ntu60-xsub-seed0"]
    assert [asked.data.parts[1] for asked in shared.asked] == ["ntu60", "pku2"]
    left = plan.without([SetName("pku2", "xsub", "ctrgcn")])
    assert [cell.column for cell in left.cells] == ["near"]
    (job,) = left.jobs.values()
    assert [asked.data.parts[1] for asked in job.asked] == ["ntu60"]


def test_a_column_may_name_the_pipeline_that_it_is_tested_on() -> None:
    table = example(
        map_a=Column(label="a", train="ntu60/xsub", test="pku1/xsub/recordings", protocol="knn")
    )
    assert SetName("pku1", "xsub", "recordings") in plan_of(table).sets


@pytest.mark.parametrize("name", ["slim-table-3", "pcm3-table-5", "pcm3-table-6"])
def test_a_protocol_that_is_not_known_is_named_when_it_is_asked(name: str) -> None:
    table = load_table(name)
    protocol = next(iter(table.columns.values())).protocol
    if protocol in PROTOCOLS:
        assert plan_of(table).jobs
    else:
        with pytest.raises(UserError, match=f"unknown protocol '{protocol}'"):
            plan_of(table)


def test_mistakes_are_named() -> None:
    table = load_table("slim-table-2")
    with pytest.raises(UserError, match="did you mean 'ntu60_xsub'"):
        make_plan(
            table, load_scales(table), "tiny", seeds=(0,), root=ROOT, shards=SHARDS,
            columns=["ntu60_xsubs"],
        )  # fmt: skip
    with pytest.raises(UserError, match="did you mean 'paper'"):
        plan_of(table, scale="papr")


def test_sizes_of_absent_sets_are_those_published() -> None:
    assert about(SetName("ntu120", "xset", "ctrgcn")) == 54468
    assert about(SetName("pku2", "xsub", "ctrgcn")) == 5332
    assert about(SetName("ntu120", "xset", "ctrgcn"), generated=True) == 500
