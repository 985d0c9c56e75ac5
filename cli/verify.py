"""`skelpipe verify`: whether prepared sets are whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from .console import console
from .options import shards_root

if TYPE_CHECKING:
    from skelpipe.shards.verify import Fault

_SHOWN = 20


def verify(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]", help="Prepared sets. Default: all under --shards."),
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(
            help="Root of the prepared sets. Default: $SKELPIPE_SHARDS, else data/shards."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads. Default: one for every core, at most 8.")
    ] = None,
) -> None:
    """Check every byte of prepared sets against their cards, and every sample against the index.

    Finds flipped bits, cut, swapped, missing and added files, and an index or a card of another
    preparation; tells which samples are hit. Exit code 0: all is whole; 2: something is damaged.

    Examples:

        skelpipe verify

        skelpipe verify data/shards/ntu60/ctrgcn/xsub
    """
    from skelpipe.errors import UserError
    from skelpipe.shards.verify import find_folders, misplaced
    from skelpipe.shards.verify import verify as check

    root = shards or shards_root()
    sets = folders or find_folders(root)
    if not sets:
        raise UserError(
            "there is no prepared set",
            file=root,
            remedy="make one with `skelpipe prepare ntu60 --raw ARCHIVE`, or name one",
        )
    damaged = 0
    for folder in sets:
        start = time.perf_counter()
        with _bar(folder) as report:
            faults = check(folder, report, workers)
        if not folders:  # under a root the place says which set it is
            faults += misplaced(folder)
        seconds = time.perf_counter() - start
        files = [file for file in folder.iterdir() if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        state = "[bold red]damaged[/]" if faults else "[green]whole[/]"
        console.print(f"{folder}: ", end="", markup=False, soft_wrap=True)
        console.print(
            f"{state}, {len(files)} files, {decimal(size)} in {seconds:.2g} s", soft_wrap=True
        )
        if faults:
            damaged += 1
            console.print(_table(faults))
            console.print(f"  to mend it: {_remedy(folder)}", markup=False, soft_wrap=True)
    if damaged:
        raise typer.Exit(2)


@contextmanager
def _bar(folder: Path) -> Iterator[Callable[[int, int], None]]:
    bar = Progress(
        TextColumn("checking {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(str(folder), total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report


def _table(faults: list[Fault]) -> Table:
    more = f", the first {_SHOWN}" if len(faults) > _SHOWN else ""
    table = Table(title=f"faults: {len(faults):,}{more}", title_justify="left")
    for column in ("file", "place", "found", "expected"):
        table.add_column(column, overflow="fold")
    for fault in faults[:_SHOWN]:
        cells = (fault.file, fault.place or "whole file", fault.found, fault.expected)
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    return table


def _remedy(folder: Path) -> str:
    from skelpipe.errors import UserError
    from skelpipe.shards.card import made_from, read_card

    command = "skelpipe prepare DATASET --split SPLIT"
    with suppress(UserError):  # a damaged card is not believed about this either
        card = read_card(folder)
        dtype = "" if card.precision == "float32" else f" --dtype {card.precision}"
        names = f"{made_from(card)} --split {card.split} --pipeline {card.pipeline.name}"
        turned = "".join(f" --set {name}={on}" for name, on in card.pipeline.switches.items())
        command = f"skelpipe prepare {names}{turned}{dtype}"
    return f"copy the set again, or make it anew: {command} --raw … --out … --force"
