"""`skelpipe pretrain`: self-supervised pre-training of a recipe on a prepared set."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from skelpipe.errors import UserError

from .console import console, errors, show_warning
from .options import REQUEUE, choose_device, newest_set, runs_root, subject_numbers

if TYPE_CHECKING:
    import torch

    from skelpipe.checkpoint import Run
    from skelpipe.config import Recipe

_LONG_HOURS = 24.0


def pretrain(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe by name or TOML file. [default: slim]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared set. [default: the newest that fits the recipe]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. [default: a new one under runs/]")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: optim.lr=1e-3. Repeatable.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Of weights, order and views. [default: 0]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, or the newest unfinished.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="float32 or bf16.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Global batch.")] = None,
    val_subjects: Annotated[
        str, typer.Option(help="Training subjects to hold out for choices, such as 8,9.")
    ] = "",
    knn_every: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs between k-NN accuracies on the --val-subjects."),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Where records go beside metrics.jsonl: tensorboard, wandb. Repeatable."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start even if it will take days or more memory.")
    ] = False,
) -> None:
    """Pre-train an encoder without labels.

    Examples:

        skelpipe pretrain                                  (recipe slim, newest prepared set)

        skelpipe pretrain --recipe slim-tiny --seed 1      (two CPU cores)

        skelpipe pretrain --set train.epochs=20 --set optim.lr=1e-3

        skelpipe pretrain --resume                         (continue the newest unfinished run)

        skelpipe pretrain --val-subjects 8,9 --knn-every 5 --log tensorboard
    """
    from skelpipe.checkpoint import complete_checkpoints
    from skelpipe.config import load_recipe
    from skelpipe.protocols.online import online_knn
    from skelpipe.report.loggers import open_logger
    from skelpipe.train import RunInterrupted, start_run, total_steps, train

    if resume:
        given = recipe or change or precision or batch or val_subjects or knn_every
        if given or seed is not None:
            raise UserError(
                "a resumed run keeps its recipe, seed and data",
                remedy="leave out --recipe, --set, --seed, --precision, --batch, --val-subjects, "
                "--knn-every; or start a new run without --resume",
            )
        run = _run_to_resume(out)
        folder = data or Path(run.data["folder"])
    else:
        changes = [*(change or [])]
        changes += [f"train.precision={precision}"] if precision else []
        changes += [f"train.batch={batch}"] if batch else []
        changes += [f"train.knn_every={knn_every}"] if knn_every else []
        chosen = load_recipe(recipe or "slim", changes)
        folder = data or newest_set(chosen.pipeline)
    where = choose_device(device)
    if not resume:
        _check_cost(chosen, folder, subject_numbers(val_subjects), where, yes)
        run = start_run(
            out or _new_folder(chosen.name, folder),
            chosen,
            folder,
            seed=seed or 0,
            val_subjects=subject_numbers(val_subjects),
        )
    for warning in run.data["warnings"]:
        show_warning(warning)
    console.print(f"recipe {run.recipe.name}, data {folder}, run {run.folder}", soft_wrap=True)

    from .progress import training_progress

    start = [int(path.name) for path in complete_checkpoints(run.folder)][-1:]
    total = total_steps(run, folder)
    if start:
        console.print(f"newest checkpoint: step {start[0]} of {total}")
    try:
        validate = online_knn(run, folder, where) if run.recipe.train.knn_every else None
        with ExitStack() as stack:
            logs = [stack.enter_context(open_logger(name, run)) for name in log or []]
            logs.append(stack.enter_context(training_progress(total, start[0] if start else 0)))

            def report(record: dict[str, float]) -> None:
                for each in logs:
                    each(record)

            last = train(
                run, folder, device=where, report=report, warn=show_warning, validate=validate
            )
    except RunInterrupted:
        errors.print(
            "stopped and saved. Continue: "
            f"skelpipe pretrain --resume --out {quote(str(run.folder))}",
            soft_wrap=True,
            markup=False,
        )
        sys.exit(REQUEUE)
    except UserError:
        if not resume:
            _forget_start(run)
        raise
    console.print(f"done: {last}", soft_wrap=True)
    console.print(
        f"next: skelpipe evaluate --protocol knn --run {quote(str(run.folder))}",
        soft_wrap=True,
        markup=False,
    )


def _forget_start(run: Run) -> None:
    """Remove a run that failed before its first step, so that the next attempt can stand there."""
    metrics = run.folder / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        return
    for name in ("recipe.json", "data.json", "metrics.jsonl"):
        (run.folder / name).unlink(missing_ok=True)
    if not any(run.folder.iterdir()):
        run.folder.rmdir()


def _run_to_resume(out: Path | None) -> Run:
    from skelpipe.checkpoint import newest_run, read_run

    return read_run(out) if out else newest_run(runs_root(), complete=False)


def _new_folder(recipe: str, data: Path) -> Path:
    from skelpipe.shards.card import read_card

    card = read_card(data)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return runs_root() / f"{now}-{recipe}-{card.dataset}-{card.split}"


def _check_cost(
    recipe: Recipe, data: Path, val_subjects: tuple[int, ...], device: torch.device, yes: bool
) -> None:
    """Print what the run will take, and stop where nobody can mean it."""
    import shutil

    from skelpipe.estimate import estimate, memory_of
    from skelpipe.shards.card import read_fitting_card
    from skelpipe.stream.source import select

    card = read_fitting_card(data, recipe.pipeline)
    table = select(data, "train", without=val_subjects)
    expected = estimate(
        recipe,
        samples=len(table),
        bodies=sum(table["bodies"].to_pylist()) / len(table),
        joints=len(card.topology.joints),
        device=device,
    )
    console.print(
        f"estimate on {device}: about {expected.hours:.2g} hours, "
        f"{expected.memory / 2**30:.2g} GiB of memory, {expected.disk / 2**30:.2g} GiB of disk"
    )
    if yes:
        return
    free = shutil.disk_usage(runs_root().absolute().anchor).free
    if expected.disk > free:
        raise UserError(
            "the checkpoints will not fit on the disk",
            found=f"{free:,} bytes free",
            expected=f"{expected.disk:,}",
            remedy="make room, or start with --yes",
        )
    remedy = (
        "skelpipe pretrain --recipe slim-tiny runs in minutes; --yes starts this one all the same"
    )
    if expected.memory > memory_of(device):
        raise UserError(
            f"recipe '{recipe.name}' needs more memory than {device} has",
            found=f"{memory_of(device) / 2**30:.0f} GiB",
            expected=f"about {expected.memory / 2**30:.0f} GiB at a batch of {recipe.train.batch}",
            remedy=f"--batch with a smaller number; {remedy}",
        )
    if device.type == "cpu" and expected.hours > _LONG_HOURS:
        raise UserError(
            f"recipe '{recipe.name}' would take about {expected.hours / 24:.0f} days on this CPU",
            remedy=remedy,
        )
