from __future__ import annotations

import math

import pytest
import torch
from builders import KINECT, recording

from skelpipe.random import below, fold, uniform
from skelpipe.views.augment import (
    Transform,
    joint_terms,
    mirroring,
    rotation,
    skeleton_aware,
)

PAPER = {
    "probability": 0.5,
    "vertical": 180.0,
    "tilt": 30.0,
    "scale": (0.85, 1.15),
    "symmetric": False,
    "rotation": "skeleton",
    "mirroring": "skeleton",
    "scaling": "bone",
}
CLIP = torch.from_numpy(recording(3, 8)[0])
SWAP = {4: 8, 5: 9, 6: 10, 7: 11, 12: 16, 13: 17, 14: 18, 15: 19, 21: 23, 22: 24}
SWAP |= {right: left for left, right in SWAP.items()}
STILL = torch.eye(3)


def transform_of(joints: torch.Tensor, turn: torch.Tensor) -> Transform:
    return Transform(torch.ones(1), joints[None], turn)


def bone_scaling(scale: torch.Tensor) -> torch.Tensor:
    """The joint matrix of parts' factors."""
    return Transform(*joint_terms(KINECT, scale), STILL).joints


def literal_rotation(x: torch.Tensor, alpha: float, beta: float, gamma: float) -> torch.Tensor:
    """Algorithm 2."""

    def about(axis: int, angle: float) -> torch.Tensor:
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3, dtype=torch.float64)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        return turn

    turn = about(2, gamma) @ about(1, beta) @ about(0, alpha)
    out = torch.zeros_like(x)
    for frame in range(x.shape[0]):
        for joint in range(25):
            out[frame, joint] = (turn @ x[frame, joint].double()).float()
    return out


def literal_mirror(x: torch.Tensor) -> torch.Tensor:
    """Algorithm 3."""
    out = torch.zeros_like(x)
    for joint in range(25):
        out[:, joint] = x[:, SWAP.get(joint, joint)]
    out[:, :, 0] = -out[:, :, 0]
    return out


def literal_scaling(x: torch.Tensor, factors: list[float]) -> torch.Tensor:
    """Algorithm 4, with S20's parents: joints in an order in which parents come first."""
    parents = {1: 0, 20: 1, 2: 20, 3: 2, 4: 20, 5: 4, 6: 5, 7: 6, 8: 20, 9: 8, 10: 9, 11: 10,
               12: 0, 13: 12, 14: 13, 15: 14, 16: 0, 17: 16, 18: 17, 19: 18, 21: 7, 22: 7, 23: 11,
               24: 11}  # fmt: skip
    scale = [0.0] * 25
    for part, factor in zip(KINECT.parts.values(), factors, strict=True):
        for joint in part:
            scale[joint] = factor
    out = torch.zeros_like(x)
    out[:, 0] = x[:, 0]
    for joint, parent in parents.items():
        out[:, joint] = out[:, parent] + (x[:, joint] - x[:, parent]) * scale[joint]
    return out


def bones(x: torch.Tensor) -> torch.Tensor:
    children = [joint for joint, parent in enumerate(KINECT.parents) if parent >= 0]
    return x[:, children] - x[:, [KINECT.parents[joint] for joint in children]]


def test_rotation_equals_algorithm_2() -> None:
    angles = torch.tensor([0.3, -2.0, 0.5])
    turned = transform_of(torch.eye(25), rotation(angles))(CLIP)
    assert torch.allclose(turned, literal_rotation(CLIP, 0.3, -2.0, 0.5), atol=1e-6)


def test_mirroring_equals_algorithm_3() -> None:
    assert torch.allclose(transform_of(*mirroring(KINECT, CLIP.device))(CLIP), literal_mirror(CLIP))


def test_scaling_equals_algorithm_4() -> None:
    factors = [0.9, 1.1, 0.85, 1.15, 1.02]
    scaled = transform_of(bone_scaling(torch.tensor(factors)), STILL)(CLIP)
    assert torch.allclose(scaled, literal_scaling(CLIP, factors), atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_a_drawn_augmentation_is_scaling_then_mirroring_then_rotation(seed: int) -> None:
    key = fold(11, seed)
    found = skeleton_aware(key, KINECT, **PAPER)(CLIP)  # type: ignore[arg-type]
    scaled, mirrored, turned = (draw < 0.5 for draw in uniform(key, "applied", 3).tolist())
    wanted = CLIP
    if scaled:
        factors = [0.85 + 0.3 * draw for draw in uniform(key, "bone scale", 5).tolist()]
        wanted = literal_scaling(wanted, factors)
    if mirrored:
        wanted = literal_mirror(wanted)
    if turned:
        limits = (30, 180, 30)
        draws = uniform(key, "angles", 3).tolist()
        alpha, beta, gamma = (
            math.radians(limit) * (2 * draw - 1) for limit, draw in zip(limits, draws, strict=True)
        )
        wanted = literal_rotation(wanted, alpha, beta, gamma)
    assert torch.allclose(found, wanted, atol=2e-5)


def test_each_augmentation_comes_on_its_own_half_of_the_time() -> None:
    applied = uniform(fold(torch.arange(8000)), "applied", 3) < 0.5
    cell = applied.long() @ torch.tensor([1, 2, 4])
    assert bool((torch.bincount(cell, minlength=8) > 850).all())


def test_mirrored_twice_is_the_same() -> None:
    mirror = transform_of(*mirroring(KINECT, CLIP.device))
    assert torch.equal(mirror(mirror(CLIP)), CLIP)


def test_scale_1_is_the_same() -> None:
    assert torch.equal(bone_scaling(torch.ones(5)), torch.eye(25))


def test_scaling_keeps_directions_and_root_and_multiplies_lengths() -> None:
    factor = torch.tensor([0.8, 0.9, 1.1, 1.2, 1.3])
    scaled = transform_of(bone_scaling(factor), STILL)(CLIP)
    before, after = bones(CLIP), bones(scaled)
    length_before, length_after = before.norm(dim=-1), after.norm(dim=-1)
    assert torch.allclose(
        before / length_before[..., None], after / length_after[..., None], atol=1e-4
    )
    part_of = torch.from_numpy(KINECT.part_of)[1:]  # the root, joint 0, has no bone
    assert torch.allclose(length_after / length_before, factor[part_of].expand(8, -1), atol=1e-4)
    assert torch.equal(scaled[:, 0], CLIP[:, 0])


def test_rotation_keeps_distances() -> None:
    turned = transform_of(torch.eye(25), rotation(torch.tensor([1.0, 2.0, 3.0])))(CLIP)
    assert torch.allclose(torch.cdist(turned, turned), torch.cdist(CLIP, CLIP), atol=1e-4)


def test_a_vertical_turn_keeps_heights() -> None:
    turned = transform_of(torch.eye(25), rotation(torch.tensor([0.0, 2.0, 0.0])))(CLIP)
    assert torch.allclose(turned[..., 1], CLIP[..., 1], atol=1e-6)


def test_absent_frames_stay_zero() -> None:
    keys = fold(torch.arange(50))
    x = CLIP.expand(50, -1, -1, -1).clone()
    x[:, 3:5] = 0
    out = skeleton_aware(keys, KINECT, **PAPER)(x)  # type: ignore[arg-type]
    assert not bool(out[:, 3:5].any())
    assert bool(out[:, 5:].any())


def test_probability_0_is_the_same() -> None:
    keys = fold(torch.arange(20))
    settings = PAPER | {"probability": 0.0}
    transform = skeleton_aware(keys, KINECT, **settings)  # type: ignore[arg-type]
    assert torch.equal(transform(CLIP.expand(20, -1, -1, -1)), CLIP.expand(20, -1, -1, -1))


def test_angles_and_scales_keep_their_ranges() -> None:
    keys = fold(torch.arange(3000))
    settings = PAPER | {"probability": 1.0}
    transform = skeleton_aware(keys, KINECT, **settings)  # type: ignore[arg-type]
    mirror, reflect = mirroring(KINECT, keys.device)
    turn = transform.turn @ reflect
    tilt_z = torch.atan2(turn[:, 1, 0], turn[:, 0, 0])
    sine = -turn[:, 2, 0]  # of the vertical angle
    tilt_x = torch.atan2(turn[:, 2, 1], turn[:, 2, 2])
    steep = turn[:, 2, 2] > 0  # |vertical| < 90 degrees, where the angles can be read off
    assert float(torch.rad2deg(tilt_z[steep].abs().max())) <= 30.01
    assert float(torch.rad2deg(tilt_x[steep].abs().max())) <= 30.01
    assert 0.4 < float(steep.float().mean()) < 0.6
    assert float(sine.min()) < -0.99
    assert float(sine.max()) > 0.99
    factor = (mirror @ transform.joints)[:, 3, 3]
    assert 0.85 <= float(factor.min()) < 0.86
    assert 1.14 < float(factor.max()) <= 1.15


def limited(key: torch.Tensor, **kinds: str) -> Transform:
    settings = PAPER | {"rotation": "none", "mirroring": "none", "scaling": "none"} | kinds
    return skeleton_aware(key, KINECT, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_limited_rotation_is_about_one_axis(seed: int) -> None:
    key = fold(13, seed)
    found = limited(key, rotation="axis")(CLIP)
    angles = [0.0, 0.0, 0.0]
    if float(uniform(key, "applied", 3)[2]) < 0.5:
        axis = int(below(key, "axis", 1, 3))
        angles[axis] = math.radians(30) * (2 * float(uniform(key, "angles", 3)[axis]) - 1)
    assert torch.allclose(found, literal_rotation(CLIP, *angles), atol=1e-5)


def test_limited_rotation_takes_each_axis_alike_and_half_of_the_time() -> None:
    turn = limited(fold(torch.arange(6000)), rotation="axis").turn
    kept = (turn.diagonal(dim1=1, dim2=2) == 1).sum(1)  # the axis that a turn leaves alone
    assert abs(int((kept == 3).sum()) - 3000) < 200
    axis = (turn.diagonal(dim1=1, dim2=2) == 1)[kept == 1].long().argmax(1)
    assert bool((torch.bincount(axis) > 850).all())
    # The trace is 1 + 2 cos(angle).
    angle = torch.rad2deg((((turn.diagonal(dim1=1, dim2=2).sum(1)) - 1) / 2).clamp(-1, 1).acos())
    assert 29 < float(angle.max()) < 30.05


@pytest.mark.parametrize("seed", range(8))
def test_limited_mirroring_exchanges_joints_and_reflects_nothing(seed: int) -> None:
    key = fold(14, seed)
    wanted = CLIP.clone()
    if float(uniform(key, "applied", 3)[1]) < 0.5:
        wanted = literal_mirror(CLIP)
        wanted[..., 0] = -wanted[..., 0]
    assert torch.equal(limited(key, mirroring="index")(CLIP), wanted)


@pytest.mark.parametrize("seed", range(8))
def test_limited_scaling_multiplies_each_axis(seed: int) -> None:
    key = fold(15, seed)
    wanted = CLIP
    if float(uniform(key, "applied", 3)[0]) < 0.5:
        wanted = CLIP * (1 + 0.2 * (2 * uniform(key, "axis scale", 3) - 1))
    assert torch.allclose(limited(key, scaling="axes")(CLIP), wanted, atol=1e-6)


def test_axis_scales_fill_their_range() -> None:
    turn = limited(fold(torch.arange(3000)), scaling="axes").turn
    factor = turn.diagonal(dim1=1, dim2=2)
    assert 0.8 <= float(factor.min()) < 0.802
    assert 1.198 < float(factor.max()) <= 1.2
    assert abs(float(torch.corrcoef(factor[factor[:, 0] != 1].T)[0, 1])) < 0.15


def test_limited_forms_come_in_the_order_of_the_full_ones() -> None:
    keys = fold(16, torch.arange(40))
    kinds = {"rotation": "axis", "mirroring": "skeleton", "scaling": "axes"}
    whole = limited(keys, **kinds)(CLIP.expand(40, -1, -1, -1))
    step = CLIP.expand(40, -1, -1, -1)
    for kind in ("scaling", "mirroring", "rotation"):
        step = limited(keys, **{kind: kinds[kind]})(step)
    assert torch.allclose(whole, step, atol=1e-5)


def test_none_of_the_three_changes_nothing() -> None:
    assert torch.equal(limited(fold(torch.arange(9)))(CLIP.expand(9, -1, -1, -1))[3], CLIP)


def test_planar_views_are_augmented_alike() -> None:
    keys = fold(torch.arange(9))
    transform = skeleton_aware(keys, KINECT, **PAPER)  # type: ignore[arg-type]
    x = CLIP.expand(9, -1, -1, -1)
    planar = x.movedim(-1, -3).contiguous()
    assert torch.equal(transform(x), transform.planar(planar).movedim(-3, -1))


def test_double_precision_agrees_with_single_and_rounds_the_same_in_every_batch() -> None:
    keys = fold(17, torch.arange(50))
    x = CLIP.double().expand(50, -1, -1, -1)
    whole = skeleton_aware(keys, KINECT, **PAPER, dtype=torch.float64)  # type: ignore[arg-type]
    single = skeleton_aware(keys, KINECT, **PAPER)  # type: ignore[arg-type]
    assert torch.allclose(whole(x).float(), single(x.float()), atol=1e-5)
    for some in (slice(0, 1), slice(7, 10), slice(13, 50)):
        part = skeleton_aware(keys[some], KINECT, **PAPER, dtype=torch.float64)  # type: ignore[arg-type]
        assert torch.equal(part(x[some]), whole(x)[some])


@pytest.mark.parametrize("symmetric", [True, False])
def test_symmetric_scaling_gives_both_sides_one_factor(symmetric: bool) -> None:
    keys = fold(torch.arange(30))
    settings = PAPER | {"probability": 1.0, "symmetric": symmetric}
    joints = skeleton_aware(keys, KINECT, **settings).joints  # type: ignore[arg-type]
    left, right = joints[:, 15, 19], joints[:, 19, 15]  # rows are swapped by the mirror
    arm, leg = joints[:, 7, 11], joints[:, 15, 19]
    assert torch.equal(left, right) == symmetric
    assert not torch.equal(arm, leg)


def test_views_do_not_depend_on_their_batch() -> None:
    keys = fold(torch.arange(6))
    whole = skeleton_aware(keys, KINECT, **PAPER)  # type: ignore[arg-type]
    alone = skeleton_aware(keys[4:5], KINECT, **PAPER)  # type: ignore[arg-type]
    assert torch.allclose(whole.joints[4], alone.joints[0], atol=1e-6)
    assert torch.allclose(whole.turn[4], alone.turn[0], atol=1e-6)
