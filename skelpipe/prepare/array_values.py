"""What columns, patterns and tables say of a user's own samples: classes, subjects, splits."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from skelpipe.errors import UserError, nearest
from skelpipe.manifest import ArrayDataset, ArraySplit, Part, Where

from .array_files import Sample
from .recording import RejectedError

_TABLE = 256 << 20  # bytes of a table or list
_NUMBER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


def columns_of(dataset: ArrayDataset) -> list[str]:
    """The columns of the source itself that a manifest asks for.

    Raises:
        UserError: the source has none.
    """
    source = dataset.source
    asked = [dataset.labels, dataset.subjects, dataset.cameras, dataset.setups]
    asked += [split.by for split in dataset.splits.values() if isinstance(split.by, Where)]
    columns = [where.column for where in asked if where and where.column and not where.table]
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


class Values:
    """Looks up what is known of a sample; reads each table and list once."""

    def __init__(self, dataset: ArrayDataset) -> None:
        self._home = dataset.file.parent
        self._tables: dict[tuple[str, str, str], dict[str, str]] = {}
        self._lists: dict[str, dict[str, str]] = {}

    @property
    def read(self) -> Iterator[object]:
        """All that tables and lists say."""
        for table in (*self._tables.values(), *self._lists.values()):
            yield sorted(table.items())

    def of(self, where: Where, sample: Sample) -> str:
        """A value as text, "" where there is none; whole numbers without leading zeros."""
        if where.pattern:
            match = re.search(where.pattern, sample.name)
            value = (match.group(1) or "") if match else ""
        elif where.table:
            place = (where.table, where.key, where.column)
            if place not in self._tables:
                self._tables[place] = _table(self._home / where.table, where)
            value = _in(self._tables[place], sample)
        else:
            value = sample.found.values.get(where.column, "")
        return _canonical(value)

    def listed(self, name: str, split: ArraySplit, sample: Sample) -> str:
        """The part of a split in whose list of names a sample stands, "" where in none."""
        if name not in self._lists:
            self._lists[name] = _lists(self._home, str(split.train), str(split.test))
        return _in(self._lists[name], sample)


def part_of(split: ArraySplit, value: str) -> Part | Literal["neither"] | None:
    """The part that a value of what a split goes by belongs to; None where it stands nowhere.

    Where it goes by lists of names, the value is what `Values.listed` says.
    """
    if value in _canonicals(["train"] if isinstance(split.train, str) else split.train):
        return "train"
    if value in _canonicals(["test"] if isinstance(split.test, str) else split.test):
        return "test"
    return "neither" if value in _canonicals(split.neither) else None


def classes_of(dataset: ArrayDataset, labels: Iterable[str]) -> tuple[str, ...]:
    """The classes that are listed, else the labels that occur, in order."""
    return dataset.classes or tuple(_in_order({label for label in labels if label}))


def label_number(label: str, classes: Sequence[str], first: int) -> int:
    """The number from 0 of a label that is a class's name, or counts from ``first``.

    Raises:
        RejectedError: there is no such class.
    """
    if label in classes:
        return classes.index(label)
    if _NUMBER.fullmatch(label) and 0 <= int(label) - first < len(classes):
        return int(label) - first
    raise RejectedError(
        "unknown class",
        found=repr(label[:80]),
        expected=f"one of {len(classes)} names, or a number from {first} "
        f"to {first + len(classes) - 1}",
    )


def numbered(values: Iterable[str]) -> dict[str, int]:
    """A number from 1 for every value of a field: itself, or where one is none, its place."""
    found = {value for value in values if value}
    if all(_NUMBER.fullmatch(value) and 0 < int(value) < 2**31 for value in found):
        return {value: int(value) for value in found}
    return {value: place for place, value in enumerate(_in_order(found), 1)}


def _table(file: Path, where: Where) -> dict[str, str]:
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


def _lists(home: Path, train: str, test: str) -> dict[str, str]:
    """Sample -> part, of two files that list names."""
    parts: dict[str, str] = {}
    for part, file in (("train", home / train), ("test", home / test)):
        for line in _text(file).splitlines():
            if line.strip() and parts.setdefault(line.strip(), part) != part:
                raise UserError(
                    "a sample is listed under both train and test",
                    file=file,
                    found=line.strip()[:200],
                )
    return parts


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _TABLE:
            raise UserError("this text file is too large", file=file, expected=f"≤ {_TABLE} bytes")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "a file that the manifest names cannot be read", file=file, found=error
        ) from error


def _in(table: Mapping[str, str], sample: Sample) -> str:
    """A table's value for a sample, which it may call by its name or by that of its file."""
    return table.get(sample.name) or table.get(sample.name + sample.piece.file.suffix, "")


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
