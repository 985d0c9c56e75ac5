"""What becomes of a damaged set: `verify`, the resident loader and plain webdataset, side by side.

Faults are made in the bytes of a small prepared set, one at a time and of every kind that disks,
copies and people make. Each reader then either stops, or goes on: with the same samples, because
it does not read what was hit, or with wrong, other or fewer ones and without a word.
"""

from __future__ import annotations

import gc
import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import webdataset

from skelpipe.errors import UserError
from skelpipe.manifest import load_topology
from skelpipe.prepare.finish import REJECTED
from skelpipe.shards.card import (
    CARD,
    Card,
    Counts,
    FileStamp,
    PipelineStamp,
    Precision,
    Source,
    card_bytes,
    digest_of,
    read_card,
)
from skelpipe.shards.index import INDEX, parse_index, tally, write_index
from skelpipe.shards.tar import BLOCK, PAYLOAD_HEADER, ShardWriter, payload_bytes
from skelpipe.shards.verify import verify
from skelpipe.stream.source import Resident, select

_CPU = torch.device("cpu")

Files = dict[str, bytes]
Changes = Mapping[str, bytes | None]
"""File name -> its bytes after a fault, None where it is gone."""
Make = Callable[["Whole", np.random.Generator], Changes]


@dataclass
class Outcome:
    """How often a reader stopped, gave the same samples, or gave others without a word."""

    stopped: int = 0
    unharmed: int = 0
    wrong: int = 0


@dataclass
class Row:
    """A kind of fault: how many were made, how many of them `verify` found, what readers did."""

    kind: str
    faults: int
    verify: int
    loader: Outcome
    webdataset: Outcome


@dataclass(frozen=True)
class Whole:
    """A set before the fault, file by file, and another preparation's of the same samples."""

    files: Files
    other: Files
    card: Card
    rows: list[dict[str, Any]]
    regions: dict[str, list[tuple[str, int, int]]]

    @property
    def shards(self) -> list[str]:
        return [name for name in self.files if name.endswith(".tar")]


def damage(faults: int = 2000, seed: int = 0) -> list[Row]:
    """Make faults, in turn of every kind of `KINDS`, and count what each reader does.

    webdataset is given the list of shards the set had, and decodes every sample.

    Args:
        faults: How many, at least one of each kind.
        seed: Of their places.
    """
    rng = np.random.default_rng(seed)
    rows = {kind: Row(kind, 0, 0, Outcome(), Outcome()) for kind in KINDS}
    with TemporaryDirectory(prefix="skelpipe-damage-") as name, warnings.catch_warnings():
        # webdataset leaves the closing of its files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        folder = write_set(Path(name) / "set", seed=1)
        whole = _whole(folder, write_set(Path(name) / "other", seed=2))
        urls = [str(folder / shard) for shard in whole.shards]
        loaded, streamed = _load(folder), _stream(urls)
        for number in range(max(faults, len(KINDS))):
            kind = list(KINDS)[number % len(KINDS)]
            row, changes = rows[kind], _differing(KINDS[kind], whole, rng)
            _write(folder, changes)
            row.faults += 1
            row.verify += bool(verify(folder, workers=1))
            _count(row.loader, lambda: _load(folder) == loaded, UserError)
            _count(row.webdataset, lambda: _stream(urls) == streamed, Exception)
            _write(folder, {name: whole.files.get(name) for name in changes})
        gc.collect()
    return list(rows.values())


def markdown(rows: list[Row]) -> str:
    """The counts as a Markdown table; the last row adds them up."""
    columns = (
        "fault", "made", "`verify` finds", "our loader stops", "same samples", "wrong, silently",
        "plain webdataset stops", "same samples", "wrong, silently",
    )  # fmt: skip
    total = Row("**all**", 0, 0, Outcome(), Outcome())
    for row in rows:
        total.faults += row.faults
        total.verify += row.verify
        for whole, part in ((total.loader, row.loader), (total.webdataset, row.webdataset)):
            whole.stopped += part.stopped
            whole.unharmed += part.unharmed
            whole.wrong += part.wrong
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for row in (*rows, total):
        counts = [row.faults, row.verify]
        for outcome in (row.loader, row.webdataset):
            counts += [outcome.stopped, outcome.unharmed, outcome.wrong]
        lines.append(f"| {row.kind} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return "\n".join(lines)


def write_set(
    folder: Path,
    train: int = 12,
    test: int = 6,
    *,
    seed: int = 0,
    precision: Precision = "float32",
    shard_samples: int = 4,
) -> Path:
    """A whole prepared set of random walks with two classes; every third sample has two bodies."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for part, count in (("train", train), ("test", test)):
        for first in range(0, count, shard_samples):
            shard = f"{part}-{first // shard_samples:06d}.tar"
            with (folder / shard).open("wb") as file:
                writer = ShardWriter(file)
                for number in range(first, min(first + shard_samples, count)):
                    bodies, frames = 1 + (number % 3 == 2), 4 + number % 7
                    poses = rng.normal(0, 0.1, (bodies, frames, 25, 3)).cumsum(1)
                    payload = payload_bytes(poses.astype(np.float32), precision)
                    row = {
                        "key": f"{part}{count - number:03d}", "label": number % 2,
                        "subject": 1 + number % 4, "camera": 1, "setup": 1 + number % 2,
                        "bodies": bodies, "frames": frames,
                    }  # fmt: skip
                    offset = writer.add(str(row["key"]), payload, json.dumps(row).encode())
                    place = {"part": part, "shard": shard, "offset": offset, "size": len(payload)}
                    digests = {
                        "crc32": zlib.crc32(payload), "sha256": hashlib.sha256(payload).hexdigest()
                    }  # fmt: skip
                    rows.append({**row, **place, **digests})
                writer.close()
    table = write_index(folder / INDEX, rows)
    (folder / REJECTED).write_text('{"key": "train999", "source": "x", "reason": "empty"}\n')
    card = Card(
        dataset="toy",
        title="Toy",
        split="half",
        topology=load_topology("kinect_v2"),
        fps=30,
        pipeline=PipelineStamp(name="ctrgcn", version=1, switches={}),
        precision=precision,
        classes=("one", "two"),
        counts=Counts(
            total=tally(table),
            train=tally(table.filter(pc.equal(table["part"], "train"))),
            test=tally(table.filter(pc.equal(table["part"], "test"))),
            published={},
            rejected={"empty": 1},
            missing=0,
        ),
        missing_list=None,
        warnings=(),
        source=Source(layout="toy", recordings=train + test, digest=str(seed)),
        files={file.name: _stamp(file.read_bytes()) for file in sorted(folder.iterdir())},
        data_digest=digest_of(sorted((row["key"], row["sha256"]) for row in rows)),
    )
    (folder / CARD).write_bytes(card_bytes(card))
    return folder


def _whole(folder: Path, other: Path) -> Whole:
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    rows = parse_index(files[INDEX], folder / INDEX).to_pylist()
    return Whole(
        files=files,
        other={file.name: file.read_bytes() for file in sorted(other.iterdir())},
        card=read_card(folder),
        rows=rows,
        regions=_regions(files, rows),
    )


def _regions(files: Files, rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, int, int]]]:
    """Class of bytes -> file, first byte and the one after the last."""
    regions: dict[str, list[tuple[str, int, int]]] = {
        name: [(name, 0, len(files[name]))] for name in (INDEX, CARD, REJECTED)
    }

    def add(name: str, shard: str, begin: int, end: int) -> None:
        if begin < end:
            regions.setdefault(name, []).append((shard, begin, end))

    for row in rows:
        shard, begin = row["shard"], row["offset"]
        end = begin + row["size"]
        header = end + -end % BLOCK
        text = header + BLOCK
        text_end = text + int(files[shard][header + 124 : header + 135], 8)
        after = text_end + -text_end % BLOCK
        for tar_header in (begin - BLOCK, header):
            add("tar header", shard, tar_header, tar_header + BLOCK)
        add("npy header", shard, begin, begin + PAYLOAD_HEADER)
        add("positions", shard, begin + PAYLOAD_HEADER, end)
        add("JSON", shard, text, text_end)
        add("padding", shard, end, header)
        add("padding", shard, text_end, after)
        add("sample", shard, begin - BLOCK, after)
    for name, data in files.items():
        if name.endswith(".tar"):
            add("end of a shard", name, len(data) - 2 * BLOCK, len(data))
    return regions


def _load(folder: Path) -> list[tuple[str, int, bytes]]:
    """Key, label and positions of all samples, as the resident loader gives them."""
    samples = []
    for part in ("train", "test"):
        source = Resident(folder, select(folder, part), _CPU)
        rows = source.frames_N * source.bodies_N
        for key, label, start, count in zip(
            source.table["key"].to_pylist(), source.label_N, source.start_N, rows, strict=True
        ):
            poses = source.flat_RJC[start : start + count].numpy()
            samples.append((key, int(label), poses.tobytes()))
    return sorted(samples)


def _stream(urls: list[str]) -> list[tuple[str, str, bytes]]:
    """Key, description and positions of all samples, as plain webdataset gives them."""
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    return sorted(
        (sample["__key__"], json.dumps(sample["json"], sort_keys=True), sample["x.npy"].tobytes())
        for sample in samples
    )


def _count(outcome: Outcome, same: Callable[[], bool], stops: type[Exception]) -> None:
    try:
        unharmed = same()
    except stops:
        outcome.stopped += 1
    else:
        outcome.unharmed += unharmed
        outcome.wrong += not unharmed


def _write(folder: Path, changes: Changes) -> None:
    for name, data in changes.items():
        (folder / name).unlink(missing_ok=True)  # some file systems flush what is written over
        if data is not None:
            (folder / name).write_bytes(data)


def _differing(make: Make, whole: Whole, rng: np.random.Generator) -> Changes:
    """A fault that changes something: zeros over zeros are none."""
    while True:
        changes = make(whole, rng)
        if any(whole.files.get(name) != data for name, data in changes.items()):
            return changes


def _flip(region: str) -> Make:
    def make(whole: Whole, rng: np.random.Generator) -> Changes:
        name, begin, end = _one(whole.regions[region], rng)
        data = bytearray(whole.files[name])
        data[rng.integers(begin, end)] ^= 1 << rng.integers(8)
        return {name: bytes(data)}

    return make


def _one(options: list[Any], rng: np.random.Generator) -> Any:
    return options[rng.integers(len(options))]


def _two(options: list[Any], rng: np.random.Generator) -> list[Any]:
    return [options[place] for place in rng.choice(len(options), 2, replace=False)]


def _cut_shard(whole: Whole, rng: np.random.Generator) -> Changes:
    name = _one(whole.shards, rng)
    return {name: whole.files[name][: rng.integers(len(whole.files[name]))]}


def _cut_between(whole: Whole, rng: np.random.Generator) -> Changes:
    name, begin, _ = _one(whole.regions["sample"], rng)
    return {name: whole.files[name][:begin]}


def _cut_other(whole: Whole, rng: np.random.Generator) -> Changes:
    name = _one([INDEX, CARD, REJECTED], rng)
    return {name: whole.files[name][: rng.integers(len(whole.files[name]))]}


def _zero_block(whole: Whole, rng: np.random.Generator) -> Changes:
    name = _one(whole.shards, rng)
    begin = BLOCK * int(rng.integers(len(whole.files[name]) // BLOCK))
    return {name: _spliced(whole.files[name], begin, begin + BLOCK, bytes(BLOCK))}


def _zero_header(whole: Whole, rng: np.random.Generator) -> Changes:
    name, begin, end = _one(whole.regions["tar header"], rng)
    return {name: _spliced(whole.files[name], begin, end, bytes(BLOCK))}


def _swap_shards(whole: Whole, rng: np.random.Generator) -> Changes:
    one, two = _two(whole.shards, rng)
    return {one: whole.files[two], two: whole.files[one]}


def _swap_samples(whole: Whole, rng: np.random.Generator) -> Changes:
    name = _one(whole.shards, rng)
    samples = [(begin, end) for shard, begin, end in whole.regions["sample"] if shard == name]
    (a, b), (c, d) = sorted(_two(samples, rng))
    data = whole.files[name]
    return {name: data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]}


def _swap_payloads(whole: Whole, rng: np.random.Generator) -> Changes:
    """Two samples' positions under each other's names, in an otherwise faultless archive."""
    name = _one(whole.shards, rng)
    rows = [row for row in whole.rows if row["shard"] == name]
    one, two = _two(list(range(len(rows))), rng)
    order = list(range(len(rows)))
    order[one], order[two] = two, one
    file, data = BytesIO(), whole.files[name]
    writer = ShardWriter(file)
    for row, other in zip(rows, order, strict=True):
        begin, size = rows[other]["offset"], rows[other]["size"]
        described = {column: row[column] for column in ("key", "label", "subject", "camera")}
        described |= {column: row[column] for column in ("setup", "bodies", "frames")}
        writer.add(row["key"], data[begin : begin + size], json.dumps(described).encode())
    writer.close()
    return {name: file.getvalue()}


def _remove_sample(whole: Whole, rng: np.random.Generator) -> Changes:
    name, begin, end = _one(whole.regions["sample"], rng)
    return {name: _spliced(whole.files[name], begin, end, b"")}


def _double_sample(whole: Whole, rng: np.random.Generator) -> Changes:
    name, begin, end = _one(whole.regions["sample"], rng)
    return {name: _spliced(whole.files[name], end, end, whole.files[name][begin:end])}


def _remove_shard(whole: Whole, rng: np.random.Generator) -> Changes:
    return {_one(whole.shards, rng): None}


def _remove_other(whole: Whole, rng: np.random.Generator) -> Changes:
    return {_one([INDEX, CARD, REJECTED], rng): None}


def _add_file(whole: Whole, rng: np.random.Generator) -> Changes:
    name = _one(whole.shards, rng)
    added = f"{name.partition('-')[0]}-{rng.integers(100, 999):06d}.tar"
    return {_one([added, f"{name}.part", f".new-{name}"], rng): whole.files[name]}


def _append(whole: Whole, rng: np.random.Generator) -> Changes:
    name = _one(list(whole.files), rng)
    return {name: whole.files[name] + bytes(int(rng.integers(1, 2000)))}


def _other_file(*names: str) -> Make:
    """A file of the other preparation."""

    def make(whole: Whole, rng: np.random.Generator) -> Changes:
        name = _one(list(names) or whole.shards, rng)
        return {name: whole.other[name]}

    return make


def _other_labels(whole: Whole, rng: np.random.Generator) -> Changes:
    """An index with two labels exchanged."""
    rows = [dict(row) for row in whole.rows]
    one, two = (_one([row for row in rows if row["label"] == label], rng) for label in (0, 1))
    one["label"], two["label"] = two["label"], one["label"]
    with TemporaryDirectory() as folder:
        write_index(Path(folder) / INDEX, rows)
        return {INDEX: (Path(folder) / INDEX).read_bytes()}


def _other_sums(whole: Whole, rng: np.random.Generator) -> Changes:
    """A card that says something else about the same files."""
    train = whole.card.counts.train
    changed: list[dict[str, Any]] = [
        {"data_digest": hashlib.sha256(rng.bytes(8)).hexdigest()},
        {"precision": "int16"},
        {"counts": whole.card.counts.model_copy(
            update={"train": train.model_copy(update={"samples": int(rng.integers(1000, 2000))})}
        )},
    ]  # fmt: skip
    return {CARD: card_bytes(whole.card.model_copy(update=_one(changed, rng)))}


def _signed(make: Make) -> Make:
    """A fault, and the card made anew so that all sizes and digests fit."""

    def signed(whole: Whole, rng: np.random.Generator) -> Changes:
        changes = _differing(make, whole, rng)
        files = dict(whole.card.files)
        for name, data in changes.items():
            if data is None:
                del files[name]
            else:
                files[name] = _stamp(data)
        return {**changes, CARD: card_bytes(whole.card.model_copy(update={"files": files}))}

    return signed


def _spliced(data: bytes, begin: int, end: int, new: bytes) -> bytes:
    return data[:begin] + new + data[end:]


def _stamp(data: bytes) -> FileStamp:
    return FileStamp(size=len(data), sha256=hashlib.sha256(data).hexdigest())


KINDS: dict[str, Make] = {
    "one bit flipped in a tar header": _flip("tar header"),
    "… in an npy header": _flip("npy header"),
    "… in the positions": _flip("positions"),
    "… in a sample's JSON": _flip("JSON"),
    "… in the padding": _flip("padding"),
    "… in the zeros that end a shard": _flip("end of a shard"),
    "… in the index": _flip(INDEX),
    "… in the card": _flip(CARD),
    "… in the list of rejections": _flip(REJECTED),
    "shard cut at any byte": _cut_shard,
    "shard cut between two samples": _cut_between,
    "index, card or list cut": _cut_other,
    "512 bytes of a shard zeroed": _zero_block,
    "tar header zeroed": _zero_header,
    "two shards swapped": _swap_shards,
    "two samples swapped in their shard": _swap_samples,
    "two samples' positions swapped": _swap_payloads,
    "sample taken out": _remove_sample,
    "sample doubled": _double_sample,
    "shard deleted": _remove_shard,
    "index, card or list deleted": _remove_other,
    "file added": _add_file,
    "zeros appended to a file": _append,
    "index of another preparation": _other_file(INDEX),
    "shard of another preparation": _other_file(),
    "card of another preparation": _other_file(CARD),
    "index of another preparation, card signed anew": _signed(_other_file(INDEX)),
    "shard of another preparation, card signed anew": _signed(_other_file()),
    "labels exchanged in the index, card signed anew": _signed(_other_labels),
    "positions swapped, card signed anew": _signed(_swap_payloads),
    "sample taken out, card signed anew": _signed(_remove_sample),
    "shard deleted, card signed anew": _signed(_remove_shard),
    "card of other sums, signed anew": _other_sums,
}
