"""`skelpipe info`: what a prepared set holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.columns import Columns
from rich.table import Table
from rich.text import Text

from .console import console, show_warning
from .options import shards_root
from .prepare import counts_table, rejections_table

if TYPE_CHECKING:
    import pyarrow as pa

    from skelpipe.shards.card import Card

_BAR = 40  # letters of the longest bar
_FEW = 12  # subjects, cameras or setups that a plain table still shows well


def info(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A prepared set. Default: the newest.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write the same as a page with plots and samples in motion."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the samples of the page.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
) -> None:
    """Show what a prepared set holds and where it came from.

    Counts of each part, class, subject, camera and setup, lengths, what was rejected, size.

    Examples:

        skelpipe info

        skelpipe info data/shards/ntu60/ctrgcn/xsub

        skelpipe info --html ntu60.html
    """
    from skelpipe.errors import UserError
    from skelpipe.shards.card import find_sets, read_card
    from skelpipe.shards.index import read_index

    if folder is None:
        root = shards_root()
        sets = find_sets(root)
        if not sets:
            raise UserError(
                "there is no prepared set",
                file=root,
                remedy="make one with `skelpipe prepare ntu60 --raw ARCHIVE`, or name one",
            )
        folder = sets[0]
    card = read_card(folder)
    if html is not None:
        _write_page(folder, html, seed, force)
        return
    index = read_index(folder)
    _show(folder, card, index)
    for warning in card.warnings:
        show_warning(warning)


def _write_page(folder: Path, out: Path, seed: int, force: bool) -> None:
    from skelpipe.errors import UserError
    from skelpipe.report.set_page import write_set_page

    if out.exists() and not force:
        raise UserError("the page exists already", file=out, remedy="--force replaces it")
    write_set_page(folder, out, seed=seed)
    console.print(f"look at: {out}", soft_wrap=True, markup=False)


def _show(folder: Path, card: Card, index: pa.Table) -> None:
    from skelpipe.report.set_facts import NUMBERED, origin, per_number

    console.print(f"{folder}", soft_wrap=True, markup=False)
    facts = Table(show_header=False, box=None)
    for name, value in origin(card).items():
        facts.add_row(name, Text(value))
    console.print(facts)
    console.print(f" data digest      {card.data_digest}", soft_wrap=True)
    console.print(counts_table(card))
    if card.counts.rejected:
        console.print(rejections_table(card))
    if card.counts.odd:
        console.print(_odd(card))
    for field, what in NUMBERED:
        _show_numbered(what, field, per_number(card, field))
    _show_lengths(card, index)
    labelled = len(card.counts.total.classes)
    if not labelled:
        console.print("whole recordings have no class")
        return
    console.print(_classes(card))
    if labelled < len(card.classes):
        console.print(f"{len(card.classes) - labelled} more classes have no sample")


def _odd(card: Card) -> Table:
    table = Table(title="odd, but read", title_justify="left")
    table.add_column("what")
    table.add_column("times", justify="right")
    for kind, count in sorted(card.counts.odd.items(), key=lambda item: -item[1]):
        table.add_row(kind, f"{count:,}")
    return table


def _show_numbered(what: str, field: str, counts: Mapping[str, tuple[int, int]]) -> None:
    """Samples per subject, camera or setup: a table where they are few, else side by side."""
    from skelpipe.report.set_facts import NOT_STATED

    if list(counts) == [NOT_STATED]:
        console.print(f"the {field} are not stated")
    elif len(counts) <= _FEW:
        console.print(_split_table(what, ((name, *pair) for name, pair in counts.items())))
    else:
        for place, part in enumerate(("train", "test")):
            cells = [f"{name}: {pair[place]:,}" for name, pair in counts.items() if pair[place]]
            console.print(f"samples per {what}, {part} ({len(cells)} {field})", style="italic")
            console.print(Columns(cells, equal=True, padding=(0, 3)))


def _show_lengths(card: Card, index: pa.Table) -> None:
    from skelpipe.report.histogram import bodies, lengths

    if not len(index):
        return
    found = lengths(index)
    least, lower, median, upper, most = found.quartiles
    console.print(
        f"frames per sample: {least:g} at least, quartiles {lower:g}, {median:g}, {upper:g}, "
        f"{most:g} at most; the median is {median / card.fps:.1f} s",
        soft_wrap=True,
    )
    both = [sum(pair) for pair in zip(found.train, found.test, strict=True)]
    block = "█" if console.encoding.lower().startswith("utf") else "#"
    bars = Table(show_header=False, box=None)
    bars.add_column(justify="right")
    bars.add_column(justify="right")
    for name, count in zip(found.bins, both, strict=True):
        bars.add_row(name, f"{count:,}", block * -(-count * _BAR // max(both)))
    console.print(bars)
    per_bodies = ((str(number), *pair) for number, pair in bodies(index).items())
    console.print(_split_table("number of bodies", per_bodies))


def _classes(card: Card) -> Table:
    from skelpipe.report.set_facts import per_class

    counts = per_class(card).items()
    return _split_table(
        "class", ((f"{label}  {card.classes[label]}", *pair) for label, pair in counts)
    )


def _split_table(what: str, rows: Iterable[tuple[str, int, int]]) -> Table:
    table = Table(title=f"samples per {what}", title_justify="left")
    table.add_column(what, overflow="fold")
    for column in ("train", "test"):
        table.add_column(column, justify="right")
    for name, train, test in rows:
        table.add_row(Text(name), f"{train:,}", f"{test:,}")
    return table
