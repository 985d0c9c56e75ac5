"""Arrays in text: CSV and JSON, one sample a file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from .recording import RejectedError

LARGEST = 16 << 20  # bytes of a file of text, whose lists take up to twenty times as much


def parse_csv(data: bytes, skip: int) -> npt.NDArray[np.float64]:
    """The numbers of a CSV file, shape (lines, columns); an empty field is NaN.

    Fields are separated by commas, semicolons or tabs, whichever most lines hold; where none does,
    by spaces. A first line that is not all numbers is a heading.

    Args:
        data: The file.
        skip: Leading columns that are passed over.

    Raises:
        RejectedError: a field is no number, or lines have different numbers of fields.
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace('"', "")
    except UnicodeDecodeError as error:
        raise RejectedError("not a text file", found=str(error), expected="UTF-8") from error
    lines = text.rstrip().split("\n")
    uses = {mark: sum(mark in line for line in lines) for mark in ";\t,"}
    separator = max(uses, key=lambda mark: uses[mark]) if any(uses.values()) else None
    rows = [line.split(separator)[skip:] for line in lines]
    first = 0 if _are_numbers(rows[0]) else 1
    rows = rows[first:]
    if not rows or not rows[0]:
        raise RejectedError("no numbers", found=f"{len(lines)} lines", expected="a row of numbers")
    for line, row in enumerate(rows, first + 1):
        if len(row) != len(rows[0]):
            raise RejectedError(
                "ragged rows", line=line, found=f"{len(row)} fields", expected=str(len(rows[0]))
            )
        if not _are_numbers(row):
            wrong = next(field for field in row if not _are_numbers([field]))
            raise RejectedError("no number", line=line, found=repr(wrong[:40]))
    return np.array([_numbers(row) for row in rows])


def _are_numbers(row: list[str]) -> bool:
    try:
        _numbers(row)
    except ValueError:
        return False
    # Python reads 1_0 and the digits of other scripts as numbers; no program writes them.
    joined = "".join(row)
    return joined.isascii() and "_" not in joined


def _numbers(row: list[str]) -> list[float]:
    return [float(field) if field.strip() else np.nan for field in row]


def parse_json(data: bytes) -> object:
    """The document in a JSON file.

    Raises:
        RejectedError: it is none.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RejectedError("not JSON", found=str(error)[:200]) from error


def under(document: object, path: str) -> Any:
    """What stands under a key, "a.b" for one within another; the document itself under "".

    Raises:
        RejectedError: there is no such key.
    """
    for key in path.split(".") if path else ():
        if not isinstance(document, dict) or key not in document:
            keys = ", ".join(list(document)[:9]) if isinstance(document, dict) else ""
            found = f"keys {keys[:200]}" if keys else f"a {type(document).__name__}"
            raise RejectedError("missing key", found=found, expected=repr(path))
        document = document[key]
    return document


def as_array(nested: object) -> npt.NDArray[np.float64]:
    """Nested lists of numbers as an array; null is NaN.

    Raises:
        RejectedError: they are ragged, or hold something else.
    """
    try:
        return np.array(nested, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise RejectedError(
            "ragged lists, or no numbers", found=str(error)[:200], expected="lists of equal lengths"
        ) from error
