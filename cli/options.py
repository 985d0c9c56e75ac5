"""Options that several commands share, and what they fall back to."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from skelpipe.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

REQUEUE = 75
"""Exit code after a signal or Ctrl-C (EX_TEMPFAIL): what is done is kept, and can be continued."""


class Features(StrEnum):
    """What stands for a sample."""

    patch = "patch"
    class_ = "class"
    both = "both"


class NetworkName(StrEnum):
    """Of a run."""

    student = "student"
    teacher = "teacher"


def shards_root() -> Path:
    """Where prepared sets lie: $SKELPIPE_SHARDS, else data/shards."""
    return Path(os.environ.get("SKELPIPE_SHARDS") or "data/shards")


def raw_roots() -> list[Path]:
    """Where raw data is looked for: $SKELPIPE_RAW, else data/raw."""
    return [Path(os.environ.get("SKELPIPE_RAW") or "data/raw")]


def runs_root() -> Path:
    """Where runs lie: $SKELPIPE_RUNS, else runs."""
    return Path(os.environ.get("SKELPIPE_RUNS") or "runs")


def set_folder(name: str) -> Path:
    """A prepared set by its folder or its URL; of a URL, card and index are fetched first.

    Raises:
        UserError: As `skelpipe.stream.remote.fetch_set`.
    """
    from skelpipe.stream.remote import fetch_set, is_url

    return fetch_set(name) if is_url(name) else Path(name)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """A device by name; "auto" is the GPU where there is one, of several this rank's own."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{local_rank}"
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}'", remedy=nearest(name, ["auto", "cpu", "cuda"]))
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device on this machine", remedy="--device cpu")
    return torch.device(name)


def subject_numbers(text: str) -> tuple[int, ...]:
    """Subjects from "8,9"."""
    try:
        return tuple(int(number) for number in text.replace(",", " ").split())
    except ValueError as error:
        raise UserError(
            "--val-subjects takes numbers", found=text, expected="such as --val-subjects 8,9"
        ) from error


def write_new(file: Path, text: str) -> None:
    """Write a file that does not exist yet."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError as error:
        raise UserError(
            "this file exists already", file=file, remedy="name another with --out"
        ) from error


def newest_set(pipeline: str) -> Path:
    """The newest prepared set of a pipeline."""
    from skelpipe.shards.card import find_sets, read_card

    root = shards_root()
    found = find_sets(root)
    for folder in found:
        if read_card(folder).pipeline.name == pipeline:
            return folder
    dataset = "pku1 --split xsub" if pipeline == "recordings" else "ntu60"
    raise UserError(
        f"there is no set prepared with pipeline '{pipeline}'",
        file=root,
        found=f"{len(found)} sets prepared otherwise" if found else "no prepared set",
        remedy=f"skelpipe prepare {dataset} --pipeline {pipeline}, or name one with --data",
    )
