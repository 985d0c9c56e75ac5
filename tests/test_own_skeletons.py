"""Users' own skeletons, from a manifest to k-NN: three worked examples."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from skelpipe.shards.card import Card, read_card

Poses = npt.NDArray[np.float64]

CLASSES = ("wave", "squat", "sway")
SUBJECTS, TAKES = 6, 5
RECIPE = """
kind = "recipe"
name = "tiny"
[views]
frames = 16
local = [{ frames = 8, ratio = [0.35, 0.7] }]
[encoder]
layers = 1
dim = 32
heads = 2
mlp_ratio = 2.0
patch_frames = 4
[head]
hidden = 32
bottleneck = 16
prototypes = 24
[optim]
lr = 1e-3
[train]
epochs = 3
batch = 15
"""

KINECT_V1 = """
name = "kitchen"
title = "Kitchen, Kinect v1"
fps = 30
classes = ["wave", "squat", "sway"]

[skeleton]
joints = [
    "hip", "spine", "neck", "head",
    "left_shoulder", "left_elbow", "left_wrist", "left_hand",
    "right_shoulder", "right_elbow", "right_wrist", "right_hand",
    "left_hip", "left_knee", "left_ankle", "left_foot",
    "right_hip", "right_knee", "right_ankle", "right_foot",
]
parents = ["none", 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18]
mirror = [[4, 8], [5, 9], [6, 10], [7, 11], [12, 16], [13, 17], [14, 18], [15, 19]]
up = "y"
unit = "m"
centre = "spine"
spine = ["hip", "spine"]
shoulders = ["left_shoulder", "right_shoulder"]

[skeleton.parts]
trunk = ["hip", "spine", "neck", "head"]
left_arm = [4, 5, 6, 7]
right_arm = [8, 9, 10, 11]
left_leg = [12, 13, 14, 15]
right_leg = [16, 17, 18, 19]

[source]
path = "kitchen.h5"
data = "*/skeleton"
axes = "TJC"

[labels]
column = "action"

[subjects]
column = "person"

[splits.xsub]
by = "subject"
train = [1, 2, 3, 4]
test = [5, 6]
"""

COCO = """
name = "street"
title = "Street, COCO key points in pixels"
fps = 25
classes = ["wave", "squat", "sway"]

[skeleton]
joints = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
]
parents = [
    "none", "nose", "nose", "left_eye", "right_eye", "nose", "nose", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_shoulder", "right_shoulder", "left_hip",
    "right_hip", "left_knee", "right_knee",
]
mirror = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14], [15, 16]]
up = "-y"        # of pixels, y points down
unit = "none"
scale = 0.005    # a person 340 pixels tall becomes 1.7

[skeleton.parts]
head = [0, 1, 2, 3, 4]
left_arm = [5, 7, 9]
right_arm = [6, 8, 10]
left_leg = [11, 13, 15]
right_leg = [12, 14, 16]

[source]
path = "street.parquet"
data = "keypoints"
names = "clip"
axes = "TJC"
coordinates = "xy_"   # the third is the detector's score

[labels]
column = "label"
first = 1

[subjects]
column = "person"

[splits.days]
by = { column = "part" }
test = ["val"]
"""

TWO_BODIES = """
name = "duo"
mutual = [1, 3]
title = "Duo, two people of 15 joints"
fps = 30

[skeleton]
joints = [
    "head", "neck", "pelvis", "l_shoulder", "l_elbow", "l_hand", "r_shoulder", "r_elbow", "r_hand",
    "l_hip", "l_knee", "l_foot", "r_hip", "r_knee", "r_foot",
]
parents = [
    "neck", "pelvis", -1, "neck", "l_shoulder", "l_elbow", "neck", "r_shoulder", "r_elbow",
    "pelvis", "l_hip", "l_knee", "pelvis", "r_hip", "r_knee",
]
mirror = [
    ["l_shoulder", "r_shoulder"], ["l_elbow", "r_elbow"], ["l_hand", "r_hand"],
    ["l_hip", "r_hip"], ["l_knee", "r_knee"], ["l_foot", "r_foot"],
]
up = "z"
unit = "mm"

[skeleton.parts]
trunk = ["head", "neck", "pelvis"]
left_arm = ["l_shoulder", "l_elbow", "l_hand"]
right_arm = ["r_shoulder", "r_elbow", "r_hand"]
left_leg = ["l_hip", "l_knee", "l_foot"]
right_leg = ["r_hip", "r_knee", "r_foot"]

[source]
path = "takes/*.csv"
axes = "T(MJC)"

[labels]
table = "takes.csv"
key = "take"
column = "action"

[subjects]
pattern = "pair(\\\\d+)"

[splits.listed]
train = "train.txt"
test = "test.txt"
"""


def moving(action: str, joints: int, up: int, rng: np.random.Generator) -> Poses:
    """A clip of one body, shape (T, J, 3), metres: what moves, and which way, is the class.

    ``up`` is the vertical axis; x is the lateral one.
    """
    frames = int(rng.integers(24, 40))
    rest = np.random.default_rng(joints).uniform(-0.4, 0.4, (joints, 3))
    rest[:, up] = np.linspace(1.7, 0.1, joints)
    phase = 2 * np.pi * (np.arange(frames) / 18 + rng.uniform())
    swing = (0.35 + 0.1 * rng.uniform()) * np.sin(phase)[:, None]
    poses = np.repeat(rest[None] * rng.uniform(0.9, 1.1), frames, axis=0)
    third = joints // 3
    match action:
        case "wave":
            poses[:, third : 2 * third, 0] += swing
        case "squat":
            poses[:, : 2 * third, up] += swing
        case _:
            poses[:, 2 * third :, 0] -= swing
            poses[:, :third, 3 - up] += swing
    return poses + rng.normal(0, 0.01, poses.shape)


def takes() -> list[tuple[str, str, int, np.random.Generator]]:
    """Name, class, person and generator of every take."""
    return [
        (f"p{person}_{action}_{take}", action, person, np.random.default_rng([person, take, at]))
        for person in range(1, SUBJECTS + 1)
        for at, action in enumerate(CLASSES)
        for take in range(TAKES)
    ]


def write_kitchen(home: Path) -> None:
    with h5py.File(home / "kitchen.h5", "w") as file:
        for name, action, person, rng in takes():
            group = file.create_group(name)
            group.attrs["action"] = action
            group.attrs["person"] = person
            group.create_dataset("skeleton", data=moving(action, 20, 1, rng), compression="gzip")


def write_street(home: Path) -> None:
    rows: dict[str, list[Any]] = {
        "clip": [],
        "label": [],
        "person": [],
        "part": [],
        "keypoints": [],
    }
    for name, action, person, rng in takes():
        poses = moving(action, 17, 1, rng)
        pixels = np.stack([960 + 200 * poses[..., 0], 800 - 200 * poses[..., 1]], axis=2)
        score = rng.uniform(0.5, 1, (*poses.shape[:2], 1))
        rows["clip"].append(name)
        rows["label"].append(1 + CLASSES.index(action))
        rows["person"].append(f"person {person}")
        rows["part"].append("train" if person <= 4 else "val")
        rows["keypoints"].append(np.concatenate([pixels, score], axis=2).tolist())
    pq.write_table(pa.table(rows), home / "street.parquet", row_group_size=16)


def write_duo(home: Path) -> None:
    (home / "takes").mkdir()
    table, parts = ["take,action"], {"train": [], "test": []}
    for number, (_, action, pair, rng) in enumerate(takes()):
        first = moving(action, 15, 2, rng)
        second = first + np.array([0, 1.0, 0])
        if number % 5 == 0:
            second[: len(second) // 2] = np.nan  # comes late
        both = 1000 * np.stack([first, second], axis=1).reshape(len(first), -1)
        name = f"take{number:03d}-pair{pair}"
        text = "\n".join(",".join(f"{value:.2f}" for value in row) for row in both)
        (home / "takes" / f"{name}.csv").write_text(text.replace("nan", ""), encoding="utf-8")
        table.append(f"{name},{action}")
        parts["train" if pair <= 4 else "test"].append(name)
    (home / "takes.csv").write_text("\n".join(table), encoding="utf-8")
    for part, names in parts.items():
        (home / f"{part}.txt").write_text("\n".join(names), encoding="utf-8")


EXAMPLES: Mapping[str, tuple[str, Any, str]] = {
    "kitchen": (KINECT_V1, write_kitchen, "xsub"),
    "street": (COCO, write_street, "days"),
    "duo": (TWO_BODIES, write_duo, "listed"),
}


def skelpipe(*words: str | Path) -> Any:
    (script,) = entry_points(group="console_scripts", name="skelpipe")
    app = sys.modules[script.load().__module__].app
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception
    return result


@pytest.fixture(params=EXAMPLES)
def example(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """A manifest beside its data, and the folder of the prepared set."""
    manifest, write, split = EXAMPLES[request.param]
    write(tmp_path)
    (tmp_path / "my.toml").write_text(manifest, encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "shards"))
    monkeypatch.setenv("SKELPIPE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "my.toml", tmp_path / "shards" / request.param / "ctrgcn" / split


def test_from_a_manifest_to_retrieval(example: tuple[Path, Path]) -> None:
    manifest, folder = example
    skelpipe("prepare", manifest, "--workers", "1")
    card = read_card(folder)
    check_card(card)
    assert "nothing to do" in skelpipe("prepare", manifest).output
    skelpipe("pretrain", "--recipe", manifest.parent / "tiny.toml")
    accuracy = {}
    for floor in ((), ("--raw-features",)):
        skelpipe("evaluate", "--protocol", "knn", *floor)
        name = "knn-raw.json" if floor else "knn.json"
        (record,) = (manifest.parent / "runs").glob(f"*/results/{name}")
        result = json.loads(record.read_text(encoding="utf-8"))
        assert result["samples"] == {"train": 60, "test": 30}
        accuracy[name] = result["results"][0]["accuracy"]
    print(f"{card.dataset}: {accuracy}")
    assert accuracy["knn-raw.json"] > 80  # chance is 33
    assert accuracy["knn.json"] > 60


def check_card(card: Card) -> None:
    joints = {"kitchen": 20, "street": 17, "duo": 15}[card.dataset]
    assert len(card.topology.joints) == joints
    assert card.topology.up == "y"
    assert card.metric == (card.dataset != "street")
    assert card.classes == (tuple(sorted(CLASSES)) if card.dataset == "duo" else CLASSES)
    assert card.mutual == ((0, 2) if card.dataset == "duo" else ())
    assert card.apart == ("subject" if card.dataset == "kitchen" else "")
    assert (card.counts.train.samples, card.counts.test.samples) == (60, 30)
    assert card.counts.train.subjects == {1: 15, 2: 15, 3: 15, 4: 15}
    assert card.counts.total.bodies == (180 if card.dataset == "duo" else 90)
    assert not card.counts.rejected
    assert not card.warnings
