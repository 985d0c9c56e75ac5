"""From finished tasks to a prepared set: its index, its rejections, its card, its place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skelpipe.errors import UserError
from skelpipe.manifest import Dataset, load_topology
from skelpipe.shards.card import (
    CARD,
    Card,
    Counts,
    FileStamp,
    MissingStamp,
    PipelineStamp,
    Source,
    Tally,
    card_bytes,
    digest_of,
    read_card,
)
from skelpipe.shards.index import INDEX, write_index

from . import ntu
from .archive import Member, find_recordings
from .files import flush, into_place, write_whole
from .missing import Missing, find_missing, in_range
from .normalise import Pipeline
from .plan import Plan

REJECTED = "rejected.jsonl"
_AGAIN = "--force makes it anew"

Row = tuple[str, str, str]
"""A rejection: key, source, reason."""


@dataclass(frozen=True)
class Task:
    """What a task left behind: an index row per sample, rejections, its shard's size and sha256."""

    rows: list[dict[str, Any]]
    rejected: list[Row]
    size: int
    sha256: str


@dataclass(frozen=True)
class Raw:
    """The raw side of a preparation.

    Attributes:
        dataset: What is prepared.
        pipeline: How.
        members: Key -> where it lies, of the recordings to read.
        refused: Recordings that are not even read.
        source: Identity of all recordings of the data set that were found.
        missing: The list that was applied.
        notes: What was passed over, in sentences.
    """

    dataset: Dataset
    pipeline: Pipeline
    members: dict[str, Member]
    refused: tuple[Row, ...]
    source: Source
    missing: Missing | None
    notes: tuple[str, ...]


def gather(
    dataset: Dataset, pipeline: Pipeline, raw: Sequence[Path], missing_list: Path | None
) -> Raw:
    """Find a data set's recordings and its missing list.

    Raises:
        UserError: there are none, or what is there cannot be used (see `find_recordings`).
    """
    found = find_recordings(raw, ntu.NAME, dataset.title)
    members = {key: m for key, m in found.recordings.items() if in_range(key, dataset)}
    if not members:
        raise UserError(
            f"none of the recordings belongs to {dataset.title}",
            file=", ".join(map(str, raw)),
            found=f"{len(found.recordings):,} others, such as {next(iter(found.recordings))}",
            expected=f"setups {dataset.setups[0]}-{dataset.setups[1]} and "
            f"actions {dataset.actions[0]}-{dataset.actions[1]}",
            remedy="name the data set they belong to, or another archive with --raw",
        )
    notes = list(found.notes)
    if len(members) < len(found.recordings):
        others = len(found.recordings) - len(members)
        notes.append(f"left out {others:,} recordings that do not belong to {dataset.title}")
    missing = find_missing(found.texts, dataset, missing_list)
    left_out = missing.names if missing else frozenset()
    return Raw(
        dataset=dataset,
        pipeline=pipeline,
        members={key: member for key, member in members.items() if key not in left_out},
        refused=tuple(
            row for row in found.refused if in_range(row[0], dataset) and row[0] not in left_out
        ),
        source=Source(
            layout=dataset.format,
            recordings=len(members),
            digest=digest_of(sorted((m.source, m.size) for m in members.values())),
        ),
        missing=missing,
        notes=tuple(notes),
    )


def rejections(split: str, raw: Raw, plan: Plan, tasks: dict[int, Task]) -> list[Row]:
    """What a split lacks as far as the tasks (by group number) are done, sorted."""
    rows = [*plan.outside[split], *raw.refused]
    for group in plan.of([split]):
        if group.number in tasks:
            rows += tasks[group.number].rejected
    return sorted(rows)


def count_kinds(rows: Iterable[Row]) -> Counter[str]:
    """Rejections by the kind of their reason, which stands before its colon."""
    return Counter(reason.partition(":")[0] for _, _, reason in rows)


def standing(folder: Path, raw: Raw) -> Card | None:
    """The card of a complete set of the same raw data; None where nothing stands there.

    Raises:
        UserError: something else stands there.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        card = read_card(folder)
    except UserError as error:
        raise UserError(
            "this folder stands in the way and holds no complete prepared set",
            file=folder,
            found=error.what,
            remedy=_AGAIN,
        ) from error
    _fits(folder, "from other raw data", card.source, raw.source)
    _fits(folder, "with another missing list", card.missing_list, _missing_stamp(raw))
    _fits(folder, "by another version of the pipeline", card.pipeline, _pipeline_stamp(raw))
    for name, stamp in card.files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != stamp.size:
            raise UserError(
                "this prepared set is damaged",
                file=file,
                found="no such file" if size is None else f"{size} bytes",
                expected=f"{stamp.size} bytes",
                remedy=_AGAIN,
            )
    return card


def check_replaceable(folder: Path) -> None:
    """Raise where a folder holds anything but a prepared set, whole or damaged."""
    ours = (CARD, INDEX, REJECTED)
    strange = sorted(
        file.name
        for file in (folder.iterdir() if folder.exists() else ())
        if file.name not in ours and not file.name.startswith(("train-", "test-"))
    )
    if strange:
        raise UserError(
            "this folder holds files of no prepared set, and is not replaced",
            file=folder,
            found=", ".join(strange[:3]),
            remedy="move them away, or choose another --out",
        )


def finish(split: str, raw: Raw, plan: Plan, tasks: dict[int, Task], folder: Path) -> Card:
    """Write a split's index, its rejections and, last, its card beside its finished shards."""
    rows: list[dict[str, Any]] = []
    files: dict[str, FileStamp] = {}
    for group in plan.of([split]):
        task, part, shard = tasks[group.number], group.parts[split], group.shards[split]
        files[shard] = FileStamp(size=task.size, sha256=task.sha256)
        rows += [{**row, "part": part, "shard": shard} for row in task.rows]
    rejected = rejections(split, raw, plan, tasks)
    if not rows:
        found = "; ".join(f"{source}: {reason}" for _, source, reason in rejected[:3])
        raise UserError(
            f"no recording can be used for {split}",
            found=found,
            remedy="look whether this is the whole archive",
        )
    write_index(folder / INDEX, rows)
    lines = (
        json.dumps({"key": key, "source": source, "reason": reason}) + "\n"
        for key, source, reason in rejected
    )
    (folder / REJECTED).write_text("".join(lines), encoding="utf-8")
    for name in (INDEX, REJECTED):
        flush(folder / name)
        files[name] = _stamp(folder / name)
    counts = Counts(
        total=_tally(rows),
        train=_tally(row for row in rows if row["part"] == "train"),
        test=_tally(row for row in rows if row["part"] == "test"),
        published=raw.dataset.splits[split].published.model_dump(),
        rejected=dict(count_kinds(rejected)),
        missing=raw.source.recordings - len(raw.members),
    )
    card = Card(
        dataset=raw.dataset.name,
        title=raw.dataset.title,
        split=split,
        topology=load_topology(raw.dataset.topology),
        fps=raw.dataset.fps,
        pipeline=_pipeline_stamp(raw),
        precision="float32",
        classes=raw.dataset.classes,
        counts=counts,
        missing_list=_missing_stamp(raw),
        warnings=tuple(_warnings(raw, counts)),
        source=raw.source,
        files=files,
        data_digest=digest_of(sorted((row["key"], row["sha256"]) for row in rows)),
    )
    write_whole(folder / CARD, card_bytes(card))
    return read_card(folder)


def put_in_place(made: Path, final: Path) -> None:
    """Move a finished set to its final name; a set that stands there gives way."""
    if final.exists() and any(final.iterdir()):
        old = made.parent / f"old-{final.name}"
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    into_place(made, final)


def _tally(rows: Iterable[dict[str, Any]]) -> Tally:
    rows = list(rows)

    def per(field: str) -> dict[int, int]:
        return dict(Counter(row[field] for row in rows))

    return Tally(
        samples=len(rows),
        bodies=sum(row["bodies"] for row in rows),
        frames=sum(row["frames"] for row in rows),
        classes=per("label"),
        subjects=per("subject"),
        cameras=per("camera"),
        setups=per("setup"),
    )


def _warnings(raw: Raw, counts: Counts) -> Iterator[str]:
    """What every table made from the set must repeat."""
    dataset, missing = raw.dataset, raw.missing
    where = dataset.missing.where
    if missing and not missing.official:
        yield (
            f"the applied missing list of {len(missing.names)} names is not the official one of "
            f"{dataset.missing.count}, which is to be had from {where}"
        )
    samples, published = counts.total.samples, dataset.published
    if samples < published:
        part = f"a part of {dataset.title}: {samples:,} of {published:,} samples"
        yield part if missing else f"{part}; official list of missing skeletons not applied"
    elif samples > published:
        yield (
            f"official list of missing skeletons not applied: {samples:,} samples where "
            f"{published:,} are published; get it from {where} and lay it beside the raw data"
        )


def _pipeline_stamp(raw: Raw) -> PipelineStamp:
    return PipelineStamp(name=raw.pipeline.name, version=raw.pipeline.version, switches={})


def _missing_stamp(raw: Raw) -> MissingStamp:
    missing, official = raw.missing, raw.dataset.missing
    return MissingStamp(
        applied=missing is not None,
        official=missing is not None and missing.official,
        count=len(missing.names) if missing else official.count,
        sha256=missing.sha256 if missing else official.sha256,
        where=official.where,
    )


Stamp = Source | MissingStamp | PipelineStamp | None


def _fits(folder: Path, how: str, found: Stamp, expected: Stamp) -> None:
    if found != expected:
        raise UserError(
            f"this set was prepared {how}",
            file=folder,
            found=_told(found),
            expected=_told(expected),
            remedy=f"{_AGAIN}; another --out keeps both",
        )


def _told(stamp: Stamp) -> str:
    match stamp:
        case Source():
            return f"{stamp.recordings:,} recordings, digest {stamp.digest[:12]}"
        case MissingStamp():
            return f"{stamp.count} names left out" if stamp.applied else "no list applied"
        case PipelineStamp():
            return f"{stamp.name} version {stamp.version}"
        case None:
            return "no list known"


def _stamp(file: Path) -> FileStamp:
    data = file.read_bytes()
    return FileStamp(size=len(data), sha256=hashlib.sha256(data).hexdigest())
