"""Tiny real objects for tests: recordings, batches, recipes and prepared sets."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skelpipe.config import PCM3Recipe, SLiMRecipe, apply_changes, build
from skelpipe.manifest import load_topology
from skelpipe.random import fold
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
)
from skelpipe.shards.index import INDEX, write_index
from skelpipe.shards.tar import ShardWriter, payload_bytes
from skelpipe.stream.source import Batch

KINECT = load_topology("kinect_v2")
CPU = torch.device("cpu")
Poses = npt.NDArray[np.float32]

TINY: dict[str, Any] = {
    "kind": "recipe",
    "name": "tiny",
    "views": {
        "frames": 16,
        "local": [{"frames": 8, "ratio": [0.35, 0.7]}, {"frames": 4, "ratio": [0.15, 0.4]}],
    },
    "encoder": {"layers": 1, "dim": 16, "heads": 2, "mlp_ratio": 2.0, "patch_frames": 4},
    "head": {"hidden": 24, "bottleneck": 8, "prototypes": 12},
    "optim": {"lr": 1e-3, "momentum": [0.9, 1.0]},
    "train": {"epochs": 2, "batch": 4, "checkpoint_every": 1},
}

TINY_PCM3: dict[str, Any] = {
    "kind": "recipe",
    "name": "tiny-pcm3",
    "method": "pcm3",
    "views": {"frames": 16, "shortest": 8},
    "mask": {"clips": 4},
    "mix": {"steps": 8, "length": [3, 5]},
    "encoder": {"layers": 2, "hidden": 8},
    "decoder": {"hidden": 6},
    "prompts": {"width": 3},
    "loss": {"embedding": 5, "queue": 11},
    "train": {"epochs": 2, "batch": 4, "checkpoint_every": 1},
}


def tiny_recipe(*changes: str) -> SLiMRecipe:
    return build(SLiMRecipe, apply_changes(TINY, changes), what="recipe 'tiny'")


def tiny_pcm3_recipe(*changes: str) -> PCM3Recipe:
    return build(PCM3Recipe, apply_changes(TINY_PCM3, changes), what="recipe 'tiny-pcm3'")


def recording(
    seed: int, frames: int, bodies: int = 1, absent: Sequence[tuple[int, int, int]] = ()
) -> Poses:
    """A smooth random walk of every joint around a resting place, shape (M, T, J, 3).

    Each of ``absent`` is (body, first frame, frame after the last).
    """
    rng = np.random.default_rng(seed)
    rest = rng.normal(0, 0.5, (bodies, 1, 25, 3))
    walk = rng.normal(0, 0.03, (bodies, frames, 25, 3)).cumsum(1)
    poses = (rest + walk).astype(np.float32)
    for body, begin, end in absent:
        poses[body, begin:end] = 0
    return poses


def batch_of(
    samples: Sequence[Poses], keys: Sequence[int] | None = None, labels: Sequence[int] = ()
) -> Batch:
    flat = torch.from_numpy(np.concatenate([poses.reshape(-1, 25, 3) for poses in samples]))
    bodies = torch.tensor([len(poses) for poses in samples])
    frames = torch.tensor([poses.shape[1] for poses in samples])
    rows = bodies * frames
    numbers = torch.tensor(list(range(len(samples)) if keys is None else keys))
    return Batch(
        flat_RJC=flat,
        present_R=(flat != 0).flatten(1).any(1),
        start_N=rows.cumsum(0) - rows,
        frames_N=frames,
        bodies_N=bodies,
        label_N=torch.tensor(list(labels) or [0] * len(samples)),
        row_N=numbers,
        key_N=fold(7, 0, numbers),
        key=fold(7, -1, 0, 0),
        valid_N=torch.ones(len(samples), dtype=torch.bool),
    )


def mixed_samples() -> list[Poses]:
    """One and two bodies; bodies absent at the start, at the end and for most of the time."""
    return [
        recording(0, 40),
        recording(1, 70, 2),
        recording(2, 30, 2, [(1, 0, 12)]),
        recording(3, 90, 2, [(1, 6, 90)]),
        recording(4, 3),
        recording(5, 55, 2, [(0, 0, 50)]),
    ]


def write_set(
    folder: Path,
    train: int = 12,
    test: int = 6,
    *,
    seed: int = 0,
    pipeline: str = "ctrgcn",
    shard_samples: int = 5,
) -> Path:
    """A prepared set of random walks with two classes; every third sample has two bodies."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    files: dict[str, FileStamp] = {}
    payloads: list[tuple[str, str]] = []
    for part, count in (("train", train), ("test", test)):
        for first in range(0, count, shard_samples):
            shard = f"{part}-{first // shard_samples:06d}.tar"
            with (folder / shard).open("wb") as file:
                writer = ShardWriter(file)
                for number in range(first, min(first + shard_samples, count)):
                    # Keys descend, so that key order is not the order in the shards.
                    key = f"{part}{count - number:03d}"
                    poses = recording(
                        seed * 1000 + number, 10 + 3 * number, 2 if number % 3 == 2 else 1
                    )
                    label = number % 2
                    poses[..., 0] += label
                    payload = payload_bytes(poses)
                    offset = writer.add(key, payload, json.dumps({"key": key}).encode())
                    payloads.append((key, hashlib.sha256(payload).hexdigest()))
                    rows.append(
                        {
                            "key": key,
                            "part": part,
                            "shard": shard,
                            "offset": offset,
                            "size": len(payload),
                            "bodies": poses.shape[0],
                            "frames": poses.shape[1],
                            "label": label,
                            "subject": 1 + number % 4 + (10 if part == "test" else 0),
                            "camera": 1,
                            "setup": 1,
                            "crc32": zlib.crc32(payload),
                        }
                    )
                sha256 = writer.close()
                files[shard] = FileStamp(size=writer.size, sha256=sha256)
    write_index(folder / INDEX, rows)
    index = (folder / INDEX).read_bytes()
    files[INDEX] = FileStamp(size=len(index), sha256=hashlib.sha256(index).hexdigest())
    nothing = Tally(samples=0, bodies=0, frames=0, classes={}, subjects={}, cameras={}, setups={})
    card = Card(
        dataset="toy",
        title="Toy",
        split="half",
        topology=KINECT,
        fps=30,
        pipeline=PipelineStamp(name=pipeline, version=1, switches={}),
        precision="float32",
        classes=("rest", "shift"),
        counts=Counts(
            total=nothing, train=nothing, test=nothing, published={}, rejected={}, missing=0
        ),
        missing_list=MissingStamp(applied=False, official=False, count=0, sha256="", where=""),
        warnings=(),
        source=Source(layout="ntu", recordings=train + test, digest=""),
        files=files,
        data_digest=digest_of(sorted(payloads)),
    )
    (folder / CARD).write_bytes(card_bytes(card))
    return folder
