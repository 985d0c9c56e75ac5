"""From finished tasks to a prepared set: its index, its rejections, its card, its place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from skelpipe.errors import UserError
from skelpipe.files import flush, into_place, write_whole
from skelpipe.manifest import AnyDataset
from skelpipe.shards.card import (
    CARD,
    Card,
    Counts,
    FileStamp,
    MissingStamp,
    PipelineStamp,
    Precision,
    Source,
    card_bytes,
    digest_of,
    read_card,
)
from skelpipe.shards.index import INDEX, tally, write_index

from .listing import Listing, Row
from .normalise import Pipeline
from .plan import Plan
from .task import Job, Task

REJECTED = "rejected.jsonl"
_AGAIN = "--force makes it anew"


@dataclass(frozen=True)
class Raw:
    """The raw side of a preparation, and what is to be made of it."""

    dataset: AnyDataset
    pipeline: Pipeline
    switches: Mapping[str, str]
    precision: Precision
    listing: Listing


def rejections(split: str, raw: Raw, plan: Plan, tasks: dict[int, Task]) -> list[Row]:
    """What a split lacks as far as the tasks (by group number) are done, sorted."""
    rows = [*raw.listing.outside.get(split, ()), *raw.listing.refused]
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
    if (card.dataset, card.split) != (raw.dataset.name, folder.name):
        raise UserError(
            "another set stands in this folder",
            file=folder,
            found=f"{card.dataset}, {card.split}",
            expected=f"{raw.dataset.name}, {folder.name}",
            remedy=_AGAIN,
        )
    other = "raw data or another manifest" if raw.dataset.format == "arrays" else "raw data"
    _fits(folder, f"from other {other}", card.source, _source(raw, folder.name))
    _fits(folder, "with another missing list", card.missing_list, raw.listing.missing)
    _fits(
        folder,
        "by another version of the pipeline, or with other switches",
        card.pipeline,
        _pipeline_stamp(raw),
    )
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


def finish(split: str, raw: Raw, plan: Plan, job: Job, tasks: dict[int, Task]) -> Card:
    """Write a split's index, its rejections and, last, its card beside its finished shards."""
    folder = job.work / split
    groups = plan.of([split])
    files = {
        group.shards[split]: FileStamp(
            size=tasks[group.number].size, sha256=tasks[group.number].sha256
        )
        for group in groups
    }
    odd = sum((Counter(tasks[group.number].odd) for group in groups), Counter[str]())
    rejected = rejections(split, raw, plan, tasks)
    if not any(tasks[group.number].samples for group in groups):
        found = "; ".join(f"{source}: {reason}" for _, source, reason in rejected[:3])
        raise UserError(
            f"no recording can be used for {split}",
            found=found,
            remedy="look whether this is the whole archive, or the manifest right",
        )
    digests: list[tuple[str, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        for group in groups:
            of_group = {"part": group.parts[split], "shard": group.shards[split]}
            for row in job.rows(group):
                digests.append((row["key"], row["sha256"]))
                yield row | of_group

    index = write_index(folder / INDEX, rows())
    lines = (
        json.dumps({"key": key, "source": source, "reason": reason}) + "\n"
        for key, source, reason in rejected
    )
    (folder / REJECTED).write_text("".join(lines), encoding="utf-8")
    for name in (INDEX, REJECTED):
        flush(folder / name)
        files[name] = _stamp(folder / name)
    published = raw.dataset.split(split).published
    counts = Counts(
        total=tally(index),
        train=tally(index.filter(pc.equal(index["part"], "train"))),
        test=tally(index.filter(pc.equal(index["part"], "test"))),
        published=published.model_dump() if published else {},
        rejected=dict(count_kinds(rejected)),
        missing=raw.listing.left_out,
        odd=dict(sorted(odd.items())),
    )
    card = Card(
        dataset=raw.dataset.name,
        title=raw.dataset.title,
        split=split,
        topology=job.topology.model_copy(update={"up": raw.pipeline.up}),
        fps=raw.dataset.fps,
        pipeline=_pipeline_stamp(raw),
        precision=raw.precision,
        metric=raw.dataset.metric,
        classes=raw.listing.classes or raw.dataset.classes,
        mutual=tuple(action - 1 for action in raw.dataset.mutual),
        apart=raw.dataset.split(split).apart or "",
        counts=counts,
        missing_list=raw.listing.missing,
        warnings=tuple(_warnings(raw, counts)),
        source=_source(raw, split),
        files=files,
        data_digest=digest_of(sorted(digests)),
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


def _warnings(raw: Raw, counts: Counts) -> Iterator[str]:
    """What every table made from the set must repeat."""
    yield from raw.listing.warnings
    for part, held in (("train", counts.train), ("test", counts.test)):
        if not held.samples:
            yield f"there is no sample in the {part} part"
    unseen = counts.test.classes.keys() - counts.train.classes.keys()
    if unseen and counts.train.samples:
        yield (
            f"{len(unseen):,} of the {len(counts.test.classes):,} classes in the test part do not "
            "occur in the train part"
        )
    dataset, missing = raw.dataset, raw.listing.missing
    samples, published = counts.total.samples, dataset.published
    if published is None:
        return
    not_applied = "official list of missing skeletons not applied"
    if samples < published:
        part = f"a part of {dataset.title}: {samples:,} of {published:,} samples"
        yield f"{part}; {not_applied}" if missing and not missing.applied else part
    elif samples > published and missing:
        yield (
            f"{not_applied}: {samples:,} samples where {published:,} are published; get it from "
            f"{missing.where} and lay it beside the raw data"
        )


def _source(raw: Raw, split: str) -> Source:
    return raw.listing.source.model_copy(update={"split_list": raw.listing.lists.get(split, "")})


def _pipeline_stamp(raw: Raw) -> PipelineStamp:
    return PipelineStamp(
        name=raw.pipeline.name, version=raw.pipeline.version, switches=dict(raw.switches)
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
            switches = ", ".join(f"{name} = {value}" for name, value in stamp.switches.items())
            return f"{stamp.name} version {stamp.version}, {switches}".removesuffix(", ")
        case None:
            return "no list known"


def _stamp(file: Path) -> FileStamp:
    data = file.read_bytes()
    return FileStamp(size=len(data), sha256=hashlib.sha256(data).hexdigest())
