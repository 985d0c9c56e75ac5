"""`skelpipe bench`: how fast the way of the data is on this machine, beside the plain way."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .console import console

if TYPE_CHECKING:
    from skelpipe.bench.measure import Row


class What(StrEnum):
    """What is measured."""

    prepare = "prepare"
    stream = "stream"
    views = "views"
    damage = "damage"
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
    machine's; compare ratios. Of prepare, private memory is told as well, for few files and for
    many. `damage` makes 2,000 faults in a small set and counts who finds them: `skelpipe verify`,
    our loader, plain webdataset; `all` leaves it out. Everything is written to a temporary folder
    and removed.

    Examples:

        skelpipe bench views

        skelpipe bench prepare --recordings 1000      (steadier on a busy machine)
    """
    from skelpipe.bench.measure import machine

    def measure(stage: What) -> list[Row]:
        with console.status(f"measuring {stage}"):
            if stage is What.prepare:
                from skelpipe.bench.prepare import prepare

                return prepare(recordings)
            if stage is What.stream:
                from skelpipe.bench.stream import stream

                return stream(recordings, threads=threads)
            from skelpipe.bench.views import views

            return views(recordings, threads=threads)

    if what is What.damage:
        from skelpipe.bench.damage import damage, markdown

        with console.status("damaging"):
            table = markdown(damage())
        console.print(table, markup=False, soft_wrap=True)
        return
    console.print(machine(), soft_wrap=True)
    for stage in _TITLES if what is What.all_ else (what,):
        console.print(_table(stage, measure(stage)))


def _table(stage: What, rows: list[Row]) -> Table:
    table = Table(title=_TITLES[stage], title_justify="left")
    table.add_column("what")
    for column in ("measured", "MB/s", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
        megabytes = "" if row.megabytes is None else f"{row.megabytes:,.0f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.1f}"
        table.add_row(row.what, f"{value} {row.unit}", megabytes, ratio)
    return table
