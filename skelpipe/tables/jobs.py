"""The runs that a table is made of: what each is to be, how far it is, how long it will take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from skelpipe.checkpoint import Run, complete_checkpoints, read_run
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.estimate import estimate
from skelpipe.protocols.evaluate import part_name
from skelpipe.protocols.features import default_kind
from skelpipe.protocols.question import Subject
from skelpipe.protocols.settings import Protocol
from skelpipe.report.tables import read_results
from skelpipe.shards.card import CARD, read_card, read_fitting_card
from skelpipe.stream.source import select
from skelpipe.train import read_metrics, total_steps

Record = dict[str, Any]

_BODIES = 1.22
"""Mean bodies of a sample of NTU RGB+D, for estimates of sets that are not prepared yet."""


@dataclass(frozen=True)
class Asked:
    """An evaluation of a run's encoder, or of an untrained one of its recipe.

    Attributes:
        protocol: By which.
        data: The prepared set.
        subject: "run" or "random-init".
    """

    protocol: Protocol
    data: Path
    subject: Subject = "run"

    @property
    def name(self) -> str:
        name = "-".join(filter(None, (self.protocol.name, self.protocol.variant)))
        return name if self.subject == "run" else f"{name} ({self.subject})"


@dataclass(frozen=True)
class Job:
    """A run: its pre-training, and the evaluations that are asked of it.

    Attributes:
        folder: Where it lies.
        recipe: Its recipe.
        seed: Of pre-training and of evaluations.
        data: The prepared set that it is trained on.
        asked: The evaluations.
        val_subjects: Training subjects held out, and queried instead of the test part.
        on: The data set in words, where jobs of a table have several.
        about: Training samples, about, as long as the set is not prepared.
    """

    folder: Path
    recipe: Recipe
    seed: int
    data: Path
    asked: tuple[Asked, ...]
    val_subjects: tuple[int, ...] = ()
    on: str = ""
    about: int = 0

    @property
    def name(self) -> str:
        return f"{self.recipe.name}{f' on {self.on}' if self.on else ''}, seed {self.seed}"

    @property
    def prepared(self) -> bool:
        """Whether its training set stands."""
        return (self.data / CARD).is_file()


@dataclass(frozen=True)
class State:
    """How far a job is: steps of pre-training done and in all, and evaluations to make."""

    step: int
    total: int
    missing: tuple[Asked, ...]

    @property
    def left(self) -> float:
        """Share of pre-training that is to be done."""
        return 1 - self.step / max(self.total, 1)

    @property
    def done(self) -> bool:
        return self.step == self.total and not self.missing


def state_of(job: Job) -> State:
    """How far a job is, from its folder alone; nothing of it is done before its set is prepared."""
    if not job.prepared:
        return State(0, 0, job.asked)
    total = _total(job)
    steps = [int(path.name) for path in complete_checkpoints(job.folder)]
    records = read_results(job.folder)
    missing = tuple(asked for asked in job.asked if not _matching(job, asked, records, total))
    return State(steps[-1] if steps else 0, total, missing)


def stored(job: Job, asked: Asked) -> Record | None:
    """The record of an evaluation, of the run's last step; None where it was not made yet."""
    if not job.prepared:
        return None
    found = _matching(job, asked, read_results(job.folder), _total(job))
    return found[0] if found else None


def _total(job: Job) -> int:
    return total_steps(
        Run(job.folder, job.recipe, {"val_subjects": list(job.val_subjects)}), job.data
    )


def _matching(job: Job, asked: Asked, records: Iterable[Record], total: int) -> list[Record]:
    """Records of an evaluation; an untrained encoder's are of any step."""
    if not (asked.data / CARD).is_file():
        return []
    card = read_card(asked.data)
    wanted = {
        "subject": asked.subject,
        "protocol": asked.protocol.model_dump(mode="json"),
        "part": part_name(job.val_subjects),
        "features": default_kind(job.recipe),
        "dataset": card.dataset,
        "split": card.split,
        "data_digest": card.data_digest,
    }
    return [
        record
        for record in records
        if all(record.get(key) == value for key, value in wanted.items())
        and (asked.subject != "run" or record["checkpoint"] == str(total))
    ]


def check_same(job: Job) -> None:
    """See that a run that stands in a job's folder is the one that is meant.

    Raises:
        UserError: It was made with another recipe, seed, set or other held-out subjects.
    """
    card = read_fitting_card(job.data, job.recipe.pipeline)
    if not (job.folder / "recipe.json").is_file():
        return
    run = read_run(job.folder)
    pairs = {
        "recipe": (run.recipe.model_copy(update={"title": job.recipe.title}), job.recipe),
        "seed": (run.data["seed"], job.seed),
        "data set": (run.data["dataset"], card.dataset),
        "split": (run.data["split"], card.split),
        "data digest": (run.data["data_digest"], card.data_digest),
        "val_subjects": (run.data["val_subjects"], list(job.val_subjects)),
    }
    for key, (found, expected) in pairs.items():
        if found != expected:
            raise UserError(
                f"the run of {job.name}, was made with another {key}",
                file=job.folder,
                found=_differing(found, expected) if key == "recipe" else found,
                expected=_differing(expected, found) if key == "recipe" else expected,
                remedy="give these runs another root with --runs, or ask for what they were "
                "made with",
            )


def _differing(recipe: Any, other: Any) -> str:
    """The settings of a recipe that are otherwise in another one."""
    mine, theirs = recipe.model_dump(), other.model_dump()
    found = []
    for section, value in mine.items():
        if isinstance(value, dict):
            found += [
                f"{section}.{key}={part}"
                for key, part in value.items()
                if part != theirs[section][key]
            ]
        elif value != theirs[section]:
            found.append(f"{section}={value}")
    return ", ".join(found)


def hours_left(jobs: Sequence[Job], device: torch.device) -> list[float]:
    """About how long the pre-training of each job will still take.

    Estimates, times what finished jobs of the same list took against theirs.
    """
    states = [state_of(job) for job in jobs]
    ratios = [
        took / guess
        for job, state in zip(jobs, states, strict=True)
        if state.total and not state.left
        if (took := hours_taken(job.folder)) and (guess := _estimated(job, device))
    ]
    factor = fmean(ratios) if ratios else 1.0
    return [
        factor * state.left * _estimated(job, device) if state.left else 0.0
        for job, state in zip(jobs, states, strict=True)
    ]


def hours_taken(folder: Path) -> float:
    """Hours that the steps of a run took: those that stand, however often it was stopped."""
    if not (folder / "metrics.jsonl").is_file():
        return 0.0
    batch = read_run(folder).recipe.train.batch
    return sum(batch / record["samples_per_s"] for record in read_metrics(folder)) / 3600


def _estimated(job: Job, device: torch.device) -> float:
    """Hours of a whole pre-training."""
    if not job.prepared:
        samples, bodies, joints = job.about, _BODIES, 25
    else:
        table = select(job.data, "train", without=job.val_subjects)
        samples, bodies = len(table), sum(table["bodies"].to_pylist()) / max(len(table), 1)
        joints = len(read_card(job.data).topology.joints)
    found = estimate(job.recipe, samples=samples, bodies=bodies, joints=joints, device=device)
    return found.hours
