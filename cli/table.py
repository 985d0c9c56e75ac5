"""`skelpipe table`: every row of a paper's ablations run, evaluated and set beside what it says."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skelpipe.errors import UserError, nearest

from .console import console, errors, show_error, show_warning
from .options import REQUEUE, choose_device, newest_set, runs_root, subject_numbers

if TYPE_CHECKING:
    import torch

    from skelpipe.config import Recipe
    from skelpipe.protocols.settings import Protocol
    from skelpipe.report.ablations import Ablations

_LONG_HOURS = 24.0


@dataclass(frozen=True)
class Setting:
    """What all runs of a table share."""

    data: Path
    val_subjects: tuple[int, ...]
    protocols: tuple[Protocol, ...]
    features: str
    device: torch.device
    floor: str

    @property
    def part(self) -> str:
        """The queries, as evaluation records name them."""
        subjects = list(self.val_subjects)
        return f"validation subjects {subjects}" if subjects else "test"


@dataclass(frozen=True)
class Job:
    """A row and seed: pre-training, and evaluation by each protocol."""

    folder: Path
    recipe: Recipe
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"


@dataclass(frozen=True)
class State:
    """How far a job is: steps of pre-training done and in all, and evaluations to make."""

    step: int
    total: int
    evaluations: tuple[tuple[str, Protocol], ...]

    @property
    def left(self) -> float:
        """Share of pre-training that is to be done."""
        return 1 - self.step / max(self.total, 1)

    @property
    def done(self) -> bool:
        return self.step == self.total and not self.evaluations


def table(
    name: Annotated[
        str,
        typer.Argument(
            help="slim-ablations: SLiM's Tables 5-7; pcm3-ablations: PCM3's Tables 7-10."
        ),
    ],
    scale: Annotated[
        str, typer.Option(help="paper (the paper's size), or tiny (one CPU core).")
    ] = "paper",
    data: Annotated[
        Path | None, typer.Option(help="Prepared set. [default: the newest that fits the recipes]")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the runs of each row, such as 0,1.")] = "0",
    val_subjects: Annotated[
        str,
        typer.Option(help="Training subjects held out and queried; leaves the test part alone."),
    ] = "",
    only: Annotated[
        list[str] | None, typer.Option(help="Run only these rows, by their recipes. Repeatable.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of all rows. Repeatable.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Root of the runs. [default: $SKELPIPE_RUNS, else runs]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the table. [default: beside the runs, in table]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. [default: $OMP_NUM_THREADS, else all]")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be run, no more.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start even if it will take days on this CPU.")
    ] = False,
) -> None:
    """Pre-train and evaluate what is missing of a paper's ablations, and write the table.

    Runs lie in RUNS/NAME/SCALE/ROW-seedK. What is finished is never repeated, what is unfinished
    goes on. Several of these commands may work on the same folder: each takes runs that no other
    one is at. --only limits what is run; the table shows all that is there.

    Examples:

        skelpipe table slim-ablations --plan

        skelpipe table slim-ablations --scale tiny --seeds 0,1 --val-subjects 8,9 --threads 1

        skelpipe table slim-ablations --only slim-ablation-full --only slim-ablation-mfm

        skelpipe table pcm3-ablations --scale tiny --plan
    """
    import torch

    from skelpipe.protocols.features import default_kind
    from skelpipe.protocols.settings import load_protocol
    from skelpipe.report.ablations import load_ablations, row_recipes, run_folder

    ablations = load_ablations(name)
    if scale not in ablations.scales:
        raise UserError(f"unknown scale '{scale}'", remedy=nearest(scale, ablations.scales))
    recipes = row_recipes(ablations, scale, change or [])
    chosen = [_row(row, recipes) for words in only or recipes for row in words.split(",")]
    if threads:
        torch.set_num_threads(threads)
    pipeline = recipes[ablations.full].pipeline
    setting = Setting(
        data=data or newest_set(pipeline),
        val_subjects=subject_numbers(val_subjects),
        protocols=tuple(
            load_protocol(protocol, ablations.scales[scale].protocols.get(protocol, ()))
            for protocol in ablations.protocols
        ),
        features=default_kind(recipes[ablations.full]),
        device=choose_device(device),
        floor=ablations.full,
    )
    root = (runs or runs_root()) / name / scale
    numbers = _seeds(seeds)
    jobs = [
        Job(run_folder(root, row, seed), recipe, seed)
        for seed in numbers
        for row, recipe in recipes.items()
    ]
    for job in jobs:
        _check_same(job, setting)

    mine = [job for job in jobs if job.recipe.name in chosen]
    hours = _show_plan(mine, setting)
    if plan:
        return
    if setting.device.type == "cpu" and hours > _LONG_HOURS and not yes:
        raise UserError(
            f"what is missing would take about {hours / 24:.1f} days on this CPU",
            remedy="--scale tiny runs on one core; --yes starts this one all the same",
        )
    failed = _run_all(mine, setting)
    _write_table(ablations, scale, setting, root, numbers, out or root / "table")
    busy = [job for job in mine if job not in failed and not _state(job, setting).done]
    if busy:
        show_warning(
            f"another process is at {_names(busy)}: the same command shows all when it is done"
        )
    if failed:
        raise UserError(
            f"{len(failed)} of {len(mine)} runs failed",
            found=_names(failed),
            remedy="the errors above say why",
        )


def _names(jobs: Sequence[Job]) -> str:
    return "; ".join(job.name for job in jobs)


def _row(name: str, recipes: dict[str, Recipe]) -> str:
    if name not in recipes:
        raise UserError(f"unknown row '{name}'", remedy=nearest(name, recipes))
    return name


def _seeds(text: str) -> list[int]:
    try:
        found = sorted({int(number) for number in text.replace(",", " ").split()})
    except ValueError:
        found = []
    if not found or found[0] < 0:
        raise UserError("--seeds takes numbers", found=text, expected="such as --seeds 0,1")
    return found


def _check_same(job: Job, setting: Setting) -> None:
    """See that a run that stands in a job's folder is the one that is meant."""
    from skelpipe.checkpoint import read_run
    from skelpipe.shards.card import read_fitting_card

    card = read_fitting_card(setting.data, job.recipe.pipeline)
    if not (job.folder / "recipe.json").is_file():
        return
    run = read_run(job.folder)
    pairs = {
        "recipe": (run.recipe.model_copy(update={"title": job.recipe.title}), job.recipe),
        "seed": (run.data["seed"], job.seed),
        "data set": (run.data["dataset"], card.dataset),
        "split": (run.data["split"], card.split),
        "data digest": (run.data["data_digest"], card.data_digest),
        "val_subjects": (run.data["val_subjects"], list(setting.val_subjects)),
    }
    for key, (found, expected) in pairs.items():
        if found != expected:
            raise UserError(
                f"the run of {job.name}, was made with another {key}",
                file=job.folder,
                found=_differing(found, expected) if key == "recipe" else found,
                expected=_differing(expected, found) if key == "recipe" else expected,
                remedy="give these runs another root with --runs, or ask for what they were "
                "made with",
            )


def _differing(recipe: Any, other: Any) -> str:
    """The settings of a recipe that are otherwise in another one."""
    mine, theirs = recipe.model_dump(), other.model_dump()
    found = []
    for section, value in mine.items():
        if isinstance(value, dict):
            found += [
                f"{section}.{key}={part}"
                for key, part in value.items()
                if part != theirs[section][key]
            ]
        elif value != theirs[section]:
            found.append(f"{section}={value}")
    return ", ".join(found)


def _state(job: Job, setting: Setting) -> State:
    from skelpipe.checkpoint import Run, complete_checkpoints
    from skelpipe.report.tables import read_results
    from skelpipe.train import total_steps

    to_be = Run(job.folder, job.recipe, {"val_subjects": list(setting.val_subjects)})
    total = total_steps(to_be, setting.data)
    steps = [int(path.name) for path in complete_checkpoints(job.folder)]
    stored = [
        (record["subject"], record["protocol"])
        for record in read_results(job.folder)
        if record["part"] == setting.part
        and record["features"] == setting.features
        and (record["subject"] != "run" or record["checkpoint"] == str(total))
    ]
    # An untrained encoder is the same whatever the row: the full row's run keeps its results.
    subjects = ("run", "random-init") if job.recipe.name == setting.floor else ("run",)
    return State(
        step=steps[-1] if steps else 0,
        total=total,
        evaluations=tuple(
            (subject, protocol)
            for protocol in setting.protocols
            for subject in subjects
            if (subject, protocol.model_dump(mode="json")) not in stored
        ),
    )


def _show_plan(jobs: Sequence[Job], setting: Setting) -> float:
    """Print what each run lacks and about how long its pre-training will take; returns hours."""
    from rich.table import Table as Shown

    each = _hours_each(jobs, setting)
    shown = Shown(title=f"runs, on {setting.device}", title_justify="left")
    for column in ("run", "pre-training", "evaluations missing"):
        shown.add_column(column, no_wrap=column == "run", overflow="fold")
    shown.add_column("about", justify="right")
    for job in jobs:
        state = _state(job, setting)
        place = f"step {state.step} of {state.total}" if state.step else "missing"
        words = [
            protocol.name + ("" if subject == "run" else f" ({subject})")
            for subject, protocol in state.evaluations
        ]
        shown.add_row(
            job.folder.name,
            "finished" if state.left == 0 else place,
            ", ".join(words) or "none",
            _time(each * state.left) if state.left else "",
        )
    console.print(shown)
    total = each * sum(_state(job, setting).left for job in jobs)
    missing = sum(not _state(job, setting).done for job in jobs)
    console.print(
        f"{missing} of {len(jobs)} runs are missing or incomplete: about {_time(total)} of "
        "pre-training"
    )
    return total


def _hours_each(jobs: Sequence[Job], setting: Setting) -> float:
    """Hours of one run: the mean of finished ones, or else an estimate of the last."""
    from statistics import fmean

    from skelpipe.estimate import estimate
    from skelpipe.shards.card import read_card
    from skelpipe.stream.source import select
    from skelpipe.train import read_metrics

    taken = [
        sum(job.recipe.train.batch / record["samples_per_s"] for record in read_metrics(job.folder))
        for job in jobs
        if _state(job, setting).left == 0
    ]
    if taken:
        return fmean(taken) / 3600
    table = select(setting.data, "train", without=setting.val_subjects)
    return estimate(
        jobs[-1].recipe,
        samples=len(table),
        bodies=sum(table["bodies"].to_pylist()) / len(table),
        joints=len(read_card(setting.data).topology.joints),
        device=setting.device,
    ).hours


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < _LONG_HOURS else f"{hours / 24:.1f} days"


def _run_all(jobs: Sequence[Job], setting: Setting) -> list[Job]:
    """Do what is missing of every job that no other process is at; returns those that failed."""
    failed = []
    for number, job in enumerate(jobs, start=1):
        with _held(job.folder) as held:
            if held and not (state := _state(job, setting)).done:
                console.print(f"run {number} of {len(jobs)}: {job.name}", soft_wrap=True)
                try:
                    _run(job, state, setting)
                except UserError as error:  # the other rows do not depend on this one
                    show_error(str(error))
                    failed.append(job)
                left = sum(_state(other, setting).left for other in jobs)
                if left:
                    console.print(
                        f"about {_time(left * _hours_each(jobs, setting))} of pre-training left"
                    )
    return failed


@contextmanager
def _held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether a folder is this process's alone; a process that ends, or is ended, lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # a file system without locks
        yield True
    finally:
        os.close(descriptor)


def _run(job: Job, state: State, setting: Setting) -> None:
    from skelpipe.checkpoint import read_run
    from skelpipe.protocols.evaluate import evaluate, write_result
    from skelpipe.report.tables import headline
    from skelpipe.train import RunInterrupted, start_run, train

    from .progress import counting_progress, training_progress

    if (job.folder / "recipe.json").is_file():
        run = read_run(job.folder)
    else:
        run = start_run(
            job.folder, job.recipe, setting.data, seed=job.seed, val_subjects=setting.val_subjects
        )
    if state.step < state.total:
        try:
            with training_progress(state.total, state.step) as report:
                train(run, setting.data, device=setting.device, report=report, warn=show_warning)
        except RunInterrupted:
            errors.print("stopped and saved: the same command goes on from here")
            sys.exit(REQUEUE)
    for subject, protocol in state.evaluations:
        with counting_progress(f"{protocol.name}, {subject}") as count:
            found = evaluate(
                protocol,
                run.recipe,
                setting.data,
                subject="run" if subject == "run" else "random-init",
                device=setting.device,
                run=run,
                val_subjects=setting.val_subjects,
                seed=job.seed,
                report=count,
            )
        write_result(run.folder, found)
        network = found.record["results"][0]["network"]
        console.print(
            f"{job.name}: {protocol.name}, {network} {headline(found.record).text}",
            soft_wrap=True,
        )


def _write_table(
    ablations: Ablations,
    scale: str,
    setting: Setting,
    root: Path,
    seeds: Sequence[int],
    out: Path,
) -> None:
    from rich.table import Table as Shown

    from skelpipe.report.ablation_page import grids, write_report
    from skelpipe.report.ablations import ablation_report, read_entries

    entries = read_entries(root, ablations.recipes(), seeds)
    if not entries:
        console.print("nothing is evaluated yet: no table is written")
        return
    report = ablation_report(
        ablations, scale, entries, part=setting.part, features=setting.features
    )
    with _held(out, wait=True):
        stored = write_report(out, report)
    for grid in grids(report)[:-1]:  # all but the list of every ordering
        shown = Shown(title=grid.title, title_justify="left")
        for number, column in enumerate(grid.columns):
            shown.add_column(column, justify="left" if number < grid.words else "right")
        for row in grid.rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(report["noise_rule"])
    for warning in report["warnings"]:
        show_warning(warning)
    console.print(f"our reading: {'; '.join(report['readings'])}", soft_wrap=True, markup=False)
    for path in stored:
        console.print(f"stored: {path}", soft_wrap=True)
