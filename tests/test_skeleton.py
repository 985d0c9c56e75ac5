"""The Kinect topology, and what no topology may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from skelpipe.manifest import load_topology, read_manifest
from skelpipe.skeleton import Topology

KINECT = load_topology("kinect_v2")


def test_mirror_is_an_involution_that_swaps_left_and_right() -> None:
    mirrored = KINECT.mirrored
    assert (mirrored[mirrored] == np.arange(25)).all()
    for part in ("arm", "leg"):
        left, right = KINECT.parts[f"left_{part}"], KINECT.parts[f"right_{part}"]
        assert {int(mirrored[joint]) for joint in left} == set(right)
    for joint, other in enumerate(mirrored):
        name = KINECT.joints[joint]
        swapped = name.replace("left", "?").replace("right", "left").replace("?", "right")
        assert KINECT.joints[other] == swapped


def test_mirror_keeps_the_tree() -> None:
    mirrored = KINECT.mirrored
    for joint, parent in enumerate(KINECT.parents):
        expected = mirrored[parent] if parent >= 0 else -1
        assert KINECT.parents[mirrored[joint]] == expected


def test_order_puts_parents_first() -> None:
    assert sorted(KINECT.order) == list(range(25))
    for joint in KINECT.order:
        parent = KINECT.parents[joint]
        assert parent < 0 or KINECT.order.index(parent) < KINECT.order.index(joint)


def test_parts_number_every_joint() -> None:
    names = list(KINECT.parts)
    assert names[KINECT.part_of[KINECT.joints.index("head")]] == "torso"
    assert names[KINECT.part_of[KINECT.joints.index("right_thumb")]] == "right_arm"


def test_ancestry_rebuilds_the_joints() -> None:
    joints = np.random.default_rng(0).normal(size=(25, 3))
    bones = np.zeros_like(joints)
    for joint, parent in enumerate(KINECT.parents):
        if parent >= 0:
            bones[joint] = joints[joint] - joints[parent]
    np.testing.assert_allclose(joints[KINECT.root] + KINECT.ancestry @ bones, joints, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parents": [-1, 0]}, "2 parents for 3 joints"),
        ({"parents": [-1, 0, 3]}, "must lie between"),
        ({"parents": [-1, -1, 0]}, "exactly one joint"),
        ({"parents": [0, 1, 2]}, "exactly one joint"),
        ({"parents": [-1, 2, 1]}, "cycle"),
        ({"mirror": [[1, 2], [2, 0]]}, "two mirror pairs"),
        ({"mirror": [[1, 3]]}, "none of the joints"),
        ({"parts": {"all": [0, 1]}}, "exactly once"),
        ({"parts": {"all": [0, 1, 2], "more": [2]}}, "exactly once"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_wrong_topologies_are_refused(change: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "name": "three",
        "joints": ["root", "left", "right"],
        "parents": [-1, 0, 0],
        "mirror": [[1, 2]],
        "parts": {"all": [0, 1, 2]},
    }
    Topology.model_validate(right)
    with pytest.raises(ValidationError, match=message):
        Topology.model_validate(right | change)


def test_manifest_is_read_as_is() -> None:
    assert read_manifest("topology", "kinect_v2")["up"] == KINECT.up == "y"
