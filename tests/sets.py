"""Prepared sets of any skeleton, for tests."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skelpipe.shards.card import (
    CARD,
    Card,
    Counts,
    FileStamp,
    PipelineStamp,
    Precision,
    Source,
    Tally,
    card_bytes,
)
from skelpipe.shards.index import INDEX, write_index
from skelpipe.shards.tar import ShardWriter, payload_bytes
from skelpipe.skeleton import Topology

Poses = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    key: str
    poses_MTJC: Poses
    part: str = "train"
    label: int = 0
    subject: int = 1
    camera: int = 1
    setup: int = 1
    told: Mapping[str, Any] = field(default_factory=dict)  # its JSON


def tree(joints: int, **changes: Any) -> Topology:
    """A skeleton in which every joint has two children, with three parts."""
    parts = {"low": range(1), "middle": range(1, joints // 2), "high": range(joints // 2, joints)}
    table = {
        "name": f"tree{joints}",
        "joints": [f"joint{number}" for number in range(joints)],
        "parents": [-1, *((number - 1) // 2 for number in range(1, joints))],
        "mirror": [],
        "parts": {name: list(part) for name, part in parts.items()},
    }
    return Topology.model_validate(table | changes)


def walk(seed: int, frames: int, joints: int, bodies: int = 1, *, flat: bool = False) -> Poses:
    """Joints that wander about resting places, shape (M, T, J, 3), in metres."""
    rng = np.random.default_rng(seed)
    rest = rng.normal(0, 0.5, (bodies, 1, joints, 3))
    poses = (rest + rng.normal(0, 0.03, (bodies, frames, joints, 3)).cumsum(1)).astype(np.float32)
    if flat:
        poses[..., 2] = 0
    return poses


def write_set(
    folder: Path,
    topology: Topology,
    samples: Sequence[Sample],
    *,
    precision: Precision = "float32",
    **changes: Any,
) -> Path:
    """A prepared set of these samples, one shard a part; ``changes`` are fields of its card."""
    folder.mkdir(parents=True)
    rows, files = [], {}
    for part in ("train", "test"):
        shard = f"{part}-000000.tar"
        with (folder / shard).open("wb") as file:
            writer = ShardWriter(file)
            for sample in (sample for sample in samples if sample.part == part):
                payload = payload_bytes(sample.poses_MTJC, precision)
                place = {
                    "offset": writer.add(
                        sample.key, payload, json.dumps(dict(sample.told)).encode()
                    ),
                    "size": len(payload),
                    "crc32": zlib.crc32(payload),
                    "bodies": sample.poses_MTJC.shape[0],
                    "frames": sample.poses_MTJC.shape[1],
                    "shard": shard,
                }
                rows.append(vars(sample) | place)
            sha256 = writer.close()
            files[shard] = FileStamp(size=writer.size, sha256=sha256)
    write_index(folder / INDEX, rows)
    index = (folder / INDEX).read_bytes()
    files[INDEX] = FileStamp(size=len(index), sha256=hashlib.sha256(index).hexdigest())
    labels = range(1 + max(sample.label for sample in samples))
    fields: dict[str, Any] = {
        "dataset": "own",
        "title": "Own",
        "split": "half",
        "topology": topology,
        "fps": 30,
        "pipeline": PipelineStamp(name="ctrgcn", version=1, switches={}),
        "precision": precision,
        "classes": tuple(f"class{label}" for label in labels),
        "counts": counts(samples),
        "missing_list": None,
        "warnings": (),
        "source": Source(layout="own", recordings=len(samples), digest=""),
        "files": files,
        "data_digest": "d" * 64,
    }
    (folder / CARD).write_bytes(card_bytes(Card(**(fields | changes))))
    return folder


def counts(samples: Sequence[Sample], **changes: Any) -> Counts:
    """What a card says of these samples."""

    def numbers(field: str, chosen: Sequence[Sample]) -> list[int]:
        """Only what is stated: labels count from 0, the others from 1."""
        least = 0 if field == "label" else 1
        return [number for sample in chosen if (number := getattr(sample, field)) >= least]

    def tally(part: str) -> Tally:
        chosen = [sample for sample in samples if part in (sample.part, "total")]
        fields = {"classes": "label", "subjects": "subject", "cameras": "camera", "setups": "setup"}
        return Tally(
            samples=len(chosen),
            bodies=sum(sample.poses_MTJC.shape[0] for sample in chosen),
            frames=sum(sample.poses_MTJC.shape[1] for sample in chosen),
            **{name: Counter(numbers(field, chosen)) for name, field in fields.items()},
        )

    fields: dict[str, Any] = {
        "total": tally("total"),
        "train": tally("train"),
        "test": tally("test"),
        "published": {},
        "rejected": {},
        "missing": 0,
    }
    return Counts(**(fields | changes))
