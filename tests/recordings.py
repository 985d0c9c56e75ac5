"""Prepared sets of whole recordings with labels, for tests of detection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from builders import KINECT
from sets import Sample, walk, write_set

from skelpipe.shards.card import PipelineStamp, Source

Row = tuple[int, int, int, int]


def told(key: str, frames: int, rows: Sequence[Row]) -> dict[str, Any]:
    """A recording's JSON, as preparation writes it for rows that start before their end."""
    labels = [0] * frames
    for action, start, end, _ in rows:
        labels[max(start, 0) : end] = [action] * (min(end, frames) - max(start, 0))
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    return {"key": key, "frames": frames, "actions": list(rows), "frame_labels": runs}


def recording_of(
    number: int, part: str, *, frames: int = 110, classes: int = 2, subject: int = 0
) -> Sample:
    """A recording in which action a moves everyone by a metre along its axis, one after another.

    Every second one has a second body, away at first; in the third nobody is seen at the end.
    """
    key = f"{part}{number:02}"
    rng = np.random.default_rng(number)
    poses_MTJC = walk(number, frames, 25, 1 + number % 2)
    poses_MTJC = poses_MTJC[:, :1] + 0.1 * (poses_MTJC - poses_MTJC[:, :1])
    if number % 2:
        poses_MTJC[1, :30] = 0
    rows = []
    start = 8 + int(rng.integers(6))
    for action in rng.permutation(classes) + 1:
        end = start + 30 + int(rng.integers(10))
        poses_MTJC[:, start:end, :, action % 3] += poses_MTJC[:, start:end].any((2, 3))[..., None]
        rows.append((int(action), start, end, 2))
        start = end + 8 + int(rng.integers(4))
    if number % 3 == 2:
        poses_MTJC[:, frames - 6 :] = 0
    return Sample(key, poses_MTJC, part, -1, subject, told=told(key, frames, rows))


def write_recordings(
    folder: Path, samples: Sequence[Sample], *, switches: dict[str, Any] | None = None
) -> Path:
    """A prepared set of recordings with the classes of `recording_of`."""
    return write_set(
        folder,
        KINECT,
        samples,
        dataset="pku1",
        classes=("first", "second"),
        pipeline=PipelineStamp(name="recordings", version=1, switches=switches or {}),
        source=Source(layout="pku", recordings=len(samples), digest=""),
    )
