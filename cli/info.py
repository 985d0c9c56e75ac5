"""`skelpipe info`: the card of a prepared set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .console import console, show_warning
from .options import shards_root
from .prepare import counts_table, rejections_table

if TYPE_CHECKING:
    from skelpipe.shards.card import Card, MissingStamp


def info(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A prepared set. Default: the newest.")
    ] = None,
) -> None:
    """Show what a prepared set holds and where it came from.

    Examples:

        skelpipe info

        skelpipe info data/shards/ntu60/ctrgcn/xsub
    """
    from skelpipe.errors import UserError
    from skelpipe.shards.card import find_sets, read_card

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
    console.print(f"{folder}", soft_wrap=True, markup=False)
    console.print(_origin(card))
    console.print(f" data digest     {card.data_digest}", soft_wrap=True)
    console.print(counts_table(card))
    if card.counts.rejected:
        console.print(rejections_table(card))
    for field, title in (("subjects", "subject"), ("cameras", "camera"), ("setups", "setup")):
        console.print(_per(card, field, title))
    console.print(_classes(card))
    absent = len(card.classes) - len(card.counts.total.classes)
    if absent:
        console.print(f"{absent} more classes have no sample")
    for warning in card.warnings:
        show_warning(warning)


def _origin(card: Card) -> Table:
    shards = [name for name in card.files if name.endswith(".tar")]
    switches = ", ".join(f"{name} = {value}" for name, value in card.pipeline.switches.items())
    size = sum(stamp.size for stamp in card.files.values())
    rows = {
        "data set": f"{card.title} ({card.dataset}), split {card.split}",
        "skeleton": f"{card.topology.name}, {len(card.topology.joints)} joints",
        "pipeline": f"{card.pipeline.name} version {card.pipeline.version} {switches}".rstrip(),
        "precision": card.precision,
        "raw recordings": f"{card.source.recordings:,}, digest {card.source.digest[:16]}",
        "missing list": _missing(card.missing_list),
        "files": f"{len(shards)} shards, {size / 1e6:,.1f} MB in all",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _missing(listed: MissingStamp | None) -> str:
    if listed is None:
        return "the data set has none"
    whose = "the official one" if listed.official else "not the official one"
    return f"{listed.count} names, {whose}" if listed.applied else "not applied"


def _per(card: Card, field: str, title: str) -> Table:
    """Samples of each part per subject, camera or setup; one row a part."""
    table = Table(title=f"samples per {title}", title_justify="left", show_header=False, box=None)
    for part, tally in (("train", card.counts.train), ("test", card.counts.test)):
        numbers = getattr(tally, field)
        text = "  ".join(f"{number}: {numbers[number]:,}" for number in sorted(numbers))
        table.add_row(part, text or "none")
    return table


def _classes(card: Card) -> Table:
    table = Table(title="samples per class", title_justify="left")
    for column in ("label", "class"):
        table.add_column(column)
    for column in ("train", "test"):
        table.add_column(column, justify="right")
    counts = card.counts
    for label in sorted(counts.total.classes):
        train, test = (tally.classes.get(label, 0) for tally in (counts.train, counts.test))
        table.add_row(str(label), card.classes[label], f"{train:,}", f"{test:,}")
    return table
