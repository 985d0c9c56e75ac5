from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from skelpipe.errors import UserError
from skelpipe.manifest import load_topology
from skelpipe.shards.card import (
    CARD,
    Card,
    Counts,
    FileStamp,
    MissingStamp,
    PipelineStamp,
    Source,
    Tally,
    card_bytes,
    digest_of,
    find_sets,
    read_card,
)

EMPTY = Tally(samples=0, bodies=0, frames=0, classes={}, subjects={}, cameras={}, setups={})


def card(**changes: Any) -> Card:
    some = Tally(
        samples=2, bodies=3, frames=9, classes={0: 1, 10: 1}, subjects={1: 2}, cameras={}, setups={}
    )
    fields: dict[str, Any] = {
        "dataset": "ntu60",
        "title": "NTU RGB+D",
        "split": "xsub",
        "topology": load_topology("kinect_v2"),
        "fps": 30.0,
        "pipeline": PipelineStamp(name="ctrgcn", version=1, switches={}),
        "precision": "float32",
        "classes": ("drink water", "é"),
        "counts": Counts(
            total=some, train=some, test=EMPTY, published={"train": 2}, rejected={}, missing=0
        ),
        "missing_list": MissingStamp(applied=False, official=False, count=1, sha256="", where=""),
        "warnings": ("a part",),
        "source": Source(layout="ntu", recordings=2, digest="abc"),
        "files": {"train-000000.tar": FileStamp(size=1, sha256="ab")},
        "data_digest": "d",
    }
    return Card(**{**fields, **changes})


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_bytes(card_bytes(card()))
    return folder / CARD


def test_a_card_comes_back(tmp_path: Path) -> None:
    write(tmp_path)
    read = read_card(tmp_path)
    assert read.digest
    assert read.model_copy(update={"digest": ""}) == card()
    assert card_bytes(read) == card_bytes(card())


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path)
    good = file.read_bytes()
    for place in (place for place, byte in enumerate(good) if not chr(byte).isspace()):
        bad = bytearray(good)
        bad[place] ^= 1
        file.write_bytes(bad)
        with pytest.raises(UserError, match="card"):
            read_card(tmp_path)
    for size in range(0, len(good) - 2, 50):
        file.write_bytes(good[:size])
        with pytest.raises(UserError, match="damaged"):
            read_card(tmp_path)


def test_another_format_and_unknown_fields(tmp_path: Path) -> None:
    file = write(tmp_path)
    table = json.loads(file.read_bytes())
    file.write_text(json.dumps(table | {"format": 3}))
    with pytest.raises(UserError, match="another format"):
        read_card(tmp_path)
    del table["digest"]
    for changes in ({"more": 1}, {"split": None}, {"files": {"../x": {"size": 1, "sha256": ""}}}):
        changed = table | changes
        file.write_text(json.dumps(changed | {"digest": digest_of([changed])}))
        with pytest.raises(UserError, match="the card is damaged"):
            read_card(tmp_path)
    for text in ("[]", "3", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(UserError):
            read_card(tmp_path)


def test_names_of_files_are_plain() -> None:
    for name in ("../x", "/x", ".x", "a/b", ""):
        with pytest.raises(ValidationError, match="plain file name"):
            card(files={name: FileStamp(size=1, sha256="")})


def test_a_folder_without_a_set_is_answered_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="skelpipe prepare"):
        read_card(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_card(tmp_path / "nowhere")


def test_sets_are_found_newest_first(tmp_path: Path) -> None:
    folders = [tmp_path / "ntu60" / "ctrgcn" / name for name in ("xsub", "xview", "xset")]
    for age, folder in enumerate(folders):
        os.utime(write(folder), (1e9 - age, 1e9 - age))
    write(tmp_path / "ntu60" / "ctrgcn" / ".work-0" / "xsub")
    assert find_sets(tmp_path) == folders
    assert find_sets(tmp_path / "nowhere") == []
