"""What is done when in whole recordings: the labels that stand in the JSON beside each payload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.shards.card import Card, read_card
from skelpipe.shards.tar import BLOCK, member_size, padded
from skelpipe.stream.payloads import Shards, Span
from skelpipe.stream.source import open_shards

REVERSED = "reversed"
"""The switch of a set's preparation: what becomes of label rows that start after their end."""


@dataclass(frozen=True)
class FrameLabels:
    """What is done when in a recording of T frames; actions count from 1.

    Attributes:
        label_T: The action of each frame, 0 where there is none, int64, on the CPU.
        actions: The rows of the label file: action, first frame, and the one after the last, which
            lies behind the first. They are what the file says: they may overlap or lie beyond the
            recording.
    """

    label_T: Tensor
    actions: tuple[tuple[int, int, int], ...]


_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Positive = Annotated[int, Field(ge=1, lt=2**31)]


class _Description(BaseModel):
    """What is read of a recording's JSON."""

    key: str
    frames: int
    actions: tuple[tuple[_Positive, int, int, int], ...]
    frame_labels: tuple[tuple[_Count, _Positive], ...]


def read_frame_labels(folder: Path, table: pa.Table) -> list[FrameLabels]:
    """The labels of whole recordings, in the order of a table of `select`.

    No checksum of a sample covers its JSON, the shard's does (`skelpipe verify`): here its header,
    form, name and sums are compared with the index.

    Raises:
        UserError: A shard is missing, or a recording's JSON is damaged or without labels.
    """
    card = read_card(folder)
    shards = open_shards(folder, card, table)
    names, keys = table["shard"].to_pylist(), table["key"].to_pylist()
    begins = [
        offset + padded(size)
        for offset, size in zip(table["offset"].to_pylist(), table["size"].to_pylist(), strict=True)
    ]
    headers = _read(
        shards, [(name, at, at + BLOCK) for name, at in zip(names, begins, strict=True)]
    )
    spans: list[Span] = []
    for row, (header, name, begin) in enumerate(zip(headers, names, begins, strict=True)):
        size = member_size(header, f"{keys[row]}.json")
        if size is None:
            found = "another header than that of its JSON"
            raise _damaged(folder, table, row, found, shards.remedy)
        spans.append((name, begin + BLOCK, begin + BLOCK + size))
    return [
        _labels(content, folder, card, table, row, shards.remedy)
        for row, content in enumerate(_read(shards, spans))
    ]


def _read(shards: Shards, spans: Sequence[Span]) -> list[bytes]:
    """Parts of shards, mapped or not; what lies beyond a shard's end is missing."""
    names = sorted({name for name, _, _ in spans})
    maps = dict(zip(names, shards.open(names), strict=True))
    apart = [span for span in spans if maps[span[0]] is None]
    parts = dict(zip(apart, shards.spans(apart) if apart else [], strict=True))

    def part(span: Span) -> bytes:
        name, begin, end = span
        mapped = maps[name]
        return parts[span] if mapped is None else bytes(mapped[begin:end])

    return [part(span) for span in spans]


def _labels(
    content: bytes, folder: Path, card: Card, table: pa.Table, row: int, remedy: str
) -> FrameLabels:
    try:
        told = _Description.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise _damaged(folder, table, row, found, remedy) from error
    runs = np.array(told.frame_labels, dtype=np.int64).reshape(-1, 2)
    numbers = {*runs[:, 0].tolist(), *(action for action, *_ in told.actions)}
    key, frames = table["key"][row].as_py(), table["frames"][row].as_py()
    faults = {
        f"those of {told.key}": told.key != key,
        f"{told.frames} frames": told.frames != frames,
        f"labels of {runs[:, 1].sum()} frames": runs[:, 1].sum() != frames,
        f"action {max(numbers, default=0)}": max(numbers, default=0) > len(card.classes),
    }
    for found, wrong in faults.items():
        if wrong:
            raise _damaged(
                folder, table, row, found, remedy,
                f"{key}, {frames} frames, actions 1 to {len(card.classes)}",
            )  # fmt: skip
    swapped = card.pipeline.switches.get(REVERSED) != "as_published"
    actions = [
        (action, *(sorted((start, end)) if swapped else (start, end)))
        for action, start, end, _ in told.actions
    ]
    return FrameLabels(
        torch.from_numpy(np.repeat(runs[:, 0], runs[:, 1])),
        tuple((action, start, end) for action, start, end in actions if start < end),
    )


def _damaged(
    folder: Path, table: pa.Table, row: int, found: str, remedy: str, expected: str = ""
) -> UserError:
    return UserError(
        f"the labels of the recording {table['key'][row].as_py()} cannot be used",
        file=folder / table["shard"][row].as_py(),
        place=f"behind the payload at byte {table['offset'][row].as_py()}",
        found=found,
        expected=expected,
        remedy=remedy,
    )
