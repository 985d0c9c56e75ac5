"""Users' own arrays: which samples there are, and what the manifest's columns, patterns and tables
say of each."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skelpipe.errors import UserError, nearest
from skelpipe.manifest import ArrayDataset, ArraySplit, Field, Part, Where
from skelpipe.shards.card import Source, digest_of

from . import columnar, hdf5
from .archive import LARGEST, Member, Reader, find_recordings
from .array_samples import TEXTS, Found, check_known, stacked, text_of
from .array_texts import parse_json, under
from .arrays import Piece, apart, start_of, unpacked
from .listing import Clip, Listing, Row, Unit
from .npy import HEAD, Header, parse_header, parse_npy
from .recording import RejectedError

_SECONDS = 600.0  # that listing one file may take
_TABLE = 256 << 20  # bytes of a table or list
_DIGITS = 4  # bytes of text that become one byte of positions, about
_ARRAY = re.compile(r"(.+)\.npy", re.DOTALL)
_WILD = re.compile(r"[*?\[]")
_NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_FIELDS: tuple[Field, ...] = ("subject", "camera", "setup")


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample with its name, unique in the data set, and where it lies. ``size``: to be read."""

    name: str
    piece: Piece
    found: Found
    size: int

    @property
    def source(self) -> str:
        """Where it comes from, in words that say nothing about this machine."""
        return f"{self.piece.source}:{self.record}" if self.record else self.piece.source

    @property
    def record(self) -> str:
        if self.found.rows is not None:
            return str(self.found.rows[0])
        return self.found.path.strip("/")


def list_arrays(dataset: ArrayDataset, raw: Sequence[Path]) -> Listing:
    """Find a user's own samples.

    Args:
        dataset: The manifest.
        raw: Folders in which its path is looked for, or files; none: the manifest's own folder.

    Raises:
        UserError: there are none; two have the same name; a table lacks a column or is no table.
    """
    faults: list[Row] = []
    samples: list[_Sample] = []
    for file, name in _files(dataset, raw):
        try:
            samples += _samples(dataset, file, name)
        except RejectedError as error:
            faults.append((key_of(name or file.stem), file.name, error.reason))
    if not samples:
        raise UserError(
            "no sample can be read",
            file=dataset.file,
            place="source",
            found="; ".join(f"{source}: {reason}" for _, source, reason in faults[:3]),
            expected=f"samples in {dataset.source.path}",
        )
    keyed = _keyed(dataset, samples)
    values = _Values(dataset)
    labels = _Labels(dataset, [values.of(dataset.labels, sample) for sample in samples])
    numbers = {
        field: _numbered(values.of(where, sample) for sample in samples)
        for field in _FIELDS
        if (where := dataset.where_is(field)) is not None
    }
    units: list[Unit] = []
    outside: dict[str, list[Row]] = {name: [] for name in dataset.splits}
    neither: Counter[str] = Counter()
    for key, sample in sorted(keyed.items()):
        try:
            if sample.found.fault:
                raise RejectedError(sample.found.fault)
            label = labels.number(values.of(dataset.labels, sample))
            stated = {f: values.of(dataset.where_is(f), sample) for f in numbers}
            if lacking := [field for field, value in stated.items() if not value]:
                raise RejectedError(f"no {lacking[0]}", found=f"nothing by [{lacking[0]}s]")
        except RejectedError as error:
            faults.append((key, sample.source, error.reason))
            continue
        parts: dict[str, Part] = {}
        for name, split in dataset.splits.items():
            value = stated[split.by] if isinstance(split.by, str) else values.of(split.by, sample)
            part = values.part(name, split, value, sample)
            if part is None:
                reason = f"not in the lists of {name}: found {value or 'nothing'}"
                outside[name].append((key, sample.source, reason))
            elif part == "neither":
                neither[name] += 1
            else:
                parts[name] = part
        subject, camera, setup = (
            numbers[field][stated[field]] if field in numbers else 0 for field in _FIELDS
        )
        clip = Clip(key, label, subject, camera, setup)
        digits = _DIGITS if dataset.source.layout in ("csv", "json") else 1
        units.append(
            Unit(sample.piece, parts, (clip,), sample.size, sample.size // digits, sample.record)
        )
    if not units:
        raise UserError(
            "no sample can be used",
            file=dataset.file,
            found="; ".join(f"{source}: {reason}" for _, source, reason in faults[:3]),
        )
    known = [
        [sample.source, sample.size, sample.name, dict(sample.found.values)] for sample in samples
    ]
    about = dataset.model_dump(mode="json")
    return Listing(
        units=tuple(units),
        source=Source(
            layout=f"arrays ({dataset.source.layout})",
            recordings=len(samples),
            digest=digest_of([about, labels.classes, *values.read, *known]),
        ),
        refused=tuple(sorted(faults)),
        outside={name: tuple(rows) for name, rows in outside.items()},
        classes=labels.classes,
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


def _files(dataset: ArrayDataset, raw: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The files of the source with what is put before the names of their samples."""
    for base in raw or [dataset.file.parent]:
        if not base.exists():
            raise UserError(
                "there are no raw data",
                file=base,
                found="no such file or folder",
                remedy="name the folder that the manifest's path starts from with --raw",
            )
        whole = base / dataset.source.path
        steps = whole.parts if base.is_dir() else ()
        wild = next((at for at, step in enumerate(steps) if _WILD.search(step)), None)
        if wild is None:
            file = whole if base.is_dir() else base
            if not file.is_file():
                raise UserError(
                    "there is no such file",
                    file=file,
                    remedy="correct source.path in the manifest, or name another folder with --raw",
                )
            yield file, ""
            continue
        home = Path(*steps[:wild])
        files = [file for file in home.glob("/".join(steps[wild:])) if file.is_file()]
        if not files:
            raise UserError(
                "no file fits the pattern",
                file=whole,
                found="nothing" if home.is_dir() else f"no folder {home}",
                remedy="correct source.path in the manifest, or name another folder with --raw",
            )
        for file in sorted(files):
            yield file, file.relative_to(home).with_suffix("").as_posix()


def _samples(dataset: ArrayDataset, file: Path, name: str) -> Iterator[_Sample]:
    """The samples of a file.

    Raises:
        RejectedError: it is damaged, or not what the manifest says.
    """
    source = dataset.source
    columns = _columns(dataset)
    size = file.stat().st_size
    whole = Member(file, file.name, 0, size, size, "plain")
    match source.layout:
        case "hdf5":
            for found in apart(_SECONDS, hdf5.scan, file, source, columns):
                yield _sample(name, whole, found)
        case "parquet" | "arrow":
            for found in apart(_SECONDS, columnar.scan, file, source, columns):
                yield _sample(name, whole, found)
        case "npz":
            yield from _of_npz(dataset, file, name, columns)
        case "npy" if source.stacked:
            yield from _rows_of(dataset, whole, name, {}, columns)
        case _:
            with Reader() as reader:
                fault = f"too large: found {size} bytes, expected ≤ {LARGEST}"
                found = Found(
                    "" if name else file.stem,
                    _keys(reader, whole, columns) if columns and size <= LARGEST else {},
                    size,
                    fault=fault if size > LARGEST else "",
                )
            yield _sample(name, whole, found)


def _sample(name: str, member: Member, found: Found, header: Header | None = None) -> _Sample:
    piece = Piece(
        member.file,
        member.name,
        member.offset,
        member.stored,
        member.size,
        member.packing,
        member.crc,
        path=found.path,
        rows=found.rows,
        frames=found.frames,
        header=header,
    )
    return _Sample("/".join(filter(None, (name, found.name))), piece, found, found.size)


def _keys(reader: Reader, member: Member, columns: Sequence[str]) -> dict[str, str]:
    """What the keys of a JSON file say."""
    document = parse_json(reader.read(member))
    return {column: text_of(under(document, column)) for column in columns}


def _of_npz(
    dataset: ArrayDataset, file: Path, name: str, columns: Sequence[str]
) -> Iterator[_Sample]:
    source = dataset.source
    try:
        arrays = find_recordings([file], _ARRAY, "arrays")
    except UserError as error:  # of one file among many
        raise RejectedError("no .npz of arrays", found=error.what) from error
    if not source.stacked:
        pattern = source.data or "*"
        for array, member in arrays.recordings.items():
            if Path(array).match(pattern):
                yield _sample(name, member, Found(array, {}, member.size, array))
        for array, _, reason in arrays.refused:
            unread = Member(file, array, 0, 0, 0, "plain")
            yield _sample(name, unread, Found(array, {}, 0, array, fault=reason))
        return
    wanted = [n for n in dict.fromkeys([source.lengths, source.names, *columns]) if n]
    check_known([source.data, *wanted], list(arrays.recordings), "array")
    with Reader() as reader:
        texts = {
            wish: [text_of(value) for value in parse_npy(reader.read(member)).ravel()]
            for wish in wanted
            if (member := arrays.recordings[wish]).size <= TEXTS
        }
    check_known(wanted, list(texts), f"array below {TEXTS} bytes")
    yield from _rows_of(dataset, arrays.recordings[source.data], name, texts, columns)


def _rows_of(
    dataset: ArrayDataset,
    member: Member,
    name: str,
    texts: Mapping[str, Sequence[str]],
    columns: Sequence[str],
) -> Iterator[_Sample]:
    """The samples of an .npy array that holds them all."""
    header = parse_header(unpacked(member, HEAD), member.size)
    if header.fortran:
        raise RejectedError(
            "wrong order of values", found="Fortran order", expected="np.ascontiguousarray(…)"
        )
    for found in stacked(dataset.source, header.shape, header.row, texts, columns):
        if member.packing == "zip-deflated":
            yield _sample(name, member, found)
            continue
        assert found.rows is not None
        offset = start_of(member) + header.start + found.rows[0] * header.row
        rows = Member(member.file, member.name, offset, found.size, found.size, "plain")
        yield _sample(name, rows, found, header)


def _columns(dataset: ArrayDataset) -> list[str]:
    """The columns of the source itself that the manifest asks for."""
    asked = [dataset.labels, dataset.subjects, dataset.cameras, dataset.setups]
    asked += [split.by for split in dataset.splits.values() if isinstance(split.by, Where)]
    columns = [where.column for where in asked if where and where.column and not where.table]
    source = dataset.source
    if columns and (
        source.layout in ("npy", "csv") or (source.layout == "npz" and not source.stacked)
    ):
        raise UserError(
            f"{source.layout} has no columns beside the positions",
            file=dataset.file,
            place=f"column = {columns[0]!r}",
            expected="a pattern of the sample's name, or a table",
        )
    return list(dict.fromkeys(columns))


def _keyed(dataset: ArrayDataset, samples: Sequence[_Sample]) -> dict[str, _Sample]:
    keyed: dict[str, _Sample] = {}
    for sample in samples:
        key = key_of(sample.name)
        if key in keyed:
            first = keyed[key]
            raise UserError(
                "two samples have the same name",
                file=dataset.file,
                found=f"'{first.name}' in {first.piece.file} and '{sample.name}' in "
                f"{sample.piece.file}; both have the key {key}",
                remedy="name them otherwise: only letters, digits, - and _ tell samples apart",
            )
        keyed[key] = sample
    return keyed


class _Values:
    """Looks up what columns, patterns and tables say of a sample; reads each table once."""

    def __init__(self, dataset: ArrayDataset) -> None:
        self._dataset = dataset
        self._tables: dict[tuple[str, str, str], dict[str, str]] = {}
        self._lists: dict[str, dict[str, str]] = {}

    @property
    def read(self) -> Iterator[object]:
        """All that tables and lists say, for the digest."""
        yield from (sorted(table.items()) for table in self._tables.values())
        yield from (sorted(names.items()) for names in self._lists.values())

    def of(self, where: Where | None, sample: _Sample) -> str:
        """A value as text, "" where there is none; whole numbers without leading zeros."""
        if where is None:
            return ""
        if where.pattern:
            match = re.search(where.pattern, sample.name)
            value = (match.group(1) or "") if match else ""
        elif where.table:
            value = self._in(self._table(where), sample)
        else:
            value = sample.found.values.get(where.column, "")
        return _canonical(value)

    def part(
        self, name: str, split: ArraySplit, value: str, sample: _Sample
    ) -> Part | Literal["neither"] | None:
        """The part of a split that a sample belongs to; None where no list holds it."""
        if split.by is None:
            listed = self._in(self._listed(name, split), sample)
            return "train" if listed == "train" else "test" if listed == "test" else None
        if value in _canonicals(split.train):
            return "train"
        if value in _canonicals(split.test):
            return "test"
        return "neither" if value in _canonicals(split.neither) else None

    def _in(self, table: Mapping[str, str], sample: _Sample) -> str:
        """A table's value for a sample, which it may call by its name or that of its file."""
        return table.get(sample.name) or table.get(sample.name + sample.piece.file.suffix, "")

    def _table(self, where: Where) -> dict[str, str]:
        known = where.table, where.key, where.column
        if known not in self._tables:
            self._tables[known] = _read_table(self._dataset.file.parent / where.table, where)
        return self._tables[known]

    def _listed(self, name: str, split: ArraySplit) -> dict[str, str]:
        if name not in self._lists:
            parts: dict[str, str] = {}
            for part, file in (("train", split.train), ("test", split.test)):
                place = self._dataset.file.parent / str(file)
                for line in _text(place).splitlines():
                    if line.strip() and parts.setdefault(line.strip(), part) != part:
                        raise UserError(
                            "a sample is listed under both train and test",
                            file=place,
                            found=line.strip()[:200],
                        )
            self._lists[name] = parts
        return self._lists[name]


def _read_table(file: Path, where: Where) -> dict[str, str]:
    """Sample -> value, of a CSV file with a heading."""
    try:
        rows = list(csv.reader(io.StringIO(_text(file)), strict=True))
    except csv.Error as error:
        raise UserError("this is no CSV table", file=file, found=error) from error
    heading = [name.strip() for name in rows[0]] if rows else []
    key = where.key or (heading[0] if heading else "")
    for column in (key, where.column):
        if column not in heading:
            raise UserError(
                f"the table has no column '{column}'",
                file=file,
                place="line 1",
                found=", ".join(heading)[:300] or "nothing",
                remedy=nearest(column, heading) if heading else "",
            )
    at, of = heading.index(where.column), heading.index(key)
    table: dict[str, str] = {}
    for line, row in enumerate(rows[1:], 2):
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(heading):
            raise UserError(
                "a row of the table has another number of fields",
                file=file,
                place=f"line {line}",
                found=len(row),
                expected=len(heading),
            )
        name, value = row[of].strip(), row[at].strip()
        if table.setdefault(name, value) != value:
            raise UserError(
                f"the table holds '{name[:200]}' twice, with different values",
                file=file,
                place=f"line {line}",
                found=f"{table[name]} and {value}"[:200],
            )
    return table


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _TABLE:
            raise UserError("this text file is too large", file=file, expected=f"≤ {_TABLE} bytes")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "a file that the manifest names cannot be read", file=file, found=error
        ) from error


def _canonical(text: str) -> str:
    text = text.strip()
    return str(int(text)) if _NUMBER.fullmatch(text) else text


def _canonicals(values: Iterable[object]) -> set[str]:
    return {_canonical(str(value)) for value in values}


def _in_order(values: set[str]) -> list[str]:
    """Values in the order of their numbers where all are whole numbers, else of the alphabet."""
    if all(_NUMBER.fullmatch(value) for value in values):
        return sorted(values, key=int)
    return sorted(values)


class _Labels:
    """The classes, listed or found, and what number each has."""

    def __init__(self, dataset: ArrayDataset, values: Sequence[str]) -> None:
        self._first = dataset.labels.first
        self._listed = bool(dataset.classes)
        self.classes = dataset.classes or tuple(_in_order({value for value in values if value}))
        self._numbers = {_canonical(name): number for number, name in enumerate(self.classes)}

    def number(self, value: str) -> int:
        """The class of a value, from 0.

        Raises:
            RejectedError: there is none.
        """
        if not value:
            raise RejectedError("no label", found="nothing by [labels]")
        if value in self._numbers:
            return self._numbers[value]
        if _NUMBER.fullmatch(value) and 0 <= int(value) - self._first < len(self.classes):
            return int(value) - self._first
        last = self._first + len(self.classes) - 1
        raise RejectedError(
            "unknown class",
            found=repr(value[:80]),
            expected=f"one of {len(self.classes)} names, or a number from {self._first} to {last}",
        )


def _numbered(values: Iterator[str]) -> dict[str, int]:
    """A number from 1 for every value of a field: its own, or where one is none, its place."""
    found = {value for value in values if value}
    if all(_NUMBER.fullmatch(value) and 0 < int(value) < 2**31 for value in found):
        return {value: int(value) for value in found}
    return {value: place for place, value in enumerate(_in_order(found), 1)}


def _notes(numbers: Mapping[Field, Mapping[str, int]], neither: Counter[str]) -> Iterator[str]:
    for field, table in numbers.items():
        if any(value != str(number) for value, number in table.items()):
            shown = [f"{value} = {number}" for value, number in table.items()]
            more = f" … {shown[-1]}" if len(shown) > 8 else ""
            yield f"{field}s are numbered from 1: {', '.join(shown[:8])}{more}"
    for split, count in neither.items():
        yield f"{split}: left out {count:,} samples that the manifest puts in neither part"
