"""`skelpipe compare`: results of several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import console, show_warning


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Also write this .md, .html or .json file.")
    ] = None,
) -> None:
    """Put all stored results of some runs side by side, with differences to the first one.

    Only like is compared with like: the same protocol settings, prepared set, part and features.
    What is not alike is shown without a difference, and what differs is said. Floors stand below
    the runs they belong to.

    Examples:

        skelpipe compare runs/mine runs/mamp

        skelpipe compare runs/seed-0 runs/seed-1 runs/seed-2 --out seeds.html
    """
    from rich.markup import escape
    from rich.table import Table as Shown

    from skelpipe.checkpoint import read_run
    from skelpipe.report.comparison import cells, check_ending, notes, write_comparison
    from skelpipe.report.comparison import compare as compare_runs

    if out is not None:
        check_ending(out)
    found = compare_runs([read_run(folder) for folder in runs])
    for group in found["groups"]:
        columns, rows = cells(group)
        shown = Shown(title=escape(group["title"]), title_justify="left")
        for number, column in enumerate(columns):
            shown.add_column(
                escape(column), justify="left" if number < 3 else "right", overflow="fold"
            )
        for row in rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
        for note in notes(group):
            console.print(note, soft_wrap=True, markup=False)
    for warning in found["warnings"]:
        show_warning(warning)
    if out is not None:
        write_comparison(out, found)
        console.print(f"stored: {out}", soft_wrap=True)
