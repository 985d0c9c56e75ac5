"""The data owners' lists of recordings to leave out, recognised by their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from skelpipe.errors import UserError
from skelpipe.manifest import NtuDataset

from .ntu import parse_name

_ENTRY = re.compile(
    r"^[ \t]*(S\d{3}C\d{3}P\d{3}R\d{3}A\d{3})(?:\.skeleton)?[ \t]*\r?$", re.M | re.A
)


@dataclass(frozen=True)
class Missing:
    """Names of recordings to leave out, and whether the list is the owners'."""

    names: frozenset[str]
    official: bool
    sha256: str


def find_missing(texts: Iterable[Path], dataset: NtuDataset, named: Path | None) -> Missing | None:
    """The list to apply: the named one, else the official one if it is among some text files.

    Lists are cut to the range of the data set, so that the one of NTU RGB+D 120 serves NTU RGB+D.

    Raises:
        UserError: the named file cannot be read, or names no recording of the data set.
    """
    if named is not None:
        missing = _read(named, dataset)
        if not missing.names:
            raise UserError(
                f"this is no list of recordings of {dataset.title}",
                file=named,
                found="no line with the name of one",
                expected="one name a line, such as S001C002P005R002A008",
                remedy=f"get the official list from {dataset.missing.where}",
            )
        return missing
    return next((m for m in (_read(text, dataset) for text in texts) if m.official), None)


def in_range(key: str, dataset: NtuDataset) -> bool:
    """Whether a recording belongs to the data set, by its setup and action."""
    name = parse_name(key)
    return (
        dataset.setups[0] <= name.setup <= dataset.setups[1]
        and dataset.actions[0] <= name.action <= dataset.actions[1]
    )


def _read(file: Path, dataset: NtuDataset) -> Missing:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError("the list cannot be read", file=file, found=error) from error
    names = frozenset(name for name in _ENTRY.findall(text) if in_range(name, dataset))
    sha256 = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    official = len(names) == dataset.missing.count and sha256 == dataset.missing.sha256
    return Missing(names, official, sha256)
