from __future__ import annotations

from itertools import combinations

import pytest
import torch
from builders import KINECT

from skelpipe.errors import UserError
from skelpipe.random import fold, uniform
from skelpipe.skeleton import Topology
from skelpipe.views.parts import cell_masks, masked_parts, part_masks

PARTS = list(KINECT.parts.values())
KEYS = fold(3, torch.arange(4000))


def chain(parts: int) -> Topology:
    """A skeleton of two joints a part."""
    joints = tuple(f"joint{number}" for number in range(2 * parts))
    return Topology(
        name="chain",
        joints=joints,
        parents=tuple(range(-1, 2 * parts - 1)),
        mirror=(),
        parts={str(part): (2 * part, 2 * part + 1) for part in range(parts)},
    )


@pytest.mark.parametrize(
    ("frames", "clips", "ratio"), [(64, 8, 0.6), (16, 4, 0.6), (12, 1, 0.2), (6, 6, 0.99)]
)
def test_masks_equal_a_literal_loop(frames: int, clips: int, ratio: float) -> None:
    found = part_masks(KEYS[:30], frames, KINECT, clips=clips, ratio=ratio)
    for sample in range(30):
        draws = uniform(KEYS[sample], "masked parts", clips * 5).tolist()
        wanted = torch.zeros(frames, 25, dtype=torch.bool)
        for frame in range(frames):
            clip = frame * clips // frames
            own = draws[5 * clip : 5 * clip + 5]
            for part in sorted(range(5), key=own.__getitem__)[: int(5 * ratio)]:
                for joint in PARTS[part]:
                    wanted[frame, joint] = True
        assert torch.equal(found[sample], wanted)


def test_the_papers_masks_hide_three_of_five_parts_of_each_clip_independently() -> None:
    masks = part_masks(KEYS, 64, KINECT, clips=8, ratio=0.6)
    share = masks.double().mean((1, 2))
    assert 0.52 <= float(share.min()) < 0.56
    assert 0.64 < float(share.max()) <= 0.68
    clips = masks.view(-1, 8, 8, 25)
    assert bool((clips == clips[:, :, :1]).all())
    parts = torch.stack([clips[:, :, 0, list(joints)].all(-1) for joints in PARTS], -1)
    assert torch.equal(parts[..., torch.from_numpy(KINECT.part_of)], clips[:, :, 0])
    assert bool((parts.sum(-1) == 3).all())
    # Each of the ten triples is as likely in every clip, and two clips share theirs by chance.
    triple = sum(parts[..., part].long() << part for part in range(5))
    assert isinstance(triple, torch.Tensor)
    for chosen in combinations(range(5), 3):
        word = sum(1 << part for part in chosen)
        assert bool(((triple == word).double().mean(0) - 0.1).abs().max() < 0.02)
    same = (triple[:, :, None] == triple[:, None]).double().mean(0) - torch.eye(8)
    assert bool((same - 0.1 * (1 - torch.eye(8))).abs().max() < 0.02)


@pytest.mark.parametrize(
    ("parts", "ratio", "count"),
    [(5, 0.6, 3), (5, 0.59, 2), (5, 0.2, 1), (5, 0.8, 4), (3, 0.34, 1), (100, 0.29, 29)],
)
def test_a_ratio_counts_as_it_is_written(parts: int, ratio: float, count: int) -> None:
    topology = chain(parts)
    assert masked_parts(topology, ratio) == count
    masks = part_masks(KEYS[:20], 4, topology, clips=2, ratio=ratio)
    assert set(masks.sum(-1).flatten().tolist()) == {2 * count}


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_a_ratio_that_masks_nothing_is_refused_with_one_that_does(parts: int) -> None:
    topology = chain(parts)
    with pytest.raises(UserError, match=r"mask\.ratio 0\.1 masks no part of skeleton 'chain'") as e:
        part_masks(KEYS[:2], 4, topology, clips=2, ratio=0.1)
    assert "mask.kind=random" in str(e.value)
    if parts > 1:
        ratio = float(str(e.value).partition("mask.ratio=")[2].partition(",")[0])
        assert masked_parts(topology, ratio) == 1


@pytest.mark.parametrize(("frames", "ratio", "count"), [(64, 0.6, 960), (3, 0.5, 38), (2, 0.02, 1)])
def test_random_masks_have_exactly_so_many_cells(frames: int, ratio: float, count: int) -> None:
    masks = cell_masks(KEYS[:40], frames, 25, ratio=ratio)
    assert masks.shape == (40, frames, 25)
    for sample in range(40):
        draws = uniform(KEYS[sample], "masked cells", frames * 25).tolist()
        chosen = set(sorted(range(frames * 25), key=draws.__getitem__)[:count])
        assert set(masks[sample].flatten().nonzero()[:, 0].tolist()) == chosen


def test_a_ratio_that_masks_no_cell_is_refused() -> None:
    with pytest.raises(UserError, match=r"mask\.ratio 0\.001 masks nothing"):
        cell_masks(KEYS[:2], 2, 25, ratio=0.001)


def test_every_cell_is_masked_as_often() -> None:
    share = cell_masks(KEYS, 4, 25, ratio=0.6).double().mean(0)
    assert float((share - 0.6).abs().max()) < 0.035
