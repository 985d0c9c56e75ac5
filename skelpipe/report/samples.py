"""Samples of a prepared set to look at."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from skelpipe.errors import UserError, nearest
from skelpipe.shards.card import read_card
from skelpipe.shards.index import read_index
from skelpipe.stream.source import open_source

from .scene import Clip


def choose(table: pa.Table, count: int, seed: int) -> list[str]:
    """Keys of some samples of an index, sorted: drawn by the seed, the same on any machine.

    Up to half of them have several bodies. No class is shown twice while another is not shown.
    """
    keys, labels, bodies = (table[name].to_pylist() for name in ("key", "label", "bodies"))
    drawn = sorted(
        range(len(keys)), key=lambda row: hashlib.sha256(f"{seed} {keys[row]}".encode()).digest()
    )
    several = [row for row in drawn if bodies[row] > 1]
    one = [row for row in drawn if bodies[row] <= 1]
    chosen: list[int] = []
    for rows, room in ((several, count // 2), (one, count), (drawn, count)):
        shown = {labels[row] for row in chosen}
        for row in rows:
            if len(chosen) < room and labels[row] not in shown:
                chosen.append(row)
                shown.add(labels[row])
    chosen += [row for row in drawn if row not in chosen][: count - len(chosen)]
    return sorted(keys[row] for row in chosen)


def find(folder: Path, key: str) -> str:
    """The key itself, where a prepared set holds a sample of that name.

    Raises:
        UserError: it does not; the error names the sample whose key is nearest.
    """
    keys = sorted(read_index(folder)["key"].to_pylist())
    place = bisect.bisect_left(keys, key)
    if keys[place : place + 1] != [key]:
        raise UserError(
            f"the set holds no sample '{key}'",
            file=folder,
            # Its neighbours in the order of names, which begin as it does: there are many keys.
            remedy=nearest(key, keys[max(place - 4, 0) : place + 4]),
        )
    return key


def read_clips(folder: Path, keys: Sequence[str]) -> list[Clip]:
    """The samples of these keys, in the order of the keys.

    Raises:
        UserError: there is no set, or a sample is damaged.
    """
    card = read_card(folder)
    table = read_index(folder)
    table = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int64)))
    table = table.filter(pc.is_in(table["key"], pa.array(keys, pa.string()))).sort_by("key")
    batch = open_source(folder, table, torch.device("cpu"), "mapped").take(torch.arange(len(table)))
    clips = []
    for place, key in enumerate(table["key"].to_pylist()):
        bodies, frames = int(batch.bodies_N[place]), int(batch.frames_N[place])
        start, label = int(batch.start_N[place]), int(batch.label_N[place])
        flat_RJC = batch.flat_RJC[start : start + bodies * frames].numpy()
        clips.append(
            Clip(
                key=key,
                what=card.classes[label] if label >= 0 else "whole recording",
                poses_MTJC=flat_RJC.reshape(bodies, frames, *flat_RJC.shape[1:]),
                topology=card.topology,
                fps=card.fps,
                metric=card.metric,
            )
        )
    return clips
