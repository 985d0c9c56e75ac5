"""The memory of processes, looked at from outside while they run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PAUSE = 0.02  # seconds between two looks


def private_megabytes(work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """The most memory that a fresh process has to itself at work, and that any child of it has.

    What processes share, such as the code of libraries, is not counted. Both numbers are 0 where
    the system does not tell them (`/proc/*/smaps_rollup` of Linux does).

    Args:
        work: A function of a module, which the process calls; it must not fail.
        arguments: What with.
    """
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    own, children = 0.0, 0.0
    while process.is_alive():
        assert process.pid is not None
        own = max(own, _private(process.pid))
        children = max([children, *map(_private, _children(process.pid))])
        process.join(_PAUSE)
    if process.exitcode:
        raise RuntimeError(f"the measured process ended with {process.exitcode}")
    return own, children


def _private(process: int) -> float:
    with suppress(OSError):  # it has ended
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        sizes = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
        return sum(sizes) / 1024
    return 0.0


def _children(process: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, thread.read_text().split())
    return found
