"""Arrays that others have prepared, as a listing: what fits the data set and what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from skelpipe.errors import UserError
from skelpipe.manifest import NtuDataset, Part, load_topology
from skelpipe.shards.card import Source, digest_of

from . import ntu, published
from .archive import Reader
from .listing import Clip, Listing, Row, Unit
from .missing import in_range
from .published import JOINTS, Block, Layout
from .published_files import Dataset, Published, Sample, find_samples, identity
from .recording import RejectedError

_WORDS = {  # what a file's name says of its split
    "xsub": re.compile(r"(?<![a-z])(cs|csub|xsub|cross[-_]?subject)(?![a-z])", re.I),
    "xview": re.compile(r"(?<![a-z])(cv|cview|xview|cross[-_]?view)(?![a-z])", re.I),
    "xset": re.compile(r"(?<![a-z])(cset|xset|xsetup|cross[-_]?setup)(?![a-z])", re.I),
}
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}", re.ASCII)
_PADDED = 6  # times the numbers that are left of a padded sample, about
_PROBES = 16  # samples that are looked into beforehand
_MOVED = 1e-3  # metres; a centre further off the origin is none
_AUTHORS: dict[Layout, tuple[str, str]] = {  # and the pipeline that their arrays are made with
    "ctrgcn-npz": ("CTR-GCN's code", "ctrgcn"),
    "2s-agcn-npy": ("2s-AGCN's code", "agcn"),
    "pyskl-pickle": ("pyskl", "ctrgcn"),
}


def list_published(
    found: Published,
    dataset: Dataset,
    splits: Sequence[str],
    *,
    pipeline: str,
    switches: Mapping[str, str],
    known: Mapping[str, tuple[str, ...]],
    missing_list: Path | None,
) -> Listing:
    """List a data set in arrays that others have prepared.

    Samples that bear NTU RGB+D's names get all fields from them, and their part under each split
    from the data set's own rule; pyskl's lists must say the same. Other samples belong to the split
    that is asked for, as their file does not name it; their subject, camera and setup are 0.

    Args:
        found: The files.
        dataset: What they hold.
        splits: The splits that are asked for.
        pipeline: The pipeline that is asked for.
        switches: A value for each switch.
        known: Switch -> its values, the default first.
        missing_list: Must be None: those who made the arrays have left recordings out already.

    Raises:
        UserError: the files are damaged, of another data set or made by another pipeline, or it
            cannot be known what split they are of.
    """
    done = isinstance(dataset, NtuDataset) or found.layout == "2s-agcn-npy"
    done = done and found.layout != "pyskl-pickle"
    _check_options(found, done, pipeline, switches, known, missing_list)
    where = ", ".join(map(str, found.files))
    with Reader() as reader:
        samples = find_samples(found, dataset, reader)
        unsplit = any("" in s.parts and not _is_ntu(s, dataset) for s in samples)
        asked = _asked(found.files, splits) if unsplit else ""
        units: dict[str, Unit] = {}
        refused: list[Row] = []
        for sample in samples:
            clip = _clip(sample, dataset)
            if clip is None:
                continue
            fault = sample.fault or _fault(sample, clip, dataset)
            if not fault and clip.key in units:
                fault = "the same name twice"
            if fault or sample.block is None:
                file = sample.block.source if sample.block else found.files[0].name
                refused.append((clip.key, f"{file}:{sample.place}", fault))
                continue
            units[clip.key] = Unit(
                member=sample.block,
                parts=_parts(sample, clip, dataset, asked),
                clips=(clip,),
                size=sample.block.size,
                stored=_stored(sample.block),
                record=sample.place,
                done=done,
            )
        if not units:
            raise UserError(
                f"none of the samples can be used for {dataset.title}",
                file=where,
                found=refused[0][2] if refused else f"{len(samples):,} samples of another data set",
                remedy="name the data set that it is, or other files with --raw",
            )
        if done:
            _check_centred(list(units.values()), dataset, found, reader)
    notes = list(found.notes)
    if others := len(samples) - len(units) - len(refused):
        notes.append(f"left out {others:,} samples that do not belong to {dataset.title}")
    listed = sorted((unit.source, unit.size, unit.clips[0].label) for unit in units.values())
    return Listing(
        units=tuple(units[key] for key in sorted(units)),
        source=Source(
            layout=found.layout,
            recordings=len(units) + len(refused),
            digest=digest_of([*identity(found.files), *listed, *sorted(refused)]),
        ),
        refused=tuple(sorted(refused)),
        outside={name: tuple(_outside(name, units.values())) for name in dataset.splits},
        warnings=tuple(_warnings(found.layout, units.values())),
        notes=tuple(notes),
    )


def _check_options(
    found: Published,
    done: bool,
    pipeline: str,
    switches: Mapping[str, str],
    known: Mapping[str, tuple[str, ...]],
    missing_list: Path | None,
) -> None:
    """Refuse what was asked of arrays that have been made already."""
    authors, made_with = _AUTHORS[found.layout]
    where = ", ".join(map(str, found.files))
    if pipeline != made_with:
        raise UserError(
            f"these arrays were made with pipeline '{made_with}'",
            file=where,
            found=f"arrays of {authors} ({found.layout})",
            expected=f"raw recordings for pipeline '{pipeline}'",
            remedy=f"choose --pipeline {made_with}, or name the official archive with --raw",
        )
    for name, value in switches.items():
        if value != known[name][0] and (done or name != "centre"):
            raise UserError(
                f"switch '{name}' has no effect on arrays that {authors} has made",
                file=where,
                found=f"{name} = {value}",
                expected=f"{name} = {known[name][0]}, as published",
                remedy="leave it away, or name the official archive with --raw",
            )
    if missing_list is not None:
        raise UserError(
            f"a missing list has no effect on arrays that {authors} has made",
            file=missing_list,
            found=where,
            expected="raw recordings: from arrays they have been left out already",
            remedy="leave --missing-list away",
        )


def _asked(files: Sequence[Path], splits: Sequence[str]) -> str:
    """The split that arrays without names are of."""
    where = ", ".join(map(str, files))
    if len(splits) != 1:
        raise UserError(
            "arrays without names are of one split, and do not say of which",
            file=where,
            found=", ".join(splits) or "no split asked for",
            remedy="name the one split that they are of with --split",
        )
    told = {split for file in files for split in _WORDS if _WORDS[split].search(file.stem)}
    if told and splits[0] not in told:
        raise UserError(
            f"these arrays are of another split than {splits[0]}, as their name says",
            file=where,
            found=", ".join(sorted(told)),
            expected=splits[0],
            remedy=f"choose --split {min(told)}, name other files, or rename these",
        )
    return splits[0]


def _check_centred(
    units: Sequence[Unit], dataset: Dataset, found: Published, reader: Reader
) -> None:
    """Refuse arrays of which most samples are not where the pipeline puts them."""
    centre = load_topology(dataset.topology).centre
    off = []
    for unit in units[:: -(-len(units) // _PROBES)]:
        assert isinstance(unit.member, Block)
        try:
            poses_MTJC = published.read(unit.member, reader).slots()
        except RejectedError:
            continue
        for body_TJC in poses_MTJC[:1]:
            first = body_TJC.any(axis=(1, 2)).argmax()
            off.append(float(np.abs(body_TJC[first, centre]).max()))
    if off and np.median(off) > _MOVED:
        authors, made_with = _AUTHORS[found.layout]
        raise UserError(
            f"these arrays are not what {authors} makes: they are not centred",
            file=", ".join(map(str, found.files)),
            found=f"the middle of the spine {np.median(off):.3g} m off the origin at first",
            expected=f"arrays as pipeline '{made_with}' makes them",
            remedy="name the official archive with --raw",
        )


def _is_ntu(sample: Sample, dataset: Dataset) -> bool:
    return isinstance(dataset, NtuDataset) and ntu.KEY.fullmatch(sample.name) is not None


def _clip(sample: Sample, dataset: Dataset) -> Clip | None:
    """A sample's clip; None where it is of another data set."""
    if not isinstance(dataset, NtuDataset) or not ntu.KEY.fullmatch(sample.name):
        return Clip(key=sample.name, label=sample.label)
    if not in_range(sample.name, dataset):
        return None
    name = ntu.parse_name(sample.name)
    return Clip(
        key=sample.name,
        label=name.action - dataset.actions[0],
        subject=name.subject,
        camera=name.camera,
        setup=name.setup,
        replication=name.replication,
    )


def _fault(sample: Sample, clip: Clip, dataset: Dataset) -> str:
    if not _KEY.fullmatch(clip.key):
        return f"wrong name: found {clip.key[:100]!r}, expected letters, digits, - and _"
    if sample.label != clip.label:
        return f"another label than its name says: found {sample.label}, expected {clip.label}"
    if not 0 <= clip.label < len(dataset.classes):
        return f"unknown class: found {clip.label}, expected 0-{len(dataset.classes) - 1}"
    if _is_ntu(sample, dataset):
        rule = _rule(clip, dataset)
        for split, part in sample.parts.items():
            if split in dataset.splits and rule.get(split) != part:
                return f"in the wrong list of {split}: found {part}, expected {rule.get(split)}"
    return ""


def _rule(clip: Clip, dataset: Dataset) -> dict[str, Part]:
    assert isinstance(dataset, NtuDataset)
    parts = {n: rule.part(getattr(clip, rule.field)) for n, rule in dataset.splits.items()}
    return {split: part for split, part in parts.items() if part is not None}


def _parts(sample: Sample, clip: Clip, dataset: Dataset, asked: str) -> Mapping[str, Part]:
    if "" not in sample.parts:
        return {split: part for split, part in sample.parts.items() if split in dataset.splits}
    if _is_ntu(sample, dataset):
        return _rule(clip, dataset)
    return {asked: sample.parts[""]}


def _stored(block: Block) -> int:
    numbers = block.size * 4 // int(block.array.dtype[2:])
    if block.layout == "pyskl-pickle":
        return numbers
    return block.length * JOINTS * 12 if block.length else numbers // _PADDED


def _outside(split: str, units: Iterable[Unit]) -> Iterator[Row]:
    for unit in units:
        if split not in unit.parts:
            yield unit.clips[0].key, unit.source, f"not in the lists of {split}"


def _warnings(layout: Layout, units: Iterable[Unit]) -> Iterator[str]:
    blocks = [unit.member for unit in units if isinstance(unit.member, Block)]
    kinds = " and ".join(sorted({np.dtype(block.array.dtype).name for block in blocks}))
    yield f"prepared by {_AUTHORS[layout][0]}, in {kinds}"
    if layout == "2s-agcn-npy" and any(block.length is None for block in blocks):
        yield "frame counts are not known: what was repeated to fill 300 frames is kept"
