"""Users' own arrays as a listing: every sample with its key, its class and its part of a split."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from skelpipe.errors import UserError
from skelpipe.manifest import ArrayDataset, Field, Part
from skelpipe.shards.card import Source, digest_of

from .array_files import Sample, find_samples
from .array_values import Values, classes_of, columns_of, label_number, numbered, part_of
from .listing import Clip, Listing, Row, Unit
from .recording import RejectedError

_DIGITS = 4  # bytes of text that become one byte of positions, about
_FIELDS: tuple[Field, ...] = ("subject", "camera", "setup")


def list_arrays(dataset: ArrayDataset, raw: Sequence[Path]) -> Listing:
    """Find a user's own samples.

    A sample without label, or without a subject (camera, setup) where the manifest says where
    these stand, is refused.

    Args:
        dataset: The manifest.
        raw: Folders in which its path is looked for, or files; none: the manifest's own folder.

    Raises:
        UserError: there are none; two have the same key; a table lacks a column or is no table; a
            mutual class that there is not.
    """
    samples, unread = find_samples(dataset, raw, columns_of(dataset))
    faults: list[Row] = [(key_of(name), file, reason) for name, file, reason in unread]
    if not samples:
        raise _nothing("no sample can be read", dataset, faults)
    keyed = _keyed(dataset, samples)
    values = Values(dataset)
    labels = {key: values.of(dataset.labels, sample) for key, sample in keyed.items()}
    classes = classes_of(dataset, labels.values())
    _check_mutual(dataset, classes)
    stated = {
        field: {key: values.of(where, sample) for key, sample in keyed.items()}
        for field in _FIELDS
        if (where := dataset.where_is(field)) is not None
    }
    numbers = {field: numbered(of.values()) for field, of in stated.items()}
    units: list[Unit] = []
    outside: dict[str, list[Row]] = {name: [] for name in dataset.splits}
    neither: Counter[str] = Counter()
    for key, sample in sorted(keyed.items()):
        fields = {field: of[key] for field, of in stated.items()}
        try:
            label = _label(dataset, sample, labels[key], classes, fields)
        except RejectedError as error:
            faults.append((key, sample.source, error.reason))
            continue
        parts: dict[str, Part] = {}
        for name, split in dataset.splits.items():
            if isinstance(split.by, str):
                value = fields[split.by]
            else:
                value = (
                    values.listed(name, split, sample)
                    if split.by is None
                    else values.of(split.by, sample)
                )
            part = part_of(split, value)
            if part is None:
                reason = f"not in the lists of {name}: found {value or 'nothing'}"
                outside[name].append((key, sample.source, reason))
            elif part == "neither":
                neither[name] += 1
            else:
                parts[name] = part
        subject, camera, setup = (
            numbers[field][fields[field]] if field in fields else 0 for field in _FIELDS
        )
        clip = Clip(key, label, subject, camera, setup)
        size = sample.found.size
        digits = _DIGITS if dataset.source.layout in ("csv", "json") else 1
        units.append(Unit(sample.piece, parts, (clip,), size, size // digits, sample.found.record))
    if not units:
        raise _nothing("no sample can be used", dataset, faults)
    known = [[key, s.source, s.found.size, dict(s.found.values)] for key, s in keyed.items()]
    return Listing(
        units=tuple(units),
        source=Source(
            layout=f"arrays, {dataset.source.layout}",
            recordings=len(samples),
            digest=digest_of([dataset.model_dump(mode="json"), *values.read, *sorted(known)]),
        ),
        refused=tuple(sorted(faults)),
        outside={name: tuple(rows) for name, rows in outside.items()},
        classes=classes,
        notes=tuple(_notes(numbers, neither)),
    )


def key_of(name: str) -> str:
    """A sample's name as a key, `[A-Za-z0-9_-]{1,90}`: other characters become "_"; of a longer
    name the end becomes a digest of it."""
    key = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    if len(key) > 90:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        key = f"{key[:73]}-{digest[:16]}"
    return key or "_"


def _check_mutual(dataset: ArrayDataset, classes: Sequence[str]) -> None:
    """Raise a UserError where a class is named as mutual that there is not."""
    wrong = [number for number in dataset.mutual if not 0 < number <= len(classes)]
    if wrong:
        raise UserError(
            "the manifest names a mutual class that there is not",
            file=dataset.file,
            place="mutual",
            found=wrong[0],
            expected=f"numbers from 1 to {len(classes)}: places in the list of classes",
        )


def _keyed(dataset: ArrayDataset, samples: Sequence[Sample]) -> dict[str, Sample]:
    keyed: dict[str, Sample] = {}
    for sample in samples:
        first = keyed.setdefault(key_of(sample.name), sample)
        if first is not sample:
            raise UserError(
                "two samples have the same name",
                file=dataset.file,
                found=f"'{first.name}' in {first.piece.file} and '{sample.name}' in "
                f"{sample.piece.file}; both have the key {key_of(sample.name)}",
                remedy="name them otherwise: only letters, digits, - and _ tell samples apart",
            )
    return keyed


def _label(
    dataset: ArrayDataset,
    sample: Sample,
    label: str,
    classes: Sequence[str],
    fields: Mapping[Field, str],
) -> int:
    """The class of a sample that all is known of.

    Raises:
        RejectedError: it is damaged, or something is not known.
    """
    if sample.found.fault:
        raise RejectedError(sample.found.fault)
    for what, value in (("label", label), *fields.items()):
        if not value:
            raise RejectedError(f"no {what}", found=f"nothing by [{what}s] for '{sample.name}'")
    return label_number(label, classes, dataset.labels.first)


def _nothing(what: str, dataset: ArrayDataset, faults: Sequence[Row]) -> UserError:
    return UserError(
        what,
        file=dataset.file,
        place="source",
        found="; ".join(f"{source}: {reason}" for _, source, reason in faults[:3]),
        expected=f"samples in {dataset.source.path}",
        remedy="correct the manifest, or name other raw data with --raw",
    )


def _notes(numbers: Mapping[Field, Mapping[str, int]], neither: Counter[str]) -> Iterator[str]:
    for field, table in numbers.items():
        if any(value != str(number) for value, number in table.items()):
            shown = [f"{value} = {number}" for value, number in table.items()]
            more = f" … {shown[-1]}" if len(shown) > 8 else ""
            yield f"{field}s are numbered from 1: {', '.join(shown[:8])}{more}"
    for split, count in neither.items():
        yield f"{split}: left out {count:,} samples that the manifest puts in neither part"
