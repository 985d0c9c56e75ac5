"""`skelpipe table` of a published table: prepare, pre-train, evaluate, and set it beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skelpipe.errors import UserError

from .console import console, show_error, show_warning
from .options import raw_roots, runs_root, shards_root
from .prepare import preparing_progress, stopped_told
from .progress import counting_progress
from .table_runs import check_hours, do_all, show_grids, show_plan, tell_rest

if TYPE_CHECKING:
    import torch

    from skelpipe.tables.plan import Plan
    from skelpipe.tables.sets import Absent, Places


def run_published(
    name: str,
    *,
    scale: str,
    data: Path | None,
    raw: Sequence[Path],
    synth: Path | None,
    seeds: Sequence[int],
    only: Sequence[str],
    changes: Sequence[str],
    runs: Path | None,
    out: Path | None,
    device: torch.device,
    plan: bool,
    yes: bool,
) -> None:
    """Run what is missing of a published table and write it.

    Args:
        name: Of the table.
        scale, data, raw, synth, seeds, only, changes, runs, out, device, plan, yes: Of the
            command.
    """
    from skelpipe.manifest import manifest_names
    from skelpipe.tables.jobs import check_same
    from skelpipe.tables.plan import make_plan
    from skelpipe.tables.published import load_scales, load_table
    from skelpipe.tables.sets import Places, find_absent, generate

    if synth is not None and (raw or data or runs):
        raise UserError(
            "--synth has a folder for everything that it makes",
            remedy="leave out --raw, --data and --runs",
        )
    table = load_table(name)
    scales = load_scales(table)
    shards = synth / "shards" if synth else data or shards_root()
    root = (synth / "runs" if synth else runs or runs_root()) / "tables" / scale
    whole = make_plan(
        table, scales, scale, seeds=seeds, root=root, shards=shards, changes=changes,
        columns=[column for words in only for column in words.split(",")],
        generated=synth is not None,
    )  # fmt: skip
    datasets = dict.fromkeys(needed.dataset for needed in whole.sets)
    places = Places(dict.fromkeys(manifest_names("dataset"), list(raw) or raw_roots()), shards)
    absent: list[Absent] = []
    if synth is None:
        absent = find_absent(whole.sets, places)
    elif not plan:
        with counting_progress("generating") as count:
            places = Places(generate(datasets, synth / "raw", counting=count), shards)
    todo = whole.without(one.name for one in absent)

    _show_sets(todo, places, absent)
    for job in todo.jobs.values():
        if job.prepared:
            check_same(job)
    if not todo.cells:
        raise UserError(
            "there is no data for any column of this table",
            remedy="; ".join(dict.fromkeys(one.remedy for one in absent)),
        )
    hours = show_plan(list(todo.jobs.values()), device)
    if plan:
        return
    check_hours(hours, device, yes)

    broken = _prepare(todo, places)
    if broken:
        todo = todo.without(one.name for one in broken)
    jobs = list(todo.jobs.values())
    for job in jobs:
        check_same(job)
    check_hours(show_plan(jobs, device), device, yes)
    failed = do_all(jobs, device)

    from skelpipe.report.table_page import GENERATED, grids, write_table
    from skelpipe.tables.record import add_fusions, table_record
    from skelpipe.tables.work import held

    folder = out or root / "table"
    with held(folder, wait=True):
        add_fusions(todo)
        record = table_record(
            table,
            scale,
            scales.scale(scale),
            todo,
            [*absent, *broken],
            changes=changes,
            generated=synth is not None,
        )
        stored = write_table(folder, record)
    show_grids(grids(record)[:1])
    for warning in record["warnings"]:
        show_warning(warning)
    console.print(f"our reading: {'; '.join(record['readings'])}", soft_wrap=True, markup=False)
    if synth:
        console.print(GENERATED, style="bold")
    for path in stored:
        console.print(f"stored: {path}", soft_wrap=True)
    tell_rest(jobs, failed)
    if broken:
        raise UserError(
            f"{len(broken)} of the sets could not be prepared",
            found="; ".join(str(one.name) for one in broken),
            remedy="the errors above say why",
        )


def _show_sets(plan: Plan, places: Places, absent: Sequence[Absent]) -> None:
    for name in plan.sets:
        state = "prepared" if name.stands(places.shards) else "to be prepared"
        console.print(f"{name}: {state}", soft_wrap=True)
    for one in absent:
        reason = one.reason.splitlines()[0]
        show_warning(f"{one.name} is left out: {reason}\n  {one.remedy}")


def _prepare(plan: Plan, places: Places) -> list[Absent]:
    """Prepare what the plan needs; returns what could not be, after saying why."""
    from skelpipe.tables.sets import prepare_sets

    with stopped_told(), preparing_progress("sets") as report:
        broken = prepare_sets(
            plan.sets,
            places,
            say=lambda text: console.print(text, soft_wrap=True, markup=False),
            progress=report,
        )
    for one in broken:
        show_error(f"{one.name}: {one.reason}")
    return broken
