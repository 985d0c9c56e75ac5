"""Writing files so that nothing half-written ever stands under its final name."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

NEW = ".new-"


def new_name(file: Path) -> Path:
    """The name under which a process writes a file until it is whole; `leftovers` finds it."""
    return file.parent / f"{NEW}{token_hex(4)}-{file.name}"


def leftovers(folder: Path) -> list[Path]:
    """Files below a folder that were never finished."""
    return list(folder.glob(f"**/{NEW}*"))


def write_whole(file: Path, data: bytes) -> None:
    """Write a file in one step: it stands there whole and on disk, or not at all."""
    new = new_name(file)
    with new.open("wb") as opened:
        opened.write(data)
    into_place(new, file)


def into_place(new: Path, file: Path) -> None:
    """Give a finished file or folder its final name, once its bytes are on disk."""
    flush(new)
    new.replace(file)
    flush(file.parent)


def flush(file: Path) -> None:
    """Have a file's or folder's content on disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
