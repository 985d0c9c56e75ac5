"""Progress of training on the screen: losses, learning rate, samples a second, time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .console import console

Record = dict[str, float]
_BETWEEN = 10.0
"""Seconds between plain lines of what is counted."""
_TERMS = ("mfm", "glcl", "koleo", "intra", "inter", "mask", "predict", "error")


@contextmanager
def training_progress(
    total: int, start: int = 0, *, every: int = 0
) -> Iterator[Callable[[Record], None]]:
    """A bar for a training run.

    Args:
        total: Steps of the run.
        start: Steps done before.
        every: Steps between plain lines where the screen is no terminal; 0: twenty in all.

    Yields:
        What takes each step's record.
    """
    every = every or max(total // 20, 1)
    bar = Progress(
        TextColumn("pre-training"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total, completed=start, losses="")

        validated = ""

        def report(record: Record) -> None:
            nonlocal validated
            if "knn" in record:
                validated = f"  k-NN {record['knn']:.1f} %"
            terms = [f"{name} {record[name]:.3f}" for name in _TERMS if name in record]
            text = (
                f"loss {record['loss']:.3f} ({', '.join(terms)})  lr {record['lr']:.1e}  "
                f"{record['samples_per_s']:.0f} samples/s{validated}"
            )
            step = int(record["step"])
            bar.update(task, completed=step, losses=text)
            due = step % every == 0 or step == total or "knn" in record
            if due and not console.is_terminal:
                console.print(f"step {step}/{total}  {text}", soft_wrap=True)

        yield report


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for so many of so many; yields what takes (done, total).

    Where the screen is no terminal: plain lines, one in ten seconds at most.
    """
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)
        told = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal told
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - told > _BETWEEN:
                told = time.monotonic()
                console.print(f"{what}: {done} of {total}", soft_wrap=True)

        yield report
