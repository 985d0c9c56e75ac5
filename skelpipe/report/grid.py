"""A table of texts under a heading, for the screen, for Markdown and for pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table of texts under a heading; its first columns are words, as many as said."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int = 1


def markdown_grid(grid: Grid) -> list[str]:
    """Lines of Markdown: the heading, the table and an empty line."""
    marks = ["---"] * grid.words + ["---:"] * (len(grid.columns) - grid.words)
    rows: list[Sequence[str]] = [grid.columns, marks, *grid.rows]
    return [f"## {grid.title}", "", *(f"| {' | '.join(cells)} |" for cells in rows), ""]
