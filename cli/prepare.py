"""`skelpipe prepare`: raw recordings -> shards."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .console import console, errors, show_warning
from .options import REQUEUE, raw_roots, shards_root

if TYPE_CHECKING:
    from skelpipe.prepare.engine import Prepared
    from skelpipe.prepare.engine import Progress as Reading
    from skelpipe.shards.card import Card


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            help="Data set: ntu60, ntu120, pku1, pku2, or the manifest of your own (my.toml)."
        ),
    ],
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Split: xsub, xview, xset, or your own. Repeat it for several. Default: all."
        ),
    ] = None,
    raw: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder, zip or tar with the recordings. Repeat it for several. "
            "Default: $SKELPIPE_RAW, else data/raw; for your own, where the manifest says."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Root of the prepared sets. Default: $SKELPIPE_SHARDS, else data/shards."
        ),
    ] = None,
    pipeline: Annotated[
        str,
        typer.Option(
            help="How recordings are cleaned and normalised: ctrgcn (SLiM, MAMP) or agcn (PCM3, "
            "CMD); recordings keeps whole recordings as they are."
        ),
    ] = "ctrgcn",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SWITCH=VALUE",
            help="Turn a switch; the default is as published: "
            "gaps=kept (ctrgcn, agcn), centre=none (ctrgcn), tail=zeros (agcn), "
            "reversed=as_published (PKU-MMD). Repeatable.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "int16"],
        typer.Option(help="Of positions: int16 takes half the room, to 0.125 mm."),
    ] = "float32",
    recordings: Annotated[
        bool,
        typer.Option(
            "--recordings/--no-recordings",
            help="PKU-MMD: keep whole recordings too, for detection.",
        ),
    ] = True,
    engine: Annotated[
        Literal["local", "dask"], typer.Option(help="Who works: processes here, or a Dask cluster.")
    ] = "local",
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of a running Dask scheduler. Default: Dask starts --workers here.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes here. Default: one for every core.")
    ] = None,
    missing_list: Annotated[
        Path | None,
        typer.Option(
            help="List of recordings to leave out. Default: the official one, "
            "if it lies beside the raw data."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make the sets anew, in place of those that stand.")
    ] = False,
) -> None:
    """Turn raw recordings into shards, ready to train from.

    Archives are read in place and recognised by what is inside. Several splits are written from
    one reading. An interrupted run continues; a second one finds nothing to do. The same
    recordings give the same bytes with any number of workers.

    Examples:

        skelpipe prepare ntu60

        skelpipe prepare ntu60 --split xsub --split xview --raw nturgbd_skeletons_s001_to_s017.zip

        skelpipe prepare ntu120 --split xset --raw /data/ntu --out /fast/shards --workers 8

        skelpipe prepare pku1 --split xsub --pipeline agcn --set tail=zeros --dtype int16

        skelpipe prepare ntu120 --engine dask --scheduler tcp://10.0.0.1:8786
    """
    from skelpipe.errors import UserError
    from skelpipe.manifest import load_dataset
    from skelpipe.prepare.engine import prepare as run
    from skelpipe.prepare.normalise import find_pipeline

    if scheduler is not None and engine != "dask":
        raise UserError("--scheduler is for --engine dask", remedy="add --engine dask")
    manifest = load_dataset(dataset)
    if raw is None and manifest.format != "arrays":  # whose manifest says where they lie
        raw = raw_roots()
    switches = _switches(change or [])
    runs = [(pipeline, switches)]
    if recordings and pipeline != "recordings" and manifest.format == "pku":
        of_clips = find_pipeline(pipeline).switches
        # First, so that what is found as the newest set is the clips.
        runs.insert(0, ("recordings", {k: v for k, v in switches.items() if k not in of_clips}))
    warnings: dict[str, None] = {}
    for one, turned in runs:
        with stopped_told(), preparing_progress(one) as report:
            result = run(
                dataset,
                split or (),
                raw=raw or [],
                out=out or shards_root(),
                pipeline=one,
                switches=turned,
                precision=dtype if one == pipeline else "float32",
                engine=engine,
                scheduler=scheduler,
                workers=workers,
                missing_list=missing_list,
                force=force,
                progress=report,
            )
        for note in result.notes if one == pipeline else ():
            console.print(f"note: {note}", soft_wrap=True, markup=False)
        for made in result.sets:
            _show(made)
            warnings.update(dict.fromkeys(made.card.warnings))
    for warning in warnings:
        show_warning(warning)


@contextmanager
def stopped_told() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end with a word and the code that a scheduler requeues on."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        errors.print("stopped: finished shards are kept, and the same command continues")
        raise typer.Exit(REQUEUE) from interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def _switches(changes: list[str]) -> dict[str, str]:
    from skelpipe.errors import UserError

    for change in changes:
        if "=" not in change:
            raise UserError(
                f"--set {change} turns no switch", expected="SWITCH=VALUE, such as gaps=kept"
            )
    return dict(change.split("=", 1) for change in changes)


@contextmanager
def preparing_progress(what: str) -> Iterator[Callable[[Reading], None]]:
    """A bar of recordings with their rate and the time left; yields what takes the progress."""
    bar = Progress(
        TextColumn("preparing {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None, rate="")

        def report(now: Reading) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            bar.update(task, completed=now.recordings, total=now.of_recordings, rate=rate)

        yield report


def _show(made: Prepared) -> None:
    state = "prepared" if made.fresh else "nothing to do, it is there already"
    console.print(f"{made.folder}: {state}", soft_wrap=True, markup=False)
    console.print(counts_table(made.card))
    for kind, count in made.card.counts.odd.items():
        console.print(f"  odd, but read: {kind}: {count:,}", markup=False)
    if made.card.counts.rejected:
        console.print(rejections_table(made.card))
        console.print(
            f"  each of them: {made.folder / 'rejected.jsonl'}", soft_wrap=True, markup=False
        )


def counts_table(card: Card) -> Table:
    """Samples, bodies and frames of each part, beside the published number of samples."""
    counts = card.counts
    table = Table(title=f"{card.title}, {card.split}, {card.pipeline.name}", title_justify="left")
    table.add_column("part")
    for column in ("samples", "published", "bodies", "frames", "rejected", "left out by list"):
        table.add_column(column, justify="right")
    for part, tally in (("train", counts.train), ("test", counts.test)):
        published = f"{counts.published[part]:,}" if part in counts.published else ""
        table.add_row(part, f"{tally.samples:,}", published, f"{tally.bodies:,}",
                      f"{tally.frames:,}", "", "")  # fmt: skip
    table.add_section()
    table.add_row(
        "both",
        f"{counts.total.samples:,}",
        f"{sum(counts.published.values()):,}" if counts.published else "",
        f"{counts.total.bodies:,}",
        f"{counts.total.frames:,}",
        f"{sum(counts.rejected.values()):,}",
        _left_out(card),
    )
    return table


def _left_out(card: Card) -> str:
    if card.missing_list is None:
        return ""
    return f"{card.counts.missing:,}" if card.missing_list.applied else "no list"


def rejections_table(card: Card) -> Table:
    """Rejected samples by reason."""
    table = Table(title="rejected", title_justify="left")
    table.add_column("reason")
    table.add_column("samples", justify="right")
    for reason, count in sorted(card.counts.rejected.items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}")
    return table
