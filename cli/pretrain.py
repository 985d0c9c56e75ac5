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
from .options import REQUEUE, choose_device, newest_set, runs_root, set_folder, subject_numbers

if TYPE_CHECKING:
    import torch

    from skelpipe.checkpoint import Run
    from skelpipe.config import Recipe
    from skelpipe.distributed import Launch

_LONG_HOURS = 24.0


def pretrain(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe by name or TOML file. [default: slim]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            parser=set_folder,
            metavar="DIR|URL",
            help="Prepared set. [default: the newest that fits the recipe]",
        ),
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
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Samples at once on a device. [default: as many as fit]"),
    ] = None,
    knn_every: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs between k-NN accuracies on the --val-subjects."),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Where records go beside metrics.jsonl: tensorboard, wandb. Repeatable."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after which a silent rank is given up.")
    ] = 20.0,
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

        torchrun --standalone --nproc-per-node 4 -m -- skelpipe.cli pretrain
    """
    from skelpipe import distributed

    ranks = distributed.launch()
    given = recipe or change or precision or batch or micro_batch or val_subjects or knn_every
    if resume and (given or seed is not None):
        raise UserError(
            "a resumed run keeps its recipe, seed and data",
            remedy="leave out --recipe, --set, --seed, --precision, --batch, --micro-batch, "
            "--val-subjects, --knn-every; or start a new run without --resume",
        )
    if ranks.rank:
        console.quiet = True
    where = choose_device(device, ranks.local_rank)
    changes = [*(change or [])]
    changes += [f"train.precision={precision}"] if precision else []
    changes += [f"train.batch={batch}"] if batch else []
    changes += [f"train.micro_batch={micro_batch}"] if micro_batch else []
    changes += [f"train.knn_every={knn_every}"] if knn_every else []
    with distributed.process_group(where, timeout):

        def choose() -> str:
            found = _run_to_continue(out, resume, ranks)
            if found is None:
                subjects = subject_numbers(val_subjects)
                found = _start(
                    recipe or "slim", changes, data, out, seed or 0, subjects, where, yes
                )
            return str(found)

        place = Path(distributed.first_rank_alone(choose))
        _train(place, data, where, [] if ranks.rank else log or [], resume)


def _run_to_continue(out: Path | None, resume: bool, ranks: Launch) -> Path | None:
    """The folder of the run to continue: as asked, or what a launcher that restarts had begun."""
    from skelpipe.checkpoint import newest_run, read_run

    if resume:
        return (read_run(out) if out else newest_run(runs_root(), complete=False)).folder
    if not ranks.restarts:
        return None
    roots = [out] if out else sorted(runs_root().glob("*"))
    runs = [read_run(folder) for folder in roots if (folder / "recipe.json").exists()]
    begun = [run for run in runs if run.data.get("launch") == ranks.name]
    return max(begun, key=lambda run: str(run.data["started"])).folder if begun else None


def _start(
    recipe: str,
    changes: list[str],
    data: Path | None,
    out: Path | None,
    seed: int,
    val_subjects: tuple[int, ...],
    device: torch.device,
    yes: bool,
) -> Path:
    """Begin a new run; gives its folder."""
    from skelpipe.config import load_recipe
    from skelpipe.train import start_run

    chosen = load_recipe(recipe, changes)
    folder = data or newest_set(chosen.pipeline)
    _check_cost(chosen, folder, val_subjects, device, yes)
    place = out or _new_folder(chosen.name, folder)
    return start_run(place, chosen, folder, seed=seed, val_subjects=val_subjects).folder


def _train(
    place: Path, data: Path | None, device: torch.device, logs: list[str], resume: bool
) -> None:
    """Train a run that has begun, on all ranks."""
    from skelpipe import distributed
    from skelpipe.checkpoint import check_own, complete_checkpoints, read_run
    from skelpipe.protocols.online import online_knn
    from skelpipe.report.loggers import open_logger
    from skelpipe.train import RunInterrupted, total_steps, train

    from .progress import training_progress

    run = read_run(place)
    distributed.wait_for_all()  # a rank that fails below may take the new folder away
    check_own(run)
    folder = data or set_folder(run.data.get("url") or run.data["folder"])
    for warning in run.data["warnings"]:
        show_warning(warning)
    place_of_data = run.data.get("url") or folder
    console.print(
        f"recipe {run.recipe.name}, data {place_of_data}, run {run.folder}", soft_wrap=True
    )
    start = [int(path.name) for path in complete_checkpoints(run.folder)][-1:]
    total = total_steps(run, folder)
    if start:
        console.print(f"newest checkpoint: step {start[0]} of {total}")
    elif resume:
        console.print("no complete checkpoint yet: starting at the first step")
    try:
        validate = online_knn(run, folder, device) if run.recipe.train.knn_every else None
        with ExitStack() as stack:
            shown = [stack.enter_context(open_logger(name, run)) for name in logs]
            shown.append(stack.enter_context(training_progress(total, start[0] if start else 0)))

            def report(record: dict[str, float]) -> None:
                for each in shown:
                    each(record)

            last = train(
                run, folder, device=device, report=report, warn=show_warning, validate=validate
            )
    except RunInterrupted:
        if not console.quiet:
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
        f"skelpipe pretrain --recipe {recipe.method}-tiny runs in minutes; --yes starts this one "
        "all the same"
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
