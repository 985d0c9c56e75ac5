"""Whether a prepared set is, byte for byte, the one that was made.

The card vouches for the size and sha256 of every other file and, by its own digest, for itself:
that finds whatever happened to the bytes. Then the index is held against the shards, sample by
sample, which tells where the damage sits, and finds an index, a shard or a card that belongs to
another preparation even where somebody has signed the card anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from skelpipe.errors import UserError

from .card import CARD, Card, FileStamp, card_bytes, digest_of, place_of, read_card
from .index import INDEX, parse_index, tally
from .tar import BLOCK, ITEM, PAYLOAD_HEADER, member_header, member_size, padded, payload_header

_THREADS = 8  # a quarter of the time is spent in Python, whose lock more would wait for
_TOLD = ("key", "label", "subject", "camera", "setup", "bodies", "frames")  # by row and by JSON
_MUST = ("key", "label", "bodies", "frames")  # the JSON has these at least

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """A difference between what is there and what should be.

    Attributes:
        file: Its name in the set's folder.
        place: Where in it, with the sample that is hit where one is; empty for the whole file.
        found: What is there.
        expected: What should be.
    """

    file: str
    place: str
    found: str
    expected: str


@dataclass
class _Checked:
    """What the check of a file gave: its faults; of a shard, (key, sha256 of payload) as well."""

    size: int
    faults: list[Fault] = field(default_factory=list)
    payloads: list[tuple[str, str]] = field(default_factory=list)


def find_folders(root: Path) -> list[Path]:
    """Folders under a shards root that hold a prepared set or what is left of one, sorted."""
    folders = (folder for folder in Path(root).glob("*/*/*") if not folder.name.startswith("."))
    return sorted(folder for folder in folders if folder.is_dir() and _remains(folder))


def verify(
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> list[Fault]:
    """All faults of a prepared set; none where it is whole.

    Args:
        folder: The set.
        progress: Called with the bytes that are checked and all there are.
        workers: Threads; by default one a core, at most 8. Hashing does not hold Python's lock.

    Raises:
        UserError: The folder holds no prepared set, nor what is left of one.
    """
    folder = Path(folder)
    try:
        card = read_card(folder)
    except UserError as error:
        if not _remains(folder):
            raise
        found = error.what if (folder / CARD).is_file() else "no such file"
        return [Fault(CARD, "", found, "the card of the set, without which nothing can be checked")]
    faults = [*_card_faults(folder, card), *_strangers(folder, card)]
    table, index = _index(folder, card)
    total = sum(stamp.size for stamp in card.files.values())
    done, payloads = index.size, list[tuple[str, str]]()
    checked = {INDEX: index}
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, _THREADS)) as pool:
        tasks = {
            pool.submit(_check_file, folder / name, stamp, table, card): name
            for name, stamp in card.files.items()
            if name != INDEX
        }
        try:
            for task in as_completed(tasks):
                checked[tasks[task]] = task.result()
                done += card.files[tasks[task]].size
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for name in sorted(checked):
        faults += checked[name].faults
        payloads += checked[name].payloads
    if table is not None and not faults:
        faults += _sums(table, payloads, card)
    return faults


def misplaced(folder: Path) -> list[Fault]:
    """The fault of a set under a shards root that lies where another belongs; see `place_of`."""
    try:
        card = read_card(folder)
    except UserError:
        return []  # which `verify` tells
    belongs = place_of(card.dataset, card.pipeline.name, card.precision) / card.split
    if folder.absolute().parts[-3:] == belongs.parts:
        return []
    return [Fault(CARD, "", str(belongs), f"the set of {'/'.join(folder.parts[-3:])}")]


def _remains(folder: Path) -> bool:
    known = any((folder / name).is_file() for name in (CARD, INDEX))
    return known or any(folder.glob("*.tar"))


def _card_faults(folder: Path, card: Card) -> Iterator[Fault]:
    """Bytes of the card that its digest does not cover: white space, the order of fields."""
    found, expected = (folder / CARD).read_bytes(), card_bytes(card)
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        place = next((n for n, (a, b) in pairs if a != b), min(len(found), len(expected)))
        yield Fault(CARD, f"byte {place}", _hex(found[place:]), _hex(expected[place:]))


def _strangers(folder: Path, card: Card) -> Iterator[Fault]:
    for name in sorted(file.name for file in folder.iterdir()):
        if name != CARD and name not in card.files:
            yield Fault(name, "", "a file that the card does not know", "no such file")


def _index(folder: Path, card: Card) -> tuple[pa.Table | None, _Checked]:
    """The index, None where it is damaged, and what its check gave."""
    stamp = card.files.get(INDEX)
    if stamp is None:
        return None, _Checked(0, [Fault(CARD, "files", "no index", INDEX)])
    checked = _check_bytes(folder / INDEX, stamp)
    if checked.faults:
        return None, checked
    try:
        table = parse_index((folder / INDEX).read_bytes(), folder / INDEX)
    except UserError as error:
        return None, replace(checked, faults=[Fault(INDEX, "", error.what, "an index")])
    for shard in table["shard"].unique().to_pylist():
        if shard not in card.files:
            rows = len(table.filter(pc.equal(table["shard"], shard)))
            fault = Fault(INDEX, f"{rows} rows", f"samples in {shard}", "shards the card names")
            checked.faults.append(fault)
    return table, checked


def _check_file(file: Path, stamp: FileStamp, table: pa.Table | None, card: Card) -> _Checked:
    if table is None or file.suffix != ".tar":
        return _check_bytes(file, stamp)
    rows = table.filter(pc.equal(table["shard"], file.name)).sort_by("offset").to_pylist()
    try:
        size = _size(file)
        with file.open("rb") as opened:
            faults, payloads, sha256 = walk(opened, size, rows, file.name, card)
    except OSError as error:
        return _Checked(stamp.size, [_unreadable(file, error, stamp)])
    if size != stamp.size:
        faults.insert(0, _wrong_size(file, size, stamp))
    elif not faults and sha256 != stamp.sha256:
        faults.append(_wrong_sha256(file, sha256, stamp))
    return _Checked(stamp.size, faults, payloads)


def _check_bytes(file: Path, stamp: FileStamp) -> _Checked:
    try:
        size = _size(file)
        if size != stamp.size:
            return _Checked(stamp.size, [_wrong_size(file, size, stamp)])
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return _Checked(stamp.size, [_unreadable(file, error, stamp)])
    if sha256 != stamp.sha256:
        return _Checked(stamp.size, [_wrong_sha256(file, sha256, stamp)])
    return _Checked(stamp.size)


def walk(
    file: BinaryIO, size: int, rows: list[dict[str, Any]], name: str, card: Card
) -> tuple[list[Fault], list[tuple[str, str]], str]:
    """Hold a shard against its rows of the index.

    The rows must account for every byte: a sample begins where the one before ends. Nothing is
    taken from the shard but bytes to compare, and no more of it is in memory than one sample.

    Args:
        file: The shard, at its start.
        size: Its bytes.
        rows: Of the index, sorted by offset.
        name: Of the shard.
        card: Whose precision and joints the payloads have.

    Returns:
        Its faults; (key, sha256 of payload) of its whole samples; the sha256 of all its bytes,
        which is only true where there is no fault.
    """
    faults: list[Fault] = []
    payloads: list[tuple[str, str]] = []
    digest = hashlib.sha256()
    starts = [row["offset"] - BLOCK for row in rows]
    place = 0
    for row, start, end in zip(rows, starts, [*starts[1:], size - 2 * BLOCK], strict=False):
        here = f"sample {row['key']}"
        if start != place:
            faults.append(Fault(name, here, f"in the index at byte {start}", f"at byte {place}"))
        place = end
        if not 0 <= start < end <= size:
            found = f"in the index from byte {start} to {end}"
            faults.append(Fault(name, here, found, f"within the shard's {size} bytes"))
            continue
        if file.tell() != start:
            file.seek(start)
        sample = file.read(end - start)
        digest.update(sample)
        fault = _sample_fault(sample, row, name, card)
        if fault is None:
            payload = memoryview(sample)[BLOCK : BLOCK + row["size"]]
            payloads.append((row["key"], hashlib.sha256(payload).hexdigest()))
        else:
            faults.append(replace(fault, place=f"{here}, {fault.place}"))
    rest = size - place
    if rest != 2 * BLOCK:
        found = f"{rest} bytes after the index's {len(rows)} samples"
        faults.append(Fault(name, f"byte {place}", found, f"{2 * BLOCK} zeros, which end a shard"))
    elif not faults:
        tail = file.read(rest)
        digest.update(tail)
        if not _zeros(tail):
            faults.append(Fault(name, f"byte {place}", "no zeros", "zeros, which end a shard"))
    return faults, payloads, digest.hexdigest()


def _sample_fault(sample: bytes, row: Row, name: str, card: Card) -> Fault | None:
    """The first fault of a sample, given as its two members with their headers and padding."""
    shape = (row["bodies"], row["frames"], len(card.topology.joints), 3)
    values = ITEM[card.precision].itemsize * shape[0] * shape[1] * shape[2] * 3
    size, key, part = row["size"], row["key"], row["part"]
    if not name.startswith(f"{part}-"):
        return Fault(name, "index", f"part {part!r}", "the part its shard's name says")
    if size != PAYLOAD_HEADER + values:
        told = f"{PAYLOAD_HEADER + values} for {shape} {card.precision}"
        return Fault(name, "index", f"{size} bytes", told)
    try:
        header, json_name = member_header(f"{key}.x.npy", size), f"{key}.json"
    except ValueError as error:
        return Fault(name, "index", str(error), "a name and size of a member")
    if sample[:BLOCK] != header:
        found = _member_name(sample[:100])
        return Fault(name, "tar header", found, f"that of {key}.x.npy, {size} bytes")
    payload = memoryview(sample)[BLOCK : BLOCK + size]
    if len(payload) != size:
        return Fault(name, "payload", f"{len(payload)} bytes before the next", f"{size} bytes")
    if not sample.startswith(payload_header(shape, card.precision), BLOCK):
        found = repr(bytes(payload[10:PAYLOAD_HEADER]).rstrip())
        return Fault(name, "npy header", found, f"{card.precision}, {shape}")
    if zlib.crc32(payload) != row["crc32"]:
        crc32 = f"crc32 {zlib.crc32(payload):08x}"
        return Fault(name, "payload", crc32, f"crc32 {row['crc32']:08x}")
    begin = padded(BLOCK + size)
    if not _zeros(sample[BLOCK + size : begin]):
        return Fault(name, "padding of the payload", "no zeros", "zeros")
    return _json_fault(sample[begin:], json_name, row, name)


def _json_fault(member: bytes, json_name: str, row: Row, name: str) -> Fault | None:
    header = member[:BLOCK]
    size = member_size(header, json_name)
    if size is None:
        found = _member_name(header[:100])
        return Fault(name, "tar header of the JSON", found, f"that of {json_name}")
    if padded(BLOCK + size) != len(member):
        found = f"{size} bytes of JSON in {len(member) - BLOCK} before the next sample"
        return Fault(name, "JSON", found, "the JSON padded to a whole block")
    if not _zeros(member[BLOCK + size :]):
        return Fault(name, "padding of the JSON", "no zeros", "zeros")
    try:
        told = json.loads(member[BLOCK : BLOCK + size])
    except (ValueError, RecursionError) as error:
        return Fault(name, "JSON", str(error), "JSON")
    if not isinstance(told, dict):
        return Fault(name, "JSON", type(told).__name__, "an object")
    for column in _TOLD:
        if (column in told or column in _MUST) and told.get(column) != row[column]:
            found = f"{column} {told.get(column)!r:.100}"
            return Fault(name, "JSON", found, f"{row[column]!r}, as in the index")
    return None


def _sums(table: pa.Table, payloads: list[tuple[str, str]], card: Card) -> Iterator[Fault]:
    """Faults of what index and card say about the set as a whole, each file being whole."""
    keys = len(table["key"].unique())
    if keys != len(table):
        yield Fault(INDEX, "column key", f"{keys} different keys", f"{len(table)}, one a row")
    data_digest = digest_of(sorted(payloads))
    if data_digest != card.data_digest:
        yield Fault(CARD, "data_digest", card.data_digest, f"{data_digest}, the payloads'")
    parts = {part: table.filter(pc.equal(table["part"], part)) for part in ("train", "test")}
    for part, rows in {"total": table, **parts}.items():
        stated, counted = getattr(card.counts, part), tally(rows)
        for count in type(counted).model_fields:
            found, expected = getattr(stated, count), getattr(counted, count)
            if found != expected:
                place = f"counts.{part}.{count}"
                yield Fault(CARD, place, f"{found!s:.100}", f"{expected!s:.100}, as in the index")


def _size(file: Path) -> int:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no plain file")
    return status.st_size


def _wrong_size(file: Path, size: int, stamp: FileStamp) -> Fault:
    return Fault(file.name, "", f"{size} bytes", f"{stamp.size} bytes")


def _wrong_sha256(file: Path, sha256: str, stamp: FileStamp) -> Fault:
    return Fault(file.name, "", f"sha256 {sha256}", f"sha256 {stamp.sha256}")


def _unreadable(file: Path, error: OSError, stamp: FileStamp) -> Fault:
    found = "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    return Fault(file.name, "", found, f"{stamp.size} bytes")


def _member_name(field_of_header: bytes) -> str:
    return repr(field_of_header.partition(b"\0")[0].decode("ascii", "backslashreplace"))


def _zeros(data: bytes) -> bool:
    return data == bytes(len(data))


def _hex(data: bytes) -> str:
    return data[:8].hex(" ") or "the end of the file"
