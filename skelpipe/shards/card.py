"""The card of a prepared set: what it holds, where that came from, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from skelpipe.errors import UserError
from skelpipe.manifest import load_dataset, manifest_names
from skelpipe.skeleton import Topology

Precision = Literal["float32", "int16"]

CARD = "card.json"
STEP = 0.00025  # metres; of the positions that are stored as int16
FORMAT = 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tally(_Strict):
    """What a part holds; samples per class (label from 0), subject, camera and setup."""

    samples: int
    bodies: int
    frames: int
    classes: dict[int, int]
    subjects: dict[int, int]
    cameras: dict[int, int]
    setups: dict[int, int]


class Counts(_Strict):
    """What the set holds, beside the published number of samples of each part.

    ``published`` is empty where nobody has published counts. ``rejected`` counts samples by reason,
    ``missing`` those left out by the missing list, ``odd`` what was read though it is odd, by kind.
    """

    total: Tally
    train: Tally
    test: Tally
    published: dict[str, int]
    rejected: dict[str, int]
    missing: int
    odd: dict[str, int] = {}


class PipelineStamp(_Strict):
    """The pipeline that cleaned and normalised the samples."""

    name: str
    version: int
    switches: dict[str, str | int | float | bool]


class MissingStamp(_Strict):
    """The list of recordings to leave out: whether one was applied, whether it is the owners'.

    ``count`` and ``sha256`` are those of the applied list, or of the official one where none was.
    """

    applied: bool
    official: bool
    count: int
    sha256: str
    where: str


class Source(_Strict):
    """The raw recordings: their layout, how many, and a digest over their sorted (name, size).

    ``split_list`` is the digest of the owners' list that parts them, where there is one.
    """

    layout: str
    recordings: int
    digest: str
    split_list: str = ""


class FileStamp(_Strict):
    size: int
    sha256: str


class Card(_Strict):
    """Everything a reader must know of a prepared set. See `read_card`.

    ``topology`` is the skeleton as stored, its axes and all. ``precision`` "int16" stores positions
    in steps of `STEP` metres. ``metric`` is False where the unit of positions is not known.
    ``mutual`` are the classes (from 0) that two people perform together, and ``apart`` the field of
    which no value stands in both parts, empty where a split goes by something else: `mutual_of` and
    `apart_of` know them of older cards too.
    ``missing_list`` is None where the data set has none.
    """

    format: Literal[2] = 2
    dataset: str
    title: str
    split: str
    topology: Topology
    fps: float
    pipeline: PipelineStamp
    precision: Precision
    metric: bool = True
    classes: tuple[str, ...]
    mutual: tuple[int, ...] = ()
    apart: Literal["subject", "camera", "setup", ""] = ""
    counts: Counts
    missing_list: MissingStamp | None
    warnings: tuple[str, ...]
    source: Source
    files: dict[str, FileStamp]
    data_digest: str
    digest: str = ""

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileStamp]) -> dict[str, FileStamp]:
        for name in files:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
                raise ValueError(f"{name!r} is no plain file name")
        return files


def digest_of(rows: Iterable[object]) -> str:
    """sha256 over rows written as one line of JSON each."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, separators=(",", ":"), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def card_bytes(card: Card) -> bytes:
    """The card as JSON, with the digest of all its other fields."""
    table = _signed(card.model_dump(mode="json"))
    return (json.dumps(table, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_card(folder: Path) -> Card:
    """The card of a prepared set.

    Raises:
        UserError: the folder holds no prepared set, or its card is damaged or of another format.
    """
    folder = Path(folder)
    file = folder / CARD
    if not file.is_file():
        raise UserError(
            "this folder holds no prepared set" if folder.is_dir() else "there is no such folder",
            file=folder,
            found="no card.json",
            remedy="make one with `skelpipe prepare DATASET --split SPLIT --raw ARCHIVE`, or name "
            "another folder",
        )
    return parse_card(file.read_bytes(), file)


def parse_card(data: bytes, file: str | Path) -> Card:
    """The card in the bytes of a card.json; see `read_card`.

    Raises:
        UserError: They are damaged, or of another format; ``file`` is named.
    """
    remedy = "prepare the set again: skelpipe prepare DATASET --split SPLIT --force"
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError("the card is damaged", file=file, found=error, remedy=remedy) from error
    written = table.get("format") if isinstance(table, dict) else None
    if written != FORMAT:
        raise UserError(
            "the card is of another format",
            file=file,
            place="format",
            found=repr(written),
            expected=FORMAT,
            remedy=remedy,
        )
    if table.get("digest") != _signed(table)["digest"]:
        raise UserError(
            "the card is damaged: its digest does not fit",
            file=file,
            place="digest",
            found=table.get("digest"),
            expected=_signed(table)["digest"],
            remedy=remedy,
        )
    try:
        return Card.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            "the card is damaged",
            file=file,
            place=".".join(map(str, first["loc"])),
            found=first["msg"],
            remedy=remedy,
        ) from error


def read_fitting_card(folder: Path, pipeline: str) -> Card:
    """The card of a set that a named pipeline has prepared.

    Raises:
        UserError: As `read_card`; or another pipeline prepared the set.
    """
    card = read_card(folder)
    if card.pipeline.name != pipeline:
        raise UserError(
            f"the recipe needs a set prepared with pipeline '{pipeline}'",
            file=folder,
            found=f"one prepared with '{card.pipeline.name}'",
            remedy=f"skelpipe prepare {made_from(card)} --split {card.split} --pipeline {pipeline}",
        )
    return card


def mutual_of(card: Card) -> tuple[int, ...]:
    """The classes, from 0, that two people perform together.

    Of a packaged data set's card that is older than the field, what the manifest says.
    """
    if "mutual" in card.model_fields_set or card.dataset not in manifest_names("dataset"):
        return card.mutual
    return tuple(action - 1 for action in load_dataset(card.dataset).mutual)


def apart_of(card: Card) -> str:
    """The field of which no value stands in both parts; as `mutual_of` for older cards."""
    if "apart" in card.model_fields_set or card.dataset not in manifest_names("dataset"):
        return card.apart
    return load_dataset(card.dataset).split(card.split).apart or ""


def place_of(dataset: str, pipeline: str, precision: Precision) -> Path:
    """Where the splits of a prepared data set lie, below a shards root."""
    return Path(dataset) / (pipeline if precision == "float32" else f"{pipeline}-{precision}")


def made_from(card: Card) -> str:
    """What `skelpipe prepare` is given to make such a set."""
    return f"{card.dataset}.toml" if card.source.layout.startswith("arrays") else card.dataset


def find_sets(root: Path) -> list[Path]:
    """Folders of all prepared sets under a shards root, the newest first."""
    cards = Path(root).glob("*/*/*/" + CARD)
    return [
        card.parent for card in sorted(cards, key=lambda card: (-card.stat().st_mtime_ns, card))
    ]


def _signed(table: dict[str, Any]) -> dict[str, Any]:
    unsigned = {name: value for name, value in table.items() if name != "digest"}
    return {**unsigned, "digest": digest_of([unsigned])}
