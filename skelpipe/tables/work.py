"""Do what is missing of a table's jobs; several processes may share them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skelpipe.checkpoint import read_run
from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import evaluate, write_result
from skelpipe.report.tables import headline
from skelpipe.train import start_run, train

from .jobs import Job, State, hours_left, state_of
from .provenance import note

Record = dict[str, Any]


@dataclass(frozen=True)
class Screen:
    """What the user is told, and how.

    Attributes:
        say, warn, fail: Take a sentence.
        training: From steps in all and done, a context that takes each step's record.
        counting: From what is counted, a context that takes (done, total).
    """

    say: Callable[[str], None]
    warn: Callable[[str], None]
    fail: Callable[[str], None]
    training: Callable[[int, int], AbstractContextManager[Callable[[dict[str, float]], None]]]
    counting: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether a folder is this process's alone; a process that ends, or is ended, lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # a file system without locks
        yield True
    finally:
        os.close(descriptor)


def run_all(jobs: Sequence[Job], device: torch.device, screen: Screen) -> list[Job]:
    """Do what is missing of every job that no other process is at; returns those that failed.

    Raises:
        RunInterrupted: A signal asked to stop; what is done is kept.
    """
    failed = []
    for number, job in enumerate(jobs, start=1):
        with held(job.folder) as mine:
            if not mine or (state := state_of(job)).done:
                continue
            screen.say(f"run {number} of {len(jobs)}: {job.name}")
            try:
                run_job(job, state, device, screen)
            except UserError as error:  # the other jobs do not depend on this one
                screen.fail(str(error))
                failed.append(job)
            left = sum(hours_left(jobs, device))
            if left:
                screen.say(f"about {in_words(left)} of pre-training left")
    return failed


def run_job(job: Job, state: State, device: torch.device, screen: Screen) -> None:
    """Do what a job lacks, and note in its folder what was done by what."""
    if (job.folder / "recipe.json").is_file():
        run = read_run(job.folder)
    else:
        run = start_run(
            job.folder, job.recipe, job.data, seed=job.seed, val_subjects=job.val_subjects
        )
    if state.step < state.total:
        note(job.folder, device, what="pre-training", begun_at_step=state.step)
        with screen.training(state.total, state.step) as report:
            train(run, job.data, device=device, report=report, warn=screen.warn)
    for asked in state.missing:
        began = time.monotonic()
        with screen.counting(asked.name) as count:
            found = evaluate(
                asked.protocol, run.recipe, asked.data, subject=asked.subject, device=device,
                run=run, val_subjects=job.val_subjects, seed=job.seed, report=count,
            )  # fmt: skip
        file = write_result(job.folder, found)
        note(job.folder, device, what=file.stem, seconds=round(time.monotonic() - began, 1))
        network, told = found.record["results"][0]["network"], headline(found.record).text
        screen.say(f"{job.name}: {asked.name}, {network} {told}")


def in_words(hours: float) -> str:
    """A time as a user would say it."""
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 24 else f"{hours / 24:.1f} days"
