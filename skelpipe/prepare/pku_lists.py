"""The lists of PKU-MMD's splits, found beside the recordings or among them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skelpipe.errors import UserError
from skelpipe.manifest import Dataset, ListedSplit, Part, PkuDataset, load_dataset, manifest_names
from skelpipe.shards.card import digest_of

from . import pku
from .archive import Member, Reader
from .recording import RejectedError

_LARGEST = 1 << 20  # bytes of a list; the official ones have 8 kB


@dataclass(frozen=True)
class SplitList:
    """The recordings of each part of a split."""

    train: frozenset[str]
    test: frozenset[str]

    def part(self, recording: str) -> Part | None:
        """The part a recording belongs to; None where it stands in neither list."""
        if recording in self.train:
            return "train"
        return "test" if recording in self.test else None

    @property
    def digest(self) -> str:
        return digest_of([sorted(self.train), sorted(self.test)])


@dataclass(frozen=True)
class SplitLists:
    """What was found for each split of a data set.

    Attributes:
        found: Split -> its list.
        withheld: Split -> why it has no list.
        notes: What was passed over, in sentences.
    """

    found: dict[str, SplitList]
    withheld: dict[str, UserError]
    notes: tuple[str, ...]


def find_lists(candidates: Sequence[Member], dataset: PkuDataset, reader: Reader) -> SplitLists:
    """The list of each split, among files that may be one by their name.

    Part II's lists stand under the names of Part I's in code that others have published: what a
    list is for is seen by the recordings that it names.
    """
    found, withheld, notes = {}, {}, []
    for name, split in dataset.splits.items():
        named = [file for file in candidates if re.fullmatch(split.file, file.source, re.I)]
        try:
            found[name], passed_over = _find(named, name, split, dataset, reader)
            notes += passed_over
        except UserError as error:
            withheld[name] = error
    return SplitLists(found, withheld, tuple(dict.fromkeys(notes)))


def phase_of(recording: str) -> str:
    """Title of the data set that has recordings of such names; empty where none has."""
    return next((d.title for d in _phases() if re.fullmatch(d.names, recording, re.A)), "")


def _phases() -> Iterable[PkuDataset]:
    for name in manifest_names("dataset"):
        dataset: Dataset = load_dataset(name)
        if isinstance(dataset, PkuDataset):
            yield dataset


def _find(
    files: Sequence[Member], name: str, split: ListedSplit, dataset: PkuDataset, reader: Reader
) -> tuple[SplitList, list[str]]:
    fitting: dict[SplitList, Member] = {}
    others = []
    for file in files:
        listed = _read(file, reader)
        strange = sorted(
            recording
            for recording in listed.train | listed.test
            if not re.fullmatch(dataset.names, recording, re.A)
        )
        if not strange:
            fitting.setdefault(listed, file)
        elif len(strange) == len(listed.train) + len(listed.test):
            others.append(f"{file}, which lists recordings of {phase_of(strange[0])}")
        else:
            raise UserError(
                "this list names recordings of several data sets",
                file=str(file),
                found=f"{strange[0]}, which belongs to {phase_of(strange[0])}",
                expected=f"recordings of {dataset.title} alone",
            )
    if len(fitting) > 1:
        first, second, *_ = map(str, fitting.values())
        raise UserError(
            f"there are two different lists of {name}",
            file=first,
            found=second,
            remedy="move away the one you do not mean",
        )
    if not fitting:
        raise UserError(
            f"there is no list of the recordings of {name} of {dataset.title}",
            found="; ".join(others) or "no file of such a name",
            expected=f"{split.title}.txt (or cross_subject, _v2, …) with "
            f"{split.recordings.train} + {split.recordings.test} recordings of {dataset.title}",
            remedy=f"get it from {dataset.where} and lay it beside the raw data; or ask for the "
            "other split alone, with --split",
        )
    return next(iter(fitting)), [f"passed over {other}" for other in others]


def _read(file: Member, reader: Reader) -> SplitList:
    try:
        if file.size > _LARGEST:
            raise RejectedError("too large", found=f"{file.size} bytes", expected=f"≤ {_LARGEST}")
        train, test = pku.parse_list(reader.read(file))
    except RejectedError as error:
        raise UserError(
            "this list of recordings cannot be used",
            file=str(file),
            found=error.reason,
            expected="a heading, the names that train, a heading, the names that validate",
            remedy="get it again, or move it away",
        ) from error
    return SplitList(frozenset(train), frozenset(test))
