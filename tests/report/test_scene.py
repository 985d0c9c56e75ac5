from __future__ import annotations

import numpy as np
import pytest
from sets import tree, walk

from skelpipe.errors import UserError
from skelpipe.report.scene import FINE, Clip, lay_out
from skelpipe.skeleton import Topology


def clip_of(topology: Topology, poses: np.ndarray, **changes: object) -> Clip:
    return Clip(**{"key": "key", "what": "", "poses_MTJC": poses, "topology": topology, "fps": 30}
                | changes)  # fmt: skip


def cross(up: str = "y") -> Clip:
    """A skeleton whose joints 1, 2, 3 stand one metre from the first along x, y and z."""
    topology = tree(4, up=up)
    poses = np.concatenate([np.zeros((1, 3)), np.eye(3)])[None, None]
    return clip_of(topology, poses.astype(np.float32))


@pytest.mark.parametrize(
    ("up", "captions", "right_and_up"),
    [
        ("y", ["front: x →, y ↑", "side: z →, y ↑", "top: x →, z ↑"], [(1, 2), (3, 2), (1, 3)]),
        ("z", ["front: x →, z ↑", "side: −y →, z ↑", "top: x →, −y ↑"], [(1, 3), (-2, 3), (1, -2)]),
        ("x", ["front: y →, x ↑", "side: −z →, x ↑", "top: y →, −z ↑"], [(2, 1), (-3, 1), (2, -3)]),
    ],
)
def test_three_sides_in_one_scale(
    up: str, captions: list[str], right_and_up: list[tuple[int, int]]
) -> None:
    scene = lay_out(cross(up))
    assert [view.caption for view in scene.views] == captions
    assert scene.bar is not None
    metres = scene.bar[0] / float(scene.bar[1].removesuffix(" m"))
    for xy_J2, axes in zip(scene.xy_VMTJ2[:, 0, 0], right_and_up, strict=True):
        away_J2 = (xy_J2 - xy_J2[0]) / metres
        for axis, screen in zip(axes, ((1, 0), (0, -1)), strict=True):
            expected = np.array(screen) * np.sign(axis)
            np.testing.assert_allclose(away_J2[abs(axis)], expected, atol=0.02)


def test_an_axis_towards_the_viewer_moves_nothing() -> None:
    front, side, top = lay_out(cross()).xy_VMTJ2[:, 0, 0]
    assert (front[3] == front[0]).all()
    assert (side[1] == side[0]).all()
    assert (top[2] == top[0]).all()


@pytest.mark.parametrize("joints", [15, 17, 20, 25])
@pytest.mark.parametrize("size", [0.01, 1, 500])
def test_nothing_leaves_its_view_and_no_view_the_picture(joints: int, size: float) -> None:
    scene = lay_out(clip_of(tree(joints), size * walk(joints, 40, joints, 3)))
    assert [view.left for view in scene.views[1:]] > [view.right for view in scene.views[:-1]]
    assert scene.views[-1].right < scene.width
    assert scene.width <= 1000 * FINE
    for view, xy_MTJ2 in zip(scene.views, scene.xy_VMTJ2, strict=True):
        assert view.bottom < scene.height
        assert xy_MTJ2[..., 0].min() > view.left
        assert xy_MTJ2[..., 0].max() < view.right
        assert xy_MTJ2[..., 1].min() > view.top
        assert xy_MTJ2[..., 1].max() < view.bottom


def test_the_floor_is_as_high_as_the_lowest_joint_ever_is() -> None:
    scene = lay_out(clip_of(tree(17), walk(0, 30, 17)))
    front, side, top = scene.views
    assert front.floor == side.floor == scene.xy_VMTJ2[0, ..., 1].max()
    assert top.floor is None


def test_a_flat_skeleton_is_seen_from_the_front_alone() -> None:
    scene = lay_out(clip_of(tree(17), 300 * walk(0, 30, 17, flat=True), metric=False))
    assert [view.caption for view in scene.views] == ["front: x →, y ↑"]
    assert scene.bar is None


def test_an_absent_body_counts_for_nothing() -> None:
    poses = walk(0, 20, 15, 2)
    alone = lay_out(clip_of(tree(15), poses[:1]))
    poses[1] = 0
    scene = lay_out(clip_of(tree(15), poses + 0))
    assert not scene.present_MT[1].any()
    assert scene.views == alone.views
    assert (scene.xy_VMTJ2[:, 0] == alone.xy_VMTJ2[:, 0]).all()


@pytest.mark.parametrize("frames", [0, 5])
def test_nobody_is_nothing_to_draw(frames: int) -> None:
    with pytest.raises(UserError, match=f"nothing to draw of key\n.*{frames} frames"):
        lay_out(clip_of(tree(15), np.zeros((2, frames, 15, 3))))


def test_a_single_point_has_a_place() -> None:
    scene = lay_out(clip_of(tree(1, parts={"all": [0]}), np.ones((1, 1, 1, 3))))
    (view,) = scene.views
    assert view.left < scene.xy_VMTJ2[0, 0, 0, 0, 0] < view.right


def test_every_bone_and_joint_is_drawn_once_a_body() -> None:
    topology = tree(20)
    bones = {(parent, joint) for joint, parent in enumerate(topology.parents) if parent >= 0}
    for names in ((), ("id 1", "id 2")):
        scene = lay_out(clip_of(topology, walk(0, 3, 20, 2), bodies=names))
        for body in (0, 1):
            limbs = [limb for limb in scene.limbs if limb.body == body]
            drawn = [bone for limb in limbs for bone in limb.bones]
            assert (len(drawn), set(drawn)) == (19, bones)
            assert sorted(joint for limb in limbs for joint in limb.joints) == list(range(20))
            assert len({limb.colour for limb in limbs}) == (1 if names else 3)
        shades = [{limb.colour for limb in scene.limbs if limb.body == body} for body in (0, 1)]
        assert not shades[0] & shades[1]


def test_a_part_has_its_colour_whatever_the_order_of_parts() -> None:
    first = tree(15)
    turned = first.model_copy(update={"parts": dict(reversed(first.parts.items()))})
    poses = walk(0, 2, 15)
    assert lay_out(clip_of(first, poses)).legend == lay_out(clip_of(turned, poses)).legend


def test_the_counter_tells_frame_and_time() -> None:
    scene = lay_out(clip_of(tree(15), walk(0, 61, 15), fps=20))
    assert scene.counter(0) == "frame 1 of 61, 0.00 s"
    assert scene.counter(60) == "frame 61 of 61, 3.00 s"
