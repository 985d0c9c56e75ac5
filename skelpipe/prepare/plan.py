"""Which sample goes to which split and shard, decided from names and sizes before any is read.

Several splits are written from one reading. Samples that have the same part under every split of
the data set form a cell; a cell is cut into groups of about one shard's size; a group is one task
and becomes one shard, of the same bytes, in every split that takes it. So a split's files do not
depend on which other splits were asked for, nor on who works on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from skelpipe.manifest import Dataset, Split
from skelpipe.shards.card import digest_of

from .archive import Member
from .ntu import Name, parse_name

Part = Literal["train", "test"]

SHARD_BYTES = 64 << 20
_TEXT_PER_BYTE = 9  # bytes of `.skeleton` text that become one byte of float32 positions


@dataclass(frozen=True)
class Sample:
    key: str
    name: Name
    member: Member


@dataclass(frozen=True)
class Group:
    """One task: samples that become one shard in every split that has a part for them.

    ``parts``: split -> part; ``shards``: split -> the shard's file name.
    """

    number: int
    parts: dict[str, Part]
    shards: dict[str, str]
    samples: tuple[Sample, ...]

    @property
    def size(self) -> int:
        """Bytes of text to read."""
        return sum(sample.member.size for sample in self.samples)


@dataclass(frozen=True)
class Plan:
    """Groups in the order of their shards, and samples that a split has no part for.

    ``outside``: split -> (key, source, reason), sorted by key.
    """

    groups: tuple[Group, ...]
    outside: dict[str, tuple[tuple[str, str, str], ...]]

    @property
    def digest(self) -> str:
        """A digest that no path, offset or worker enters: equal plans give equal files."""
        return digest_of(
            [group.number, group.shards, [(s.key, s.member.size) for s in group.samples]]
            for group in self.groups
        )

    def of(self, splits: Iterable[str]) -> list[Group]:
        """The groups that any of some splits takes."""
        return [group for group in self.groups if group.parts.keys() & set(splits)]

    def planned(self, split: str) -> int:
        """Samples that a split would hold if none were rejected, and those outside its lists."""
        return sum(len(group.samples) for group in self.of([split])) + len(self.outside[split])


def make_plan(dataset: Dataset, members: dict[str, Member]) -> Plan:
    """Cut recordings (key -> where it lies) into groups, for all splits of a data set."""
    samples = [Sample(key, parse_name(key), members[key]) for key in sorted(members)]
    cells: dict[tuple[Part | None, ...], list[Sample]] = {}
    for sample in samples:
        cell = tuple(_part(split, sample) for split in dataset.splits.values())
        cells.setdefault(cell, []).append(sample)
    groups: list[Group] = []
    numbers: Counter[tuple[str, Part]] = Counter()
    for cell, in_cell in sorted(cells.items(), key=lambda item: tuple(map(str, item[0]))):
        by_split = zip(dataset.splits, cell, strict=True)
        parts = {split: part for split, part in by_split if part is not None}
        for chunk in _chunks(in_cell):
            shards = {}
            for split, part in parts.items():
                shards[split] = f"{part}-{numbers[split, part]:06d}.tar"
                numbers[split, part] += 1
            groups.append(Group(len(groups), parts, shards, tuple(chunk)))
    outside = {name: _outside(name, split, samples) for name, split in dataset.splits.items()}
    return Plan(tuple(groups), outside)


def _part(split: Split, sample: Sample) -> Part | None:
    return split.part(getattr(sample.name, split.field))


def _outside(name: str, split: Split, samples: list[Sample]) -> tuple[tuple[str, str, str], ...]:
    rows = []
    for sample in samples:
        if _part(split, sample) is None:
            value = getattr(sample.name, split.field)
            reason = f"not in the lists of {name}: found {split.field} {value}"
            rows.append((sample.key, sample.member.source, reason))
    return tuple(rows)


def _chunks(samples: list[Sample]) -> list[list[Sample]]:
    """Runs of samples of about equal size, none much above a shard's."""
    total = sum(sample.member.size for sample in samples) // _TEXT_PER_BYTE
    count = -(-total // SHARD_BYTES) or 1
    chunks: list[list[Sample]] = [[] for _ in range(count)]
    before = 0
    for sample in samples:
        chunks[before * count // (total + 1)].append(sample)
        before += sample.member.size // _TEXT_PER_BYTE
    return [chunk for chunk in chunks if chunk]
