"""What a raw source holds, told before anything is read of it: units, and the clips in them.

Every raw format answers with a `Listing`; plan, engine and index know nothing else of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skelpipe.manifest import Part
from skelpipe.shards.card import MissingStamp, Source

from .archive import Member

Row = tuple[str, str, str]
"""A rejection: key, source, reason."""

Action = tuple[int, int, int, int]
"""A row of a recording's label file: action (from 1), first frame, frame after the last,
confidence."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A sample to be: some frames of a recording, and what is known of them.

    Attributes:
        key: Its name in the shards, `[A-Za-z0-9_-]{1,90}`.
        label: Its class from 0; -1 for a whole recording, which shows many.
        subject: From 1, as camera, setup and replication; 0 where it is not stated.
        frames: Its first frame and the one after its last; None for all of them.
        actions: Of a whole recording, what happens when, in the order of the label file.
    """

    key: str
    label: int
    subject: int = 0
    camera: int = 0
    setup: int = 0
    replication: int = 0
    frames: tuple[int, int] | None = None
    actions: tuple[Action, ...] | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """What is read in one go: a recording with one clip or many.

    Attributes:
        member: The file that holds it.
        parts: Split -> the part that all its clips belong to.
        clips: One at least.
        size: Bytes to be read, which progress is counted by.
        stored: Bytes that the clips will take in a shard, about.
        record: Its place in the file, where a file holds many.
        odd: What is odd about it but read all the same: kinds, and how often.
        done: Whether it is what the pipeline makes already, and only to be stored.
    """

    member: Member
    parts: Mapping[str, Part]
    clips: tuple[Clip, ...]
    size: int
    stored: int
    record: str = ""
    odd: tuple[tuple[str, int], ...] = ()
    done: bool = False

    @property
    def source(self) -> str:
        """Where its samples come from, in words that say nothing about this machine."""
        return f"{self.member.source}:{self.record}" if self.record else self.member.source


@dataclass(frozen=True)
class Listing:
    """A raw source.

    Attributes:
        units: Sorted by the key of their first clip.
        source: Identity of all recordings of the data set that were found.
        refused: Recordings that are not even read.
        outside: Split -> samples that it has no part for, sorted.
        lists: Split -> digest of the list that parts its recordings, where there is one.
        missing: The list of recordings to leave out that was applied, or would be.
        left_out: How many recordings it left out.
        classes: Names of the classes, where the manifest leaves them to the labels.
        warnings: What every table made from the set must repeat.
        notes: What was passed over, in sentences.
    """

    units: tuple[Unit, ...]
    source: Source
    refused: tuple[Row, ...] = ()
    outside: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    missing: MissingStamp | None = None
    left_out: int = 0
    classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
