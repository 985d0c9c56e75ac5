"""`skelpipe demo`: the whole way once, on generated recordings, to a page one can look at."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skelpipe.errors import UserError

from .console import console, show_warning
from .options import choose_device
from .tables import show_table

if TYPE_CHECKING:
    import torch

    from skelpipe.checkpoint import Run
    from skelpipe.config import Recipe

_RECIPE = "slim-tiny"
_ARCHIVE = "generated.zip"
_MADE = (_ARCHIVE, "shards", "run", "report.html")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything the demo makes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of recordings, weights, order and views.")] = 0,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Of pre-training, at this machine's measured speed.")
    ] = 2.8,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of pre-training, instead of minutes: the same on any machine."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the demo that stands in the folder.")
    ] = False,
) -> None:
    """Generate, prepare, pre-train and evaluate, in about five minutes on two cores.

    Needs no download. It shows that everything works, and what training adds to its floors at this
    small scale. The recordings are generated: no number says anything about NTU RGB+D.

    Examples:

        skelpipe demo

        skelpipe demo --seed 1 --out demo-1

        skelpipe demo --epochs 12 --force    (the same amount of training on any machine)
    """
    began = time.monotonic()
    _make_room(out, force)
    data = _prepared(out, seed)

    from skelpipe.config import load_recipe
    from skelpipe.report.page import write_page
    from skelpipe.report.tables import read_results, result_tables
    from skelpipe.train import start_run

    device = choose_device("auto")
    if epochs is None:
        epochs = _affordable_epochs(load_recipe(_RECIPE), data, seed, minutes, device)
    recipe = load_recipe(_RECIPE, [f"train.epochs={epochs}"])
    console.print(f"recipe {recipe.name}, {epochs} epochs, seed {seed}, on {device}")
    run = start_run(out / "run", recipe, data, seed=seed)
    _train(run, data, device)
    _evaluate(run, data, seed, device)

    page = out / "report.html"
    about = (
        "Made by `skelpipe demo`. The recordings are generated: procedural motion of invented "
        "performers, written as the NTU RGB+D data set is and under names of its classes. Nothing "
        "in them was recorded from people, they are no NTU data, and no number here says anything "
        "about NTU RGB+D or about the method's accuracy there. The page shows that every stage "
        "works, and what training adds to its floors.",
        f"The encoder was pre-trained without labels for {epochs} epochs by the recipe "
        f"{recipe.name}, which is far smaller than the paper's. To save time the linear probe is "
        "trained on the features of one fixed crop of each sample (train view centre) where the "
        "full protocol draws a new random crop in every epoch; floors and network are treated "
        "alike.",
    )
    write_page(run, page, title="skelpipe demo", about=about, data=data, device=device)
    for table in result_tables(read_results(run.folder)):
        show_table(table)
    console.print(f"our reading: {'; '.join(recipe.readings())}", soft_wrap=True, markup=False)
    console.print("generated recordings: no number here says anything about NTU RGB+D")
    taken = (time.monotonic() - began) / 60
    console.print(f"{taken:.1f} minutes in all. Look at: {page}", soft_wrap=True, markup=False)


def _make_room(out: Path, force: bool) -> None:
    """See that the folder is empty, of an earlier demo's files at most."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / _ARCHIVE).is_file():
        raise UserError(
            "the folder holds something else than a demo",
            file=out,
            remedy="name another folder: skelpipe demo --out DIR",
        )
    if not force:
        raise UserError(
            "a demo stands here already",
            file=out,
            remedy="replace it with --force, or name another --out",
        )
    for name in _MADE:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _prepared(out: Path, seed: int) -> Path:
    """Generate recordings and prepare them; returns the prepared set."""
    from skelpipe.prepare.engine import prepare
    from skelpipe.prepare.synth import write_recordings

    from .progress import counting_progress

    archive = out / _ARCHIVE
    with counting_progress("generating") as report:
        count = write_recordings("ntu60", archive, seed=seed, progress=report)
    console.print(f"generated {count:,} recordings: {archive}", soft_wrap=True)
    with counting_progress("preparing") as report:
        made = prepare(
            "ntu60",
            ["xsub"],
            raw=[archive],
            out=out / "shards",
            progress=lambda now: report(now.recordings, now.of_recordings),
        )
    (prepared,) = made.sets
    console.print(
        f"prepared {prepared.card.counts.total.samples:,} samples: {prepared.folder}",
        soft_wrap=True,
    )
    return prepared.folder


def _affordable_epochs(
    recipe: Recipe, data: Path, seed: int, minutes: float, device: torch.device
) -> int:
    """Epochs that fit the minutes at the speed of some first steps; at most the recipe's own."""
    from skelpipe.stream.source import select
    from skelpipe.train import start_run, train

    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trial = start_run(Path(folder) / "run", recipe, data, seed=seed)
        train(
            trial,
            data,
            device=device,
            report=lambda record: rates.append(record["samples_per_s"]),
            stop_after=24,
        )
    settled = rates[8:]  # the first steps also pay for what is set up once
    rate = len(settled) / sum(1 / rate for rate in settled)
    fitting = int(60 * minutes * rate / len(select(data, "train")))
    chosen = max(1, min(fitting, recipe.train.epochs))
    console.print(
        f"this machine trains {rate:.0f} samples/s: {chosen} epochs take about "
        f"{chosen * len(select(data, 'train')) / rate / 60:.1f} minutes "
        f"(--epochs {chosen} repeats this choice)",
        soft_wrap=True,
    )
    return chosen


def _train(run: Run, data: Path, device: torch.device) -> None:
    from skelpipe.train import RunInterrupted, total_steps, train

    from .progress import training_progress

    try:
        with training_progress(total_steps(run, data)) as report:
            train(run, data, device=device, report=report, warn=show_warning)
    except RunInterrupted as error:
        raise UserError(
            "the demo was stopped by a signal",
            file=run.folder,
            remedy=f"skelpipe demo --force --out {run.folder.parent} starts it anew",
        ) from error


def _evaluate(run: Run, data: Path, seed: int, device: torch.device) -> None:
    """k-NN and linear accuracy of the run and of both floors, stored in the run."""
    from skelpipe.protocols.evaluate import evaluate, write_result
    from skelpipe.protocols.features import Kind
    from skelpipe.protocols.question import Subject
    from skelpipe.protocols.settings import load_protocol

    from .progress import counting_progress

    rows: tuple[tuple[Subject, Kind], ...] = (
        ("run", "patch"),
        ("run", "class"),
        ("random-init", "patch"),
        ("random-init", "class"),
        ("raw", "patch"),
    )
    for protocol in (load_protocol("knn"), load_protocol("linear", ["train_view=centre"])):
        for subject, kind in rows:
            with counting_progress(f"{protocol.name}, {subject}") as report:
                found = evaluate(
                    protocol,
                    run.recipe,
                    data,
                    subject=subject,
                    device=device,
                    run=run,
                    kind=kind,
                    seed=seed,
                    report=report,
                )
            write_result(run.folder, found)
