from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from builders import KINECT

from skelpipe.errors import UserError
from skelpipe.random import below, fold, uniform
from skelpipe.skeleton import Topology
from skelpipe.views.masking import Subsets, contiguous_subsets, tube_masks

TREE = contiguous_subsets(KINECT, "tree")
SLICE = contiguous_subsets(KINECT, "slice")
PARTS = list(KINECT.parts.values())
PAPER: dict[str, Any] = {"ratio": (0.5, 0.9), "min_area": 8, "max_area": 0.5}
Tube = tuple[frozenset[int], int, int]


def grow(rng: random.Random, part: tuple[int, ...], width: int) -> frozenset[int]:
    """A connected subset of a part, grown joint by joint from a random seed (S6)."""
    chosen = {rng.choice(part)}
    while len(chosen) < width:
        edge = [
            joint
            for joint in part
            if joint not in chosen
            and any(
                KINECT.parents[joint] == other or KINECT.parents[other] == joint for other in chosen
            )
        ]
        chosen.add(rng.choice(edge))
    return frozenset(chosen)


def connected(joints: frozenset[int]) -> bool:
    reached = {min(joints)}
    for _ in joints:
        reached |= {
            joint
            for joint in joints
            for other in reached
            if KINECT.parents[joint] == other or KINECT.parents[other] == joint
        }
    return reached == set(joints)


def literal_mask(rng: random.Random, steps: int, subset: str, overshoot: bool) -> set[int]:
    """Algorithm 1 with S4-S7, one tube at a time."""
    tokens = steps * 25
    target = rng.randint(math.ceil(0.5 * tokens), math.floor(0.9 * tokens))
    largest = max(int(0.5 * tokens), 8)
    mask: set[int] = set()
    while len(mask) < target:
        allowed = min(target - len(mask), largest)
        part = rng.choice(PARTS)
        width = rng.randint(1, len(part))
        if subset == "tree":
            joints = sorted(grow(rng, part, width))
        else:
            first = rng.randint(0, len(part) - width)
            joints = sorted(part[first : first + width])
        area = rng.uniform(8, max(allowed, 8))
        duration = min(max(round(area / width), 1), steps)
        start = rng.randint(0, steps - duration)
        tube = [step * 25 + j for step in range(start, start + duration) for j in joints]
        fresh = [token for token in tube if token not in mask]
        mask |= set(fresh if overshoot else fresh[: target - len(mask)])
    return mask


def replayed_tubes(
    key: torch.Tensor, steps: int, target: int, subsets: Subsets = TREE
) -> list[Tube]:
    """The tubes a key draws, until ``target`` tokens are covered."""
    joints_of_all = subsets.joints.shape[1]
    tokens = steps * joints_of_all
    draws = {name: uniform(key, f"tube {name}", 64) for name in ("part", "area", "start")}
    covered: set[int] = set()
    tubes: list[Tube] = []
    for tube in range(64):
        row = int((subsets.cumulative <= float(draws["part"][tube])).sum())
        row = min(row, len(subsets.width) - 1)
        joints = frozenset(subsets.joints[row].nonzero()[:, 0].tolist())
        roof = max(min(target - len(covered), max(int(0.5 * tokens), 8)), 8)
        area = torch.tensor(8.0) + draws["area"][tube] * (roof - 8)
        duration = min(max(int((area / len(joints)).round()), 1), steps)
        start = int(draws["start"][tube] * (steps - duration + 1))
        tubes.append((joints, start, duration))
        covered |= {s * joints_of_all + j for s in range(start, start + duration) for j in joints}
        if len(covered) >= target:
            break
    return tubes


def looped_mask(
    key: torch.Tensor, steps: int, subsets: Subsets, overshoot: bool = False
) -> torch.Tensor:
    """One mask of the draws that `tube_masks` uses, token by token."""
    joints = subsets.joints.shape[1]
    tokens = steps * joints
    least, most = math.ceil(0.5 * tokens - 1e-6), math.floor(0.9 * tokens + 1e-6)
    target = least + int(below(key, "masked tokens", 1, most - least + 1))
    mask: set[int] = set()
    for chosen, start, duration in replayed_tubes(key, steps, target, subsets):
        tube = [step * joints + j for step in range(start, start + duration) for j in chosen]
        fresh = [token for token in sorted(tube) if token not in mask]
        mask |= set(fresh if overshoot else fresh[: target - len(mask)])
    left = target - len(mask)
    if left > 0:
        draws = uniform(key, "fill", len(subsets.parts)).tolist()
        for part in sorted(range(len(draws)), key=draws.__getitem__):
            inside = subsets.parts[part].tolist()
            free = [t for t in range(tokens) if inside[t % joints] and t not in mask]
            mask |= set(free[: target - len(mask)])
    if len(mask) == tokens:
        mask.remove(tokens - 1)
    found = torch.zeros(tokens, dtype=torch.bool)
    found[list(mask)] = True
    return found.view(steps, joints)


def limbs(joints: int) -> Topology:
    """A skeleton of many joints: limbs of five in a row, all from the first joint."""
    return Topology(
        name="limbs",
        joints=tuple(f"j{joint}" for joint in range(joints)),
        parents=tuple(-1 if not j else 0 if j % 5 == 0 else j - 1 for j in range(joints)),
        mirror=(),
        parts={str(first): tuple(range(first, min(first + 5, joints)))
               for first in range(0, joints, 5)},
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("subsets", [TREE, SLICE], ids=["tree", "slice"])
@pytest.mark.parametrize("overshoot", [False, True])
def test_masks_equal_a_plain_loop(steps: int, subsets: Subsets, overshoot: bool) -> None:
    keys = fold(20, steps, torch.arange(40))
    found = tube_masks(keys, steps, subsets, overshoot=overshoot, **PAPER)
    for key, mask in zip(keys, found, strict=True):
        assert torch.equal(mask, looped_mask(key, steps, subsets, overshoot))


@pytest.mark.parametrize("joints", [15, 16, 30, 31, 64, 70])
def test_masks_of_any_number_of_joints_equal_a_plain_loop(joints: int) -> None:
    subsets = contiguous_subsets(limbs(joints), "tree")
    keys = fold(21, joints, torch.arange(12))
    for steps in (1, 3):
        found = tube_masks(keys, steps, subsets, **PAPER)
        for key, mask in zip(keys, found, strict=True):
            assert torch.equal(mask, looped_mask(key, steps, subsets))


def test_views_of_all_lengths_are_masked_together_as_they_are_apart() -> None:
    keys = fold(22, torch.arange(200))
    steps = torch.tensor([8, 4, 2, 1]).repeat(50)
    together = tube_masks(keys, steps, TREE, **PAPER)
    for count in (8, 4, 2, 1):
        own = steps == count
        assert torch.equal(together[own, :count], tube_masks(keys[own], count, TREE, **PAPER))
        assert not bool(together[own, count:].any())


def test_no_mask_is_drawn_for_no_key() -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    assert tube_masks(nobody, nobody, TREE, **PAPER).shape == (0, 1, 25)
    assert tube_masks(nobody, 4, TREE, **PAPER).shape == (0, 4, 25)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lengths_and_widths_of_masked_pieces_have_the_law_of_algorithm_1(steps: int) -> None:
    count = 4000
    keys = fold(23, steps, torch.arange(count))
    found = tube_masks(keys, steps, TREE, **PAPER)
    rng = random.Random(6)
    wanted = torch.zeros(count, steps * 25, dtype=torch.bool)
    for row in wanted:
        row[list(literal_mask(rng, steps, "tree", overshoot=False))] = True
    wanted = wanted.unflatten(1, (steps, 25))
    # Of each mask one number, so that a histogram counts independent draws.
    statistics = {
        "tokens": lambda m: m.flatten(1).sum(1) // max(steps, 2),
        "steps of a thumb": lambda m: m[:, :, 22].sum(1),
        "steps of a shoulder": lambda m: m[:, :, 4].sum(1),
        "joints of an arm": lambda m: m[:, 0, list(PARTS[1])].sum(1),
        "joints of the trunk": lambda m: m[:, -1, list(PARTS[0])].sum(1),
        "ends of tubes": lambda m: (m[:, 1:, 14] != m[:, :-1, 14]).sum(1),
    }
    for name, statistic in statistics.items():
        ours, theirs = (torch.bincount(statistic(m), minlength=200) for m in (found, wanted))
        kinds = (ours + theirs) > 0
        unlike = ((ours - theirs)[kinds] ** 2 / (ours + theirs)[kinds]).sum()
        freedom = max(int(kinds.sum()) - 1, 1)
        assert float(unlike) < freedom + 5 * (2 * freedom) ** 0.5, name


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("subsets", [TREE, SLICE], ids=["tree", "slice"])
def test_masked_share_is_uniform_in_its_range(steps: int, subsets: Any) -> None:
    count = tube_masks(fold(steps, torch.arange(2000)), steps, subsets, **PAPER).flatten(1).sum(1)
    least, most = math.ceil(0.5 * steps * 25), math.floor(0.9 * steps * 25)
    assert int(count.min()) == least
    assert int(count.max()) == most
    counts = torch.bincount(count - least, minlength=most - least + 1)
    expected, freedom = 2000 / len(counts), len(counts) - 1
    assert float(((counts - expected) ** 2 / expected).sum()) < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("overshoot", [False, True])
def test_a_view_is_never_fully_masked(steps: int, overshoot: bool) -> None:
    keys = fold(9, torch.arange(4000))
    mask = tube_masks(keys, steps, TREE, ratio=(0.5, 1.0), min_area=8, max_area=0.5,
                      overshoot=overshoot)  # fmt: skip
    assert bool((~mask).flatten(1).any(1).all())


def test_an_8_frame_view_has_25_tokens() -> None:
    mask = tube_masks(fold(torch.arange(10)), 1, TREE, **PAPER)
    assert mask.shape == (10, 1, 25)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("subset", ["tree", "slice"])
@pytest.mark.parametrize("overshoot", [False, True])
def test_masks_have_the_law_of_algorithm_1(steps: int, subset: str, overshoot: bool) -> None:
    count = 1500
    subsets = TREE if subset == "tree" else SLICE
    keys = fold(4, torch.arange(2 * count))
    found = tube_masks(keys, steps, subsets, overshoot=overshoot, **PAPER).double()
    rng = random.Random(5)
    wanted = torch.zeros(count, steps * 25, dtype=torch.float64)
    for row in wanted:
        row[list(literal_mask(rng, steps, subset, overshoot))] = 1
    wanted = wanted.unflatten(1, (steps, 25))
    # Each joint's and each step's share, and how often neighbours in time and tree agree.
    statistics = [
        lambda m: m.mean((0, 1)),
        lambda m: m.mean((0, 2)),
        lambda m: m.flatten(1).sum(1).mean()[None],
        lambda m: (m[..., [5, 9, 13, 17, 2]] == m[..., [6, 10, 14, 18, 20]]).double().mean((0, 1)),
        lambda m: (m[:, 1:] == m[:, :-1]).double().mean((0, 1)) if steps > 1 else m.new_zeros(1),
    ]  # fmt: skip
    for number, statistic in enumerate(statistics):
        spread = 25 * steps if number == 2 else 1
        tolerance = 5 * 0.5 * spread * (1 / count + 1 / (2 * count)) ** 0.5
        tolerance *= 0.3 if number == 2 else 1
        assert torch.allclose(statistic(found), statistic(wanted), atol=tolerance)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_before_trimming_the_mask_is_a_union_of_tubes(steps: int) -> None:
    keys = fold(6, torch.arange(60))
    trimmed = tube_masks(keys, steps, TREE, **PAPER)
    whole = tube_masks(keys, steps, TREE, overshoot=True, **PAPER)
    assert bool((whole | ~trimmed).all())
    for key, mask, target in zip(keys, whole, trimmed.flatten(1).sum(1).tolist(), strict=True):
        tubes = replayed_tubes(key, steps, target)
        union = torch.zeros(steps, 25, dtype=torch.bool)
        for joints, start, duration in tubes:
            assert connected(joints)
            assert any(joints <= set(part) for part in PARTS)
            union[start : start + duration, sorted(joints)] = True
        if bool(union.all()):
            union[-1, -1] = False
        assert torch.equal(mask, union)


def test_trimming_takes_the_last_steps_of_the_last_tube() -> None:
    keys = fold(8, torch.arange(200))
    trimmed = tube_masks(keys, 8, TREE, **PAPER)
    whole = tube_masks(keys, 8, TREE, overshoot=True, **PAPER)
    left_out = whole & ~trimmed
    assert bool(left_out.any())
    for key, out, kept in zip(keys, left_out, trimmed, strict=True):
        if not bool(out.any()):
            continue
        *before, (joints, start, duration) = replayed_tubes(key, 8, int(kept.sum()))
        last = torch.zeros(8, 25, dtype=torch.bool)
        last[start : start + duration, sorted(joints)] = True
        for joints, start, duration in before:
            last[start : start + duration, sorted(joints)] = False
        assert bool((last[out]).all())
        taken = (last & kept).flatten().nonzero()
        assert int(taken.max()) < int(out.flatten().nonzero().min())


def test_one_tube_keeps_its_volume() -> None:
    keys = fold(10, torch.arange(3000))
    mask = tube_masks(keys, 8, TREE, ratio=(0.01, 0.01), min_area=8, max_area=0.04, overshoot=True)
    for view in mask:
        joints = frozenset(view.any(0).nonzero()[:, 0].tolist())
        steps = view.any(1).nonzero()[:, 0].tolist()
        assert connected(joints)
        assert all(later - earlier == 1 for earlier, later in pairwise(steps))
        assert len(steps) == min(max(round(8 / len(joints)), 1), 8)
        assert int(view.sum()) == len(steps) * len(joints)


@pytest.mark.parametrize("subset", ["tree", "slice"])
def test_subsets_have_the_law_of_the_growth(subset: str) -> None:
    subsets = TREE if subset == "tree" else SLICE
    share = subsets.cumulative.diff(prepend=torch.zeros(1, dtype=torch.float64))
    assert float(subsets.cumulative[-1]) == pytest.approx(1)
    table = {
        frozenset(row.nonzero()[:, 0].tolist()): float(p)
        for row, p in zip(subsets.joints, share, strict=True)
    }
    assert len(table) == len(subsets.width)
    assert subsets.width.tolist() == [len(joints) for joints in table]
    rng, counts, draws = random.Random(1), dict.fromkeys(table, 0), 20_000
    for _ in range(draws):
        part = rng.choice(PARTS)
        width = rng.randint(1, len(part))
        if subset == "tree":
            counts[grow(rng, part, width)] += 1
        else:
            first = rng.randint(0, len(part) - width)
            counts[frozenset(part[first : first + width])] += 1
    for joints, probability in table.items():
        error = 5 * (probability / draws) ** 0.5
        assert counts[joints] / draws == pytest.approx(probability, abs=error)


def test_thumb_and_tip_connect_through_the_hand() -> None:
    known = {frozenset(row.nonzero()[:, 0].tolist()) for row in TREE.joints}
    assert frozenset({21, 22}) not in known
    assert frozenset({7, 21, 22}) in known
    assert frozenset({5, 6, 7}) in known
    assert all(connected(joints) for joints in known)


def test_masks_do_not_depend_on_their_batch() -> None:
    keys = fold(3, torch.arange(64))
    whole = tube_masks(keys, 4, TREE, **PAPER)
    assert torch.equal(tube_masks(keys.flip(0), 4, TREE, **PAPER).flip(0), whole)
    alone = torch.cat([tube_masks(key[None], 4, TREE, **PAPER) for key in keys])
    assert torch.equal(alone, whole)


def test_what_the_tubes_leave_is_filled_from_whole_parts() -> None:
    keys = fold(12, torch.arange(300))
    mask = tube_masks(keys, 8, TREE, max_tubes=0, **PAPER)
    count = mask.flatten(1).sum(1)
    assert int(count.min()) >= 100
    assert int(count.max()) <= 180
    for view in mask:
        # All parts but one are masked whole or not at all, whatever their order.
        torn = [p for p in PARTS if 0 < int(view[:, list(p)].sum()) < 8 * len(p)]
        assert len(torn) <= 1
    assert torch.equal(tube_masks(keys[5:6], 8, TREE, max_tubes=0, **PAPER)[0], mask[5])


def test_a_part_with_too_many_pieces_is_refused() -> None:
    joints = 40
    star = Topology(
        name="star",
        joints=tuple(f"j{joint}" for joint in range(joints)),
        parents=(-1, *[0] * (joints - 1)),
        mirror=(),
        parts={"all": tuple(range(joints))},
    )
    with pytest.raises(UserError, match="too many connected pieces") as caught:
        contiguous_subsets(star, "tree")
    assert "mask.subset=slice" in str(caught.value)
    assert len(contiguous_subsets(star, "slice").joints) == joints * (joints + 1) // 2
