"""`skelpipe bench`: how fast the way of the data is on this machine, beside the plain way."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .console import console

if TYPE_CHECKING:
    from skelpipe.bench import Row


class What(StrEnum):
    """What is measured."""

    prepare = "prepare"
    stream = "stream"
    views = "views"
    all_ = "all"


_TITLES = {
    What.prepare: "prepare: raw text to finished shards (MB of text)",
    What.stream: "stream: shards to samples, 1 process (MB of coordinates)",
    What.views: "views: the 14 of a sample under recipe slim",
}


def bench(
    what: Annotated[What, typer.Argument(help="The stage to measure.")] = What.all_,
    recordings: Annotated[
        int, typer.Option(min=4, max=5000, help="Generated recordings to measure with.")
    ] = 240,
    threads: Annotated[int, typer.Option(min=1, help="Of stream and views.")] = 1,
) -> None:
    """Measure a stage against the plain way of doing it, on generated recordings.

    Both run in the same rounds, in turns; rates and ratios are medians of three. Rates are this
    machine's; compare ratios. Everything is written to a temporary folder and removed.

    Examples:

        skelpipe bench views

        skelpipe bench prepare --recordings 1000      (steadier on a busy machine)
    """
    from skelpipe import bench as library

    def measure(stage: What) -> list[Row]:
        with console.status(f"measuring {stage}"):
            if stage is What.prepare:
                return library.prepare(recordings)
            if stage is What.stream:
                return library.stream(recordings, threads=threads)
            return library.views(recordings, threads=threads)

    console.print(library.machine(), soft_wrap=True)
    for stage in _TITLES if what is What.all_ else (what,):
        console.print(_table(stage, measure(stage)))


def _table(stage: What, rows: list[Row]) -> Table:
    table = Table(title=_TITLES[stage], title_justify="left")
    table.add_column("what")
    for column in ("rate", "MB/s", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        rate = f"{row.rate:,.0f} {row.unit}" if row.rate >= 100 else f"{row.rate:.3g} {row.unit}"
        megabytes = "" if row.megabytes is None else f"{row.megabytes:,.0f}"
        table.add_row(row.what, rate, megabytes, "" if row.ratio is None else f"{row.ratio:.1f}")
    return table
