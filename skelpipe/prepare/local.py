"""Runs tasks here: in this process, or in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.sharedctypes import SynchronizedArray

from skelpipe.errors import UserError

from .plan import Group
from .task import Job, write_group


class _StopError(Exception):
    """The run was stopped while a task was at work."""


def run_here(
    groups: list[Group],
    job: Job,
    report: Callable[[int, int], None],
    finished: Callable[[Group], None],
) -> None:
    """Work on groups one after the other.

    Args:
        groups: The tasks.
        job: What they need beside.
        report: Called several times a second with the units and bytes that are read.
        finished: Called with each group whose files are on disk.
    """
    units, size, last = 0, 0, 0.0

    def tick(read: int) -> None:
        nonlocal units, size, last
        units, size = units + 1, size + read
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            report(units, size)

    for group in groups:
        write_group(group, job, tick)
        finished(group)
        report(units, size)


def run_in_processes(
    groups: list[Group],
    job: Job,
    workers: int,
    report: Callable[[int, int], None],
    finished: Callable[[Group], None],
) -> None:
    """The same with so many groups at a time, each in a process.

    Raises:
        UserError: a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", 3)  # units, bytes, whether to stop
    try:
        with ProcessPoolExecutor(workers, context, _join, (shared,)) as pool:
            with _interrupts_held():
                running = {pool.submit(_work, group, job): group for group in groups}
            try:
                while running:
                    done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        finished(running.pop(future))
                    report(shared[0], shared[1])
            except BaseException:
                shared[2] = 1
                for future in running:
                    future.cancel()
                raise
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed",
            found="most likely the system ran out of memory",
            remedy="run the same command again with fewer --workers: it continues",
        ) from error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C back while processes are started, which inherit that and never get it.

    One that died of it halfway into its start would leave the run waiting for it.
    """
    held: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # this is what they inherit
    # Another thread of this process may get it all the same.
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number)) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if held:
        raise KeyboardInterrupt


_shared: SynchronizedArray[int] | None = None  # a worker process's link to the run, set by _join


def _join(shared: SynchronizedArray[int]) -> None:
    """Start of a worker process: it leaves Ctrl-C to the run, and does not outlive it."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _work(group: Group, job: Job) -> None:
    """A task in a worker process."""
    shared = _shared
    assert shared is not None, "_join has not run"

    def tick(read: int) -> None:
        with shared.get_lock():
            shared[0] += 1
            shared[1] += read
            stop = shared[2]
        if stop:
            raise _StopError

    write_group(group, job, tick)
