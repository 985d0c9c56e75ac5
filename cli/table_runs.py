"""What `skelpipe table` shows of runs, and how it has them done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skelpipe.errors import UserError

from .console import console, errors, show_error, show_warning
from .options import REQUEUE
from .progress import counting_progress, training_progress

if TYPE_CHECKING:
    import torch

    from skelpipe.report.grid import Grid
    from skelpipe.tables.jobs import Job
    from skelpipe.tables.work import Screen

_LONG_HOURS = 24.0


def seed_numbers(text: str) -> list[int]:
    """Seeds from "0,1"."""
    try:
        found = sorted({int(number) for number in text.replace(",", " ").split()})
    except ValueError:
        found = []
    if not found or found[0] < 0:
        raise UserError("--seeds takes numbers", found=text, expected="such as --seeds 0,1")
    return found


def screen() -> Screen:
    """The terminal, for work on runs."""
    from skelpipe.tables.work import Screen

    return Screen(
        say=lambda text: console.print(text, soft_wrap=True, markup=False),
        warn=show_warning,
        fail=show_error,
        training=lambda total, step: training_progress(total, step),
        counting=counting_progress,
    )


def show_plan(jobs: Sequence[Job], device: torch.device) -> float:
    """Print what each run lacks and about how long its pre-training will take; returns hours."""
    from rich.table import Table as Shown

    from skelpipe.tables.jobs import hours_left, state_of
    from skelpipe.tables.work import in_words

    hours, states = hours_left(jobs, device), [state_of(job) for job in jobs]
    shown = Shown(title=f"runs, on {device}", title_justify="left")
    for column in ("run", "pre-training", "evaluations missing"):
        shown.add_column(column, no_wrap=column == "run", overflow="fold")
    shown.add_column("about", justify="right")
    for job, state, time in zip(jobs, states, hours, strict=True):
        place = f"step {state.step} of {state.total}" if state.step else "missing"
        shown.add_row(
            job.folder.name,
            place if state.left else "finished",
            ", ".join(asked.name for asked in state.missing) or "none",
            in_words(time) if state.left else "",
        )
    console.print(shown)
    missing = sum(not state.done for state in states)
    console.print(
        f"{missing} of {len(jobs)} runs are missing or incomplete: about {in_words(sum(hours))} of "
        "pre-training"
    )
    return sum(hours)


def check_hours(hours: float, device: torch.device, yes: bool) -> None:
    """Refuse days of work on a CPU without a yes."""
    if device.type == "cpu" and hours > _LONG_HOURS and not yes:
        raise UserError(
            f"what is missing would take about {hours / 24:.1f} days on this CPU",
            remedy="--scale tiny runs on one core; --yes starts this one all the same",
        )


def do_all(jobs: Sequence[Job], device: torch.device) -> list[Job]:
    """Do what is missing; returns the jobs that failed. A signal ends it with its own exit code."""
    from skelpipe.tables.work import run_all
    from skelpipe.train import RunInterrupted

    try:
        return run_all(jobs, device, screen())
    except RunInterrupted:
        errors.print("stopped and saved: the same command goes on from here")
        sys.exit(REQUEUE)


def tell_rest(jobs: Sequence[Job], failed: Sequence[Job]) -> None:
    """Warn of jobs that another process is at; raise a UserError if some failed."""
    from skelpipe.tables.jobs import state_of

    busy = [job for job in jobs if job not in failed and not state_of(job).done]
    if busy:
        show_warning(
            f"another process is at {_names(busy)}: the same command shows all when it is done"
        )
    if failed:
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed",
            found=_names(failed),
            remedy="the errors above say why",
        )


def show_grids(grids: Sequence[Grid]) -> None:
    """Print some tables of a report."""
    from rich.table import Table as Shown

    for grid in grids:
        shown = Shown(title=grid.title, title_justify="left")
        for number, column in enumerate(grid.columns):
            shown.add_column(column, justify="left" if number < grid.words else "right")
        for row in grid.rows:
            shown.add_row(*row)
        console.print(shown)


def _names(jobs: Sequence[Job]) -> str:
    return "; ".join(job.name for job in jobs)
