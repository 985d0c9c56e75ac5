"""PKU-MMD's recordings, their labels and their lists: every row of a label file is one sample."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from skelpipe.errors import UserError
from skelpipe.manifest import Part, PkuDataset
from skelpipe.shards.card import Source, digest_of

from . import pku
from .archive import Found, Member, Reader, find_recordings, loose
from .listing import Action, Listing, Row, Unit
from .pku_clips import Cutting
from .pku_lists import SplitList, find_lists, phase_of
from .recording import RejectedError

SWITCHES = {"reversed": ("swapped", "as_published")}

_LABELS, _SKELETONS, _LIST = "labels", "skeletons", "list"
_LARGEST_LABELS = 64 << 10  # bytes; a recording has some dozens of actions, each a short row


def list_pku(
    dataset: PkuDataset,
    raw: Sequence[Path],
    splits: Sequence[str] = (),
    *,
    whole: bool,
    reversed: str = "swapped",
) -> Listing:
    """Find a phase's recordings, cut them by their labels, and part them by the official lists.

    What belongs together has one name, wherever it lies: skeletons and labels are told apart by
    what they hold, and by the folder where a file is empty. A recording without labels is refused.

    Args:
        dataset: The phase.
        raw: Where to look.
        splits: Those that must have a list; none: any one.
        whole: List whole recordings with all their actions, for detection.
        reversed: Rows that start after their end: "swapped" or "as_published" (see `Cutting`).

    Raises:
        UserError: there are no recordings of the phase, no labels or no list of a split, or the
            same file stands in two places with different content.
    """
    with Reader() as reader:
        found, lists_named = _find(dataset, raw, reader)
        skeletons = _of_phase(found, _SKELETONS, dataset)
        labels = _of_phase(found, _LABELS, dataset)
        _check_found(dataset, raw, found, skeletons, labels)
        lists = find_lists(lists_named, dataset, reader)
        for split in splits or ([] if lists.found else lists.withheld):
            if split in lists.withheld:
                raise lists.withheld[split]
        rows, refused, digests = _read_labels(labels, reader)
    for key, source, reason in found.refused:
        name = key.removesuffix(".txt")
        if re.fullmatch(dataset.names, name, re.A) and not (name in skeletons and name in labels):
            refused.setdefault(name, (name, source, reason))
    for name in skeletons.keys() - labels.keys():
        refused.setdefault(name, (name, skeletons[name].source, "no label file"))

    cutting = Cutting(dataset, whole, swapped=reversed == "swapped")
    units: list[Unit] = []
    rejected = [refused[name] for name in sorted(refused)]
    for name, member in skeletons.items():
        if name in rows:
            unit, wrong = cutting.unit(name, member, rows[name], _parts(name, lists.found))
            units += [unit] if unit else []
            rejected += wrong
    return Listing(
        units=tuple(units),
        source=Source(
            layout="pku",
            recordings=len(skeletons),
            digest=digest_of(
                (m.source, m.size, digests.get(name)) for name, m in skeletons.items()
            ),
        ),
        lists={split: one.digest for split, one in lists.found.items()},
        refused=tuple(rejected),
        outside={split: tuple(_outside(split, units)) for split in lists.found},
        warnings=tuple(_warnings(dataset, skeletons, lists.found)),
        notes=(*found.notes, *lists.notes, *_notes(dataset, found, skeletons, labels)),
    )


def _find(
    dataset: PkuDataset, raw: Sequence[Path], reader: Reader
) -> tuple[Found, tuple[Member, ...]]:
    """Skeletons and labels under "skeletons/" and "labels/", and what may be a list by its name."""
    list_name = "|".join(f"(?:{split.file})" for split in dataset.splits.values())
    is_list = re.compile(list_name, re.ASCII | re.I)

    def kind(member: Member) -> str:
        # Two lists of one name may lie in two places: one of them is often another phase's.
        if is_list.fullmatch(member.source):
            return f"{_LIST}/{member}/"
        return f"{_kind(member, reader)}/"

    alone = [path for path in raw if is_list.fullmatch(path.name) and path.is_file()]
    found = find_recordings(
        [path for path in raw if path not in alone],
        re.compile(rf"((?:{pku.RECORDING})\.txt|(?i:{list_name}))", re.ASCII),
        dataset.title,
        kind,
    )
    beside = dict.fromkeys(
        [*alone, *(file for file in found.texts if is_list.fullmatch(file.name))]
    )
    inside = [member for key, member in found.recordings.items() if key.startswith(f"{_LIST}/")]
    return found, (*map(loose, beside), *inside)


def _kind(member: Member, reader: Reader) -> str:
    """What a file of a recording's name is, by its first row; by its folder's where it has none."""
    if member.size > _LARGEST_LABELS:
        return _SKELETONS
    try:
        first = reader.read(member).lstrip().partition(b"\n")[0]
    except RejectedError:
        first = b""
    numbers = len(first.replace(b",", b" ").split())
    if b"," in first and numbers < 10:
        return _LABELS
    if numbers == pku.FIELDS:
        return _SKELETONS
    alone = member.name == member.file.name
    folder = member.file.parent.name if alone else PurePosixPath(member.name).parent.name
    return _LABELS if "label" in folder.lower() else _SKELETONS


def _of_phase(found: Found, kind: str, dataset: PkuDataset) -> dict[str, Member]:
    """Files of a kind by the name of their recording, sorted."""
    return {
        name: member
        for key, member in found.recordings.items()
        if key.startswith(f"{kind}/") and re.fullmatch(dataset.names, name := _name(key), re.A)
    }


def _name(key: str) -> str:
    return PurePosixPath(key).name.removesuffix(".txt")


def _check_found(
    dataset: PkuDataset,
    raw: Sequence[Path],
    found: Found,
    skeletons: Mapping[str, Member],
    labels: Mapping[str, Member],
) -> None:
    where = ", ".join(map(str, raw))
    if not skeletons and not labels:
        others = [key for key in found.recordings if not key.startswith(f"{_LIST}/")]
        phase = phase_of(_name(others[0])) if others else ""
        raise UserError(
            f"this is {phase}, not {dataset.title}"
            if phase
            else f"there are no recordings of {dataset.title} here",
            file=where,
            found=f"{len(others):,} files such as {PurePosixPath(others[0]).name}"
            if others
            else "lists of recordings alone",
            remedy="name the data set that it is, or another archive with --raw",
        )
    if not skeletons or not labels:
        has, lacks = ("labels", "skeletons") if labels else ("skeletons", "labels")
        raise UserError(
            f"there are {has} of {dataset.title} here, but no {lacks}",
            file=where,
            found=f"{len(skeletons or labels):,} files",
            expected=f"text files of the same names with the {lacks}",
            remedy=f"name the archive of the {lacks} too, with another --raw",
        )


def _read_labels(
    labels: Mapping[str, Member], reader: Reader
) -> tuple[dict[str, tuple[Action, ...]], dict[str, Row], dict[str, str]]:
    """Rows of every label file, what is refused for its labels, and a digest of every file."""
    rows: dict[str, tuple[Action, ...]] = {}
    refused: dict[str, Row] = {}
    digests: dict[str, str] = {}
    for name, member in labels.items():
        try:
            data = reader.read(member)
            digests[name] = hashlib.sha256(data).hexdigest()
            rows[name] = pku.parse_labels(data)
        except RejectedError as error:
            refused[name] = (name, member.source, error.reason)
    return rows, refused, digests


def _parts(name: str, lists: Mapping[str, SplitList]) -> dict[str, Part]:
    return {split: part for split, one in lists.items() if (part := one.part(name))}


def _outside(split: str, units: Sequence[Unit]) -> Iterator[Row]:
    for unit in units:
        if split not in unit.parts:
            for clip in unit.clips:
                yield clip.key, unit.source, f"not in the lists of {split}"


def _warnings(
    dataset: PkuDataset, skeletons: Mapping[str, Member], lists: Mapping[str, SplitList]
) -> Iterator[str]:
    if len(skeletons) < dataset.recordings:
        part = f"{len(skeletons):,} of {dataset.recordings:,} recordings"
        yield f"a part of {dataset.title}: {part}"
    for split, one in lists.items():
        published = dataset.splits[split].recordings
        if (len(one.train), len(one.test)) != (published.train, published.test):
            yield (
                f"the list of {split} is not the published one: {len(one.train):,} + "
                f"{len(one.test):,} recordings where {published.train:,} + {published.test:,} are "
                "published"
            )
        absent = (one.train | one.test) - skeletons.keys()
        if absent and len(skeletons) >= dataset.recordings:
            yield f"{len(absent):,} recordings in the list of {split} are not in the raw data"


def _notes(
    dataset: PkuDataset,
    found: Found,
    skeletons: Mapping[str, Member],
    labels: Mapping[str, Member],
) -> Iterator[str]:
    others = sum(not key.startswith(f"{_LIST}/") for key in found.recordings)
    others -= len(skeletons) + len(labels)
    if others:
        yield f"left out {others:,} files that do not belong to {dataset.title}"
    lone = sorted(labels.keys() - skeletons.keys())
    if lone:
        yield f"passed over {len(lone):,} label files without skeletons, such as {lone[0]}"
