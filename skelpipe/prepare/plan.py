"""Which unit goes to which split and shard, decided from names and sizes before any is read.

Several splits are written from one reading. Units that have the same part under every split of
the data set form a cell; a cell is cut into groups of about one shard's size; a group is one task
and becomes one shard, of the same bytes, in every split that takes it. So a split's files do not
depend on which other splits were asked for, nor on who works on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from skelpipe.manifest import Part
from skelpipe.shards.card import digest_of

from .listing import Unit

SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Group:
    """One task: units that become one shard in every split that has a part for them.

    ``shards``: split -> the shard's file name.
    """

    number: int
    parts: Mapping[str, Part]
    shards: Mapping[str, str]
    units: tuple[Unit, ...]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(unit.size for unit in self.units)

    @property
    def stored(self) -> int:
        """Bytes of its shard, about."""
        return sum(unit.stored for unit in self.units)

    @property
    def clips(self) -> int:
        """Samples, if none is rejected."""
        return sum(len(unit.clips) for unit in self.units)


@dataclass(frozen=True)
class Plan:
    """Groups in the order of their shards."""

    groups: tuple[Group, ...]

    @property
    def digest(self) -> str:
        """A digest that no path, offset or worker enters: equal plans give equal files."""
        return digest_of(
            [group.number, group.shards, [_identity(unit) for unit in group.units]]
            for group in self.groups
        )

    def of(self, splits: Iterable[str]) -> list[Group]:
        """The groups that any of some splits takes."""
        return [group for group in self.groups if group.parts.keys() & set(splits)]


def make_plan(splits: Iterable[str], units: Sequence[Unit]) -> Plan:
    """Cut units into groups, for all splits of a data set."""
    splits = tuple(splits)
    cells: dict[tuple[Part | None, ...], list[Unit]] = {}
    for unit in units:
        cells.setdefault(tuple(unit.parts.get(split) for split in splits), []).append(unit)
    groups: list[Group] = []
    numbers: Counter[tuple[str, Part]] = Counter()
    for _, in_cell in sorted(cells.items(), key=lambda item: tuple(map(str, item[0]))):
        parts = in_cell[0].parts
        for chunk in _chunks(in_cell):
            shards = {}
            for split, part in parts.items():
                shards[split] = f"{part}-{numbers[split, part]:06d}.tar"
                numbers[split, part] += 1
            groups.append(Group(len(groups), parts, shards, tuple(chunk)))
    return Plan(tuple(groups))


def _identity(unit: Unit) -> object:
    clips = [
        (c.key, c.label, c.subject, c.camera, c.setup, c.replication, c.frames, c.actions)
        for c in unit.clips
    ]
    return unit.source, unit.size, clips


def _chunks(units: list[Unit]) -> list[list[Unit]]:
    """Runs of units of about equal size, none much above a shard's."""
    total = sum(unit.stored for unit in units)
    count = -(-total // SHARD_BYTES) or 1
    chunks: list[list[Unit]] = [[] for _ in range(count)]
    before = 0
    for unit in units:
        chunks[before * count // (total + 1)].append(unit)
        before += unit.stored
    return [chunk for chunk in chunks if chunk]
