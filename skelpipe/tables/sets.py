"""The prepared sets that a table needs: which stand, which raw data makes, and which are absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skelpipe.errors import UserError
from skelpipe.manifest import AnyDataset, NtuDataset, PkuDataset, load_dataset
from skelpipe.prepare.engine import Progress, find_material, prepare
from skelpipe.prepare.synth import write_recordings
from skelpipe.shards.card import CARD, place_of

from .work import held

_ABOUT = {"pku1": 18841, "pku2": 5332}
"""Training samples of X-Sub, about, where no count is published; for estimates alone."""
_SMALL: dict[str, dict[str, Any]] = {
    "ntu60": {"classes": 12, "subjects": 12, "cameras": 3, "replications": 2},
    "ntu120": {"classes": 24, "subjects": 8, "cameras": 3, "replications": 2},
    "pku1": {"classes": 12, "subjects": 9, "cameras": 3, "replications": 2, "actions": 8},
    "pku2": {"classes": 12, "subjects": 9, "cameras": 3, "replications": 3, "actions": 8},
}
"""Sizes of generated data sets: at most 1,000 clips each, both parts of every split."""
_GENERATED = 500
"""Training samples of each of them, about."""


@dataclass(frozen=True)
class SetName:
    """A prepared set by what it is made of."""

    dataset: str
    split: str
    pipeline: str

    def folder(self, root: Path) -> Path:
        """Where it lies below a root of prepared sets."""
        return root / place_of(self.dataset, self.pipeline, "float32") / self.split

    def stands(self, root: Path) -> bool:
        return (self.folder(root) / CARD).is_file()

    def __str__(self) -> str:
        return f"{self.dataset} {self.split} ({self.pipeline})"


@dataclass(frozen=True)
class Absent:
    """A set that can not be had.

    Attributes:
        name: The set.
        reason: What was looked for in vain.
        remedy: What to put where.
    """

    name: SetName
    reason: str
    remedy: str


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Attributes:
        raw: By data set, where its raw data is looked for.
        shards: Root of prepared sets.
    """

    raw: Mapping[str, Sequence[Path]]
    shards: Path


def find_absent(names: Iterable[SetName], places: Places) -> list[Absent]:
    """Sets that neither stand nor can be prepared from the raw data; nothing is written."""
    found = []
    for group in _groups(name for name in names if not name.stands(places.shards)):
        if len(group) > 1 and not _reason(group, places):
            continue  # archives are listed once for all of its splits, mostly
        for name in group:
            if reason := _reason([name], places):
                raw = places.raw[name.dataset]
                found.append(Absent(name, reason, _remedy(load_dataset(name.dataset), raw)))
    return found


def _groups(names: Iterable[SetName]) -> list[list[SetName]]:
    """Splits of one data set and pipeline together: they are made from one reading."""
    found: dict[tuple[str, str], list[SetName]] = {}
    for name in dict.fromkeys(names):
        found.setdefault((name.dataset, name.pipeline), []).append(name)
    return list(found.values())


def _reason(group: Sequence[SetName], places: Places) -> str:
    """Why some splits cannot all be prepared; nothing where they can."""
    dataset, pipeline = group[0].dataset, group[0].pipeline
    splits = [name.split for name in group]
    try:
        find_material(dataset, splits, raw=places.raw[dataset], pipeline=pipeline)
    except UserError as error:
        return str(error)
    return ""


def _remedy(dataset: AnyDataset, raw: Sequence[Path]) -> str:
    """Which files to put where."""
    place = ", ".join(map(str, raw))
    if isinstance(dataset, NtuDataset):
        return (
            f"put the skeletons of {dataset.title}, zipped as they are, into {place}: "
            f"{dataset.where}; beside them the list of missing ones: {dataset.missing.where}"
        )
    assert isinstance(dataset, PkuDataset)  # the papers' tables have no others
    return f"put skeletons, labels and split lists of {dataset.title} into {place}: {dataset.where}"


def prepare_sets(
    names: Iterable[SetName],
    places: Places,
    *,
    say: Callable[[str], None],
    progress: Callable[[Progress], None],
) -> list[Absent]:
    """Prepare the sets that do not stand; splits of a data set are made from one reading.

    Another process that is at the same data set is waited for. What cannot be prepared is
    returned, with the error for a reason: other data sets do not depend on it.
    """
    failed: list[Absent] = []
    for wanted in _groups(names):
        if all(name.stands(places.shards) for name in wanted):
            continue
        dataset, pipeline = wanted[0].dataset, wanted[0].pipeline
        with held(places.shards / dataset, wait=True):
            missing = [name for name in wanted if not name.stands(places.shards)]
            if not missing:
                continue
            try:
                made = prepare(
                    dataset, [name.split for name in missing], raw=places.raw[dataset],
                    out=places.shards, pipeline=pipeline, progress=progress,
                )  # fmt: skip
            except UserError as error:
                failed += [Absent(name, str(error), "see to what it says") for name in missing]
                continue
            for one in made.sets:
                say(f"prepared {one.card.counts.total.samples:,} samples: {one.folder}")
    return failed


def about(name: SetName, *, generated: bool = False) -> int:
    """Training samples of a set that is not prepared yet, about."""
    if generated:
        return _GENERATED
    published = load_dataset(name.dataset).split(name.split).published
    return published.train if published else _ABOUT.get(name.dataset, 0)


def generate(
    datasets: Iterable[str], folder: Path, *, counting: Callable[[int, int], None]
) -> dict[str, list[Path]]:
    """Write generated raw archives that do not stand yet; returns them by data set."""
    found = {}
    for dataset in dict.fromkeys(datasets):
        archive = folder / f"{dataset}.zip"
        with held(folder, wait=True):
            if not archive.is_file():
                write_recordings(dataset, archive, progress=counting, **_SMALL[dataset])
        found[dataset] = [archive]
    return found
