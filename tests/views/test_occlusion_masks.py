from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from builders import KINECT
from sets import tree

from skelpipe.errors import UserError
from skelpipe.random import bits, fold, named, uniform
from skelpipe.skeleton import Topology
from skelpipe.views.occlusion import (
    check_occludable,
    hidden_block,
    hidden_parts,
    occlusion_masks,
)

KEYS = fold(3, torch.arange(4000))
RATIO = (0.3, 0.7)


def share(key: int, ratio: tuple[float, float]) -> int:
    """The share of one key in millionths, in Python's integers."""
    least, most = (round(1e6 * end) for end in ratio)
    word = int(bits(torch.tensor(key), "occluded share", 1)) % 2**64 >> 32
    return least + (word * (most - least + 1) >> 32)


def nearest(millionths: int, whole: int) -> int:
    """Halves up, neither none nor all."""
    return min(max((2 * millionths * whole + 10**6) // (2 * 10**6), 1), whole - 1)


def loop_parts(key: int, topology: Topology, ratio: tuple[float, float]) -> list[bool]:
    names = list(topology.parts)
    count = nearest(share(key, ratio), len(names))
    draws = uniform(torch.tensor(key), "occluded parts", len(names)).tolist()
    chosen = sorted(range(len(names)), key=lambda part: (draws[part], part))[:count]
    hidden = [False] * len(topology.joints)
    for part in chosen:
        for joint in topology.parts[names[part]]:
            hidden[joint] = True
    return hidden


def loop_block(key: int, frames: int, ratio: tuple[float, float]) -> list[bool]:
    length = nearest(share(key, ratio), frames)
    word = int(bits(torch.tensor(key), "occluded from", 1)) % 2**64 >> 32
    start = word * (frames - length + 1) >> 32
    return [start <= frame < start + length for frame in range(frames)]


@pytest.mark.parametrize("ratio", [RATIO, (0.1, 0.1), (0.01, 1.0)])
@pytest.mark.parametrize("topology", [KINECT, tree(9)], ids=["kinect", "three parts"])
def test_masks_are_those_of_a_plain_loop(topology: Topology, ratio: tuple[float, float]) -> None:
    some = KEYS[:60]
    parts, block = hidden_parts(some, topology, ratio), hidden_block(some, 17, ratio)
    for place, key in enumerate(some.tolist()):
        assert parts[place].tolist() == loop_parts(key, topology, ratio)
        assert block[place].tolist() == loop_block(key, 17, ratio)


def test_a_half_is_rounded_up_and_something_is_always_left() -> None:
    count = {
        ratio: int(hidden_block(KEYS[:1], 10, (ratio, ratio)).sum())
        for ratio in (0.001, 0.25, 0.349, 0.35, 1.0)
    }
    assert count == {0.001: 1, 0.25: 3, 0.349: 3, 0.35: 4, 1.0: 9}


def test_parts_are_hidden_whole_in_two_or_three_of_five() -> None:
    hidden = hidden_parts(KEYS, KINECT, RATIO)
    numbers, each = Counter[int](), np.zeros(5)
    for row in hidden.numpy():
        of_part = [row[list(joints)] for joints in KINECT.parts.values()]
        assert all(part.all() or not part.any() for part in of_part)
        each += [part.any() for part in of_part]
        numbers[sum(bool(part.any()) for part in of_part)] += 1
    # round(5 r) is 2 for r in [0.3, 0.5), 3 for r in [0.5, 0.7); 0.7 itself is 4.
    assert set(numbers) <= {2, 3, 4}
    assert abs(numbers[2] / len(KEYS) - 0.5) < 0.03
    assert numbers[4] <= 1
    assert np.abs(each / len(KEYS) - 0.5).max() < 0.03  # no part is preferred


def test_blocks_are_one_stretch_of_a_uniform_length_and_place() -> None:
    hidden = hidden_block(KEYS, 64, RATIO).numpy()
    edges = np.abs(np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1)
    assert (edges == 2).all()
    length = hidden.sum(1)
    assert (length.min(), length.max()) == (19, 45)
    assert abs(length.mean() - 32) < 0.5
    assert abs(length.std() - 64 * 0.4 / np.sqrt(12)) < 0.3
    room = 64 - length
    start = hidden.argmax(1)
    assert ((start >= 0) & (start <= room)).all()
    assert abs((start / room).mean() - 0.5) < 0.02
    assert {0, 1} <= set((start / room).tolist())


def test_masks_hold_for_all_joints_or_all_frames_and_by_key_alone() -> None:
    spatial = occlusion_masks(KEYS[:50], "spatial", 12, KINECT, RATIO)
    temporal = occlusion_masks(KEYS[:50], "temporal", 12, KINECT, RATIO)
    assert spatial.shape == temporal.shape == (50, 12, 25)
    assert torch.equal(spatial, spatial[:, :1].expand(-1, 12, -1))
    assert torch.equal(temporal, temporal[..., :1].expand(-1, -1, 25))
    order = torch.arange(49, -1, -7)
    for kind, found in (("spatial", spatial), ("temporal", temporal)):
        again = occlusion_masks(KEYS[order], kind, 12, KINECT, RATIO)  # type: ignore[arg-type]
        assert torch.equal(again, found[order])


def test_a_skeleton_of_one_part_is_refused() -> None:
    whole = tree(4, parts={"all": [0, 1, 2, 3]})
    with pytest.raises(UserError, match="has a single part"):
        check_occludable(whole)
    check_occludable(KINECT)
    two = tree(4, parts={"one": [0, 1], "other": [2, 3]})
    assert hidden_parts(KEYS, two, RATIO).sum(1).unique().tolist() == [2]


def test_names_have_words_of_their_own() -> None:
    words = named(["S001C001P001R001A001", "S001C001P001R001A002", "", "S001C001P001R001A001"])
    assert words[0] == words[3]
    assert len(set(words.tolist())) == 3
    # The first eight bytes of the sha256 of nothing, e3b0c44298fc1c14, the lowest first.
    assert int(words[2]) == int.from_bytes(bytes.fromhex("e3b0c44298fc1c14"), "little")
