"""A table of results on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import console, show_warning

if TYPE_CHECKING:
    from skelpipe.report.tables import Table


def show_table(table: Table) -> None:
    """Print a table of results with what must be read beside it."""
    from rich.box import SIMPLE_HEAD  # narrow: a terminal of 80 columns holds most tables
    from rich.table import Table as Shown

    title = f"{table.title}\n{table.subtitle}"
    shown = Shown(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for number, column in enumerate(table.columns):
        words = " ".join((column, *(row[number] for row in table.rows))).split()
        shown.add_column(
            column,
            justify="left" if number < 2 else "right",
            overflow="fold",
            min_width=max(map(len, words), default=0) if number < 2 else None,
        )
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    console.print(f"protocol: {table.numbers}", soft_wrap=True, markup=False)
    for warning in table.warnings:
        show_warning(warning)
