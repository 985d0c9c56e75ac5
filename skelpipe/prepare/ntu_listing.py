"""NTU RGB+D's recordings, told by their names: one `.skeleton` file is one sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from skelpipe.errors import UserError
from skelpipe.manifest import FieldSplit, NtuDataset, Part
from skelpipe.shards.card import MissingStamp, Source, digest_of

from . import ntu
from .archive import Member, find_recordings
from .listing import Clip, Listing, Row, Unit
from .missing import Missing, find_missing, in_range

_TEXT_PER_BYTE = 9  # bytes of text that become one byte of float32 positions

_Cells = dict[tuple[tuple[str, Part], ...], dict[str, Part]]  # few, shared by very many units


def list_ntu(dataset: NtuDataset, raw: Sequence[Path], missing_list: Path | None) -> Listing:
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
    cells: _Cells = {}
    units = tuple(
        _unit(dataset, key, member, cells) for key, member in members.items() if key not in left_out
    )
    return Listing(
        units=units,
        source=Source(
            layout="ntu",
            recordings=len(members),
            digest=digest_of(sorted((m.source, m.size) for m in members.values())),
        ),
        refused=tuple(
            row for row in found.refused if in_range(row[0], dataset) and row[0] not in left_out
        ),
        outside={name: tuple(_outside(name, dataset, units)) for name in dataset.splits},
        missing=_stamp(dataset, missing),
        left_out=len(members) - len(units),
        warnings=tuple(_warnings(dataset, missing)),
        notes=tuple(notes),
    )


def _unit(dataset: NtuDataset, key: str, member: Member, cells: _Cells) -> Unit:
    name = ntu.parse_name(key)
    clip = Clip(
        key=key,
        label=name.action - dataset.actions[0],
        subject=name.subject,
        camera=name.camera,
        setup=name.setup,
        replication=name.replication,
    )
    parts = {split: part for split, rule in dataset.splits.items() if (part := _part(rule, clip))}
    shared = cells.setdefault(tuple(parts.items()), parts)
    return Unit(member, shared, (clip,), member.size, member.size // _TEXT_PER_BYTE)


def _part(split: FieldSplit, clip: Clip) -> Part | None:
    return split.part(getattr(clip, split.field))


def _outside(split: str, dataset: NtuDataset, units: Sequence[Unit]) -> Iterator[Row]:
    field = dataset.splits[split].field
    for unit in units:
        if split not in unit.parts:
            clip = unit.clips[0]
            reason = f"not in the lists of {split}: found {field} {getattr(clip, field)}"
            yield clip.key, unit.source, reason


def _stamp(dataset: NtuDataset, missing: Missing | None) -> MissingStamp:
    official = dataset.missing
    return MissingStamp(
        applied=missing is not None,
        official=missing is not None and missing.official,
        count=len(missing.names) if missing else official.count,
        sha256=missing.sha256 if missing else official.sha256,
        where=official.where,
    )


def _warnings(dataset: NtuDataset, missing: Missing | None) -> Iterator[str]:
    if missing and not missing.official:
        yield (
            f"the applied missing list of {len(missing.names)} names is not the official one of "
            f"{dataset.missing.count}, which is to be had from {dataset.missing.where}"
        )
