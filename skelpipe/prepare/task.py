"""One task of a preparation: a group's recordings -> one shard, the same in each of its splits."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from isal import isal_zlib

from skelpipe.errors import UserError
from skelpipe.files import into_place, new_name, write_whole
from skelpipe.manifest import AnyDataset
from skelpipe.shards.card import Precision
from skelpipe.shards.tar import OutOfRangeError, ShardWriter, payload_bytes
from skelpipe.skeleton import Topology

from .agcn import upside_down
from .archive import Reader
from .formats import read
from .listing import Clip, Row
from .normalise import find_pipeline, recordings
from .pku import frame_labels
from .plan import Group
from .recording import Recording, RejectedError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers of mallopt's parameters


@dataclass(frozen=True)
class Task:
    """What a finished task left behind, beside its shard's index rows.

    ``rejected``: what is not in the shard; ``odd``: what is though it is odd, by kind; ``size`` and
    ``sha256`` of the shard.
    """

    samples: int
    rejected: list[Row]
    odd: dict[str, int]
    size: int
    sha256: str


@dataclass(frozen=True)
class Job:
    """What every task of a run needs beside its group.

    ``version``: skelpipe's where the run was started, which every worker must have.
    """

    work: Path
    splits: tuple[str, ...]
    dataset: AnyDataset
    topology: Topology
    pipeline: str
    switches: Mapping[str, str]
    precision: Precision
    version: str

    def shards(self, group: Group) -> list[Path]:
        """A group's shard in each split that is being made."""
        return [
            self.work / name / group.shards[name] for name in self.splits if name in group.shards
        ]

    def marker(self, group: Group) -> Path:
        return self.work / f"group-{group.number:06d}.json"

    def done(self, group: Group) -> Task | None:
        """What a finished task left behind; None where it is not finished."""
        marker = self.marker(group)
        if not marker.exists() or not all(shard.exists() for shard in self.shards(group)):
            return None
        left = json.loads(marker.read_bytes())
        return Task(**{**left, "rejected": [tuple(row) for row in left["rejected"]]})

    def rows(self, group: Group) -> list[dict[str, Any]]:
        """The index rows of a finished task's samples."""
        rows: list[dict[str, Any]] = json.loads(self._rows(group).read_bytes())
        return rows

    def _rows(self, group: Group) -> Path:
        return self.work / f"rows-{group.number:06d}.json"


def write_group(group: Group, job: Job, tick: Callable[[int], None]) -> None:
    """Write a group's shard in each of its splits, its index rows and, last, its marker.

    A shard whose recordings are all rejected is an empty archive: the numbers stay as planned.

    Args:
        group: The task.
        job: What it needs beside.
        tick: Called after every unit with the bytes of it.
    """
    _keep_memory()
    pipeline = find_pipeline(job.pipeline)
    rows: list[dict[str, Any]] = []
    rejected: list[Row] = []
    odd: Counter[str] = Counter()
    shards = job.shards(group)
    new = [new_name(shard) for shard in shards]
    with new[0].open("wb", buffering=1 << 20) as file, Reader() as reader:
        writer = ShardWriter(file)
        for unit in group.units:
            odd.update(dict(unit.odd))
            try:
                whole = read(unit, job.dataset, reader)
            except RejectedError as error:
                rejected += [(clip.key, unit.source, error.reason) for clip in unit.clips]
                tick(unit.size)
                continue
            for clip in unit.clips:
                try:
                    recording = _cut(whole, clip, odd)
                    make = recordings if unit.done else pipeline.apply
                    poses = make(recording, job.topology, job.switches)
                except RejectedError as error:
                    rejected.append((clip.key, unit.source, error.reason))
                    continue
                if pipeline.up == "z" and upside_down(poses, job.topology):
                    odd["turned upside down, as published"] += 1
                try:
                    payload = payload_bytes(poses, job.precision)
                except OutOfRangeError as error:
                    raise UserError(
                        f"{clip.key} does not fit into int16",
                        file=str(unit.member),
                        found=error,
                        remedy="prepare it as float32",
                    ) from error
                fields: dict[str, Any] = {
                    "key": clip.key,
                    "label": clip.label,
                    "subject": clip.subject,
                    "camera": clip.camera,
                    "setup": clip.setup,
                    "replication": clip.replication,
                    "bodies": poses.shape[0],
                    "frames": poses.shape[1],
                    "source": unit.source,
                }
                place = {
                    "offset": writer.add(clip.key, payload, _description(fields, clip, job)),
                    "size": len(payload),
                    "crc32": isal_zlib.crc32(payload),
                    "sha256": hashlib.sha256(payload).hexdigest(),
                }
                rows.append(fields | place)
            tick(unit.size)
        sha256 = writer.close()
    for other in new[1:]:
        shutil.copyfile(new[0], other)
    for written, shard in zip(new, shards, strict=True):
        into_place(written, shard)
    task = Task(len(rows), rejected, dict(odd), writer.size, sha256)
    write_whole(job._rows(group), json.dumps(rows).encode())
    write_whole(job.marker(group), json.dumps(asdict(task)).encode())


def _keep_memory() -> None:
    """Have freed memory kept for the next recording, up to 64 MB.

    By default glibc gives a recording's arrays back to the system each time, and getting them anew,
    page by page, is a tenth of the work.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if option is not None:
        option(_TRIM_THRESHOLD, 64 << 20)
        option(_MMAP_THRESHOLD, 32 << 20)


def _description(fields: dict[str, Any], clip: Clip, job: Job) -> bytes:
    """A sample's JSON; for a whole recording also what happens when, row by row and resolved.

    ``frame_labels`` are runs of (action or 0 for none, number of frames), all frames in turn.
    """
    if clip.actions is None:
        return json.dumps(fields).encode()
    labels_T = frame_labels(clip.actions, fields["frames"], job.switches["reversed"])
    runs = [(int(label), len(list(run))) for label, run in groupby(labels_T)]
    return json.dumps({**fields, "actions": clip.actions, "frame_labels": runs}).encode()


def _cut(whole: Recording, clip: Clip, odd: Counter[str]) -> Recording:
    if clip.frames is None:
        return whole
    start, stop = clip.frames
    if stop > whole.frames:
        odd["label beyond the end"] += 1
    return whole.cut(start, stop)
