"""`skelpipe table` of a paper's ablations: every row run, evaluated and set beside what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skelpipe.errors import UserError, nearest

from .console import console, show_warning
from .options import newest_set, runs_root
from .table_runs import check_hours, do_all, show_grids, show_plan, tell_rest

if TYPE_CHECKING:
    import torch

    from skelpipe.config import Recipe
    from skelpipe.report.ablations import Ablations
    from skelpipe.tables.jobs import Job


def run_ablations(
    name: str,
    number: int | None,
    *,
    scale: str,
    data: Path | None,
    seeds: Sequence[int],
    val_subjects: tuple[int, ...],
    only: Sequence[str],
    changes: Sequence[str],
    runs: Path | None,
    out: Path | None,
    device: torch.device,
    plan: bool,
    yes: bool,
) -> None:
    """Run what is missing of some ablations, all of them or one of their tables, and write it.

    Args:
        name: Of the ablations.
        number: Of the table; all if None.
        scale, data, seeds, val_subjects, only, changes, runs, out, device, plan, yes: Of the
            command.
    """
    from skelpipe.protocols.settings import load_protocol
    from skelpipe.report.ablations import load_ablations, only_table, row_recipes, run_folder
    from skelpipe.tables.jobs import Asked, Job, check_same

    ablations = load_ablations(name)
    if number is not None:
        ablations = only_table(ablations, number)
    if scale not in ablations.scales:
        raise UserError(f"unknown scale '{scale}'", remedy=nearest(scale, ablations.scales))
    recipes = row_recipes(ablations, scale, changes)
    chosen = [_row(row, recipes) for words in only or recipes for row in words.split(",")]
    folder = data or newest_set(recipes[ablations.full].pipeline)
    protocols = [
        load_protocol(protocol, ablations.scales[scale].protocols.get(protocol, ()))
        for protocol in ablations.protocols
    ]

    def asked(row: str) -> tuple[Asked, ...]:
        # An untrained encoder is the same whatever the row: the full row's run keeps its results.
        floor = row == ablations.full
        return tuple(
            Asked(protocol, folder, subject)
            for protocol in protocols
            for subject in ("run", "random-init")
            if subject == "run" or floor
        )

    root = (runs or runs_root()) / name / scale
    jobs = [
        Job(run_folder(root, row, seed), recipe, seed, folder, asked(row), val_subjects)
        for seed in seeds
        for row, recipe in recipes.items()
    ]
    for job in jobs:
        check_same(job)

    mine = [job for job in jobs if job.recipe.name in chosen]
    hours = show_plan(mine, device)
    if plan:
        return
    check_hours(hours, device, yes)
    failed = do_all(mine, device)
    _write_table(ablations, scale, jobs, root, seeds, out or root / "table")
    tell_rest(mine, failed)


def _row(name: str, recipes: dict[str, Recipe]) -> str:
    if name not in recipes:
        raise UserError(f"unknown row '{name}'", remedy=nearest(name, recipes))
    return name


def _write_table(
    ablations: Ablations,
    scale: str,
    jobs: Sequence[Job],
    root: Path,
    seeds: Sequence[int],
    out: Path,
) -> None:
    from skelpipe.protocols.evaluate import part_name
    from skelpipe.protocols.features import default_kind
    from skelpipe.report.ablation_page import grids, write_report
    from skelpipe.report.ablations import ablation_report, read_entries
    from skelpipe.tables.work import held

    entries = read_entries(root, ablations.recipes(), seeds)
    if not entries:
        console.print("nothing is evaluated yet: no table is written")
        return
    report = ablation_report(
        ablations,
        scale,
        entries,
        part=part_name(jobs[0].val_subjects),
        features=default_kind(jobs[0].recipe),
    )
    with held(out, wait=True):
        stored = write_report(out, report)
    show_grids(grids(report)[:-1])  # all but the list of every ordering
    console.print(report["noise_rule"])
    for warning in report["warnings"]:
        show_warning(warning)
    console.print(f"our reading: {'; '.join(report['readings'])}", soft_wrap=True, markup=False)
    for path in stored:
        console.print(f"stored: {path}", soft_wrap=True)
