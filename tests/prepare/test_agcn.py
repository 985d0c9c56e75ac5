"""Pipeline "agcn" against the published outputs and a plain-loop reading of its steps."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from itertools import cycle, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import odd
import pytest
import raw

from skelpipe.errors import UserError
from skelpipe.prepare.normalise import find_pipeline
from skelpipe.prepare.ntu import parse
from skelpipe.prepare.recording import Recording, RejectedError
from skelpipe.skeleton import Topology

Array = npt.NDArray[np.float64]
Joint = list[float]
Body = list[list[Joint]]
"""Joints by frame."""

SWITCHES = [
    {"gaps": gaps, "tail": tail} for gaps, tail in product(("closed", "kept"), ("tiled", "zeros"))
]


def agcn(
    recording: Recording, topology: Topology = odd.KINECT, **switches: str
) -> npt.NDArray[np.float32]:
    pipeline = find_pipeline("agcn")
    return pipeline.apply(recording, topology, pipeline.settled(switches))


def plain_agcn(
    frames: odd.Frames, topology: Topology, tracked: bool, gaps: str, tail: str
) -> Array | None:
    """The same joint by joint, on 300 frames: (M, L, J, 3), or None where it must be rejected."""
    assert topology.spine is not None
    assert topology.shoulders is not None
    joints = len(topology.joints)

    def void(length: int) -> Body:
        return [[[0.0, 0.0, 0.0] for _ in range(joints)] for _ in range(length)]

    places = 4 if tracked else max(map(len, frames), default=0)
    bodies = [void(len(frames)) for _ in range(places)]
    for number, present in enumerate(frames):
        for place, (_, xyz) in enumerate(present[:places]):
            bodies[place][number] = xyz.tolist()
    if tracked:
        bodies = sorted(bodies, key=energy, reverse=True)[:2]
    bodies = [body[:300] + void(300 - len(body[:300])) for body in bodies]
    for body in bodies:
        if all(is_zero(frame) for frame in body):
            continue
        if is_zero(body[0]) and gaps == "closed":
            solid = [frame for frame in body if not is_zero(frame)]
            body[:] = solid + void(300 - len(solid))
        for number in range(1, 300):
            if tail == "tiled" and all(is_zero(frame) for frame in body[number:]):
                for later in range(number, 300):
                    body[later] = [list(joint) for joint in body[(later - number) % number]]
                break
    if all(is_zero(frame) for body in bodies for frame in body):
        return None
    centres = [list(frame[topology.centre]) for frame in bodies[0]]
    for body in bodies:
        for frame, centre in zip(body, centres, strict=True):
            for joint in frame:
                if sum(joint) != 0:
                    joint[:] = [value - origin for value, origin in zip(joint, centre, strict=True)]
    there = [number for number, frame in enumerate(bodies[0]) if not is_zero(frame)]
    first = there[0] if there else 0
    for (start, end), onto in (topology.spine, [0, 0, 1]), (topology.shoulders, [1, 0, 0]):
        frame = bodies[0][first]
        turn = rotation([frame[end][axis] - frame[start][axis] for axis in range(3)], onto)
        for body in bodies:
            for frame in body:
                for joint in frame:
                    x, y, z = joint
                    joint[:] = [a * x + b * y + c * z for a, b, c in turn]
    kept = [body[: len(frames)] for body in bodies if not all(map(is_zero, body[: len(frames)]))]
    return np.array(kept)


def is_zero(frame: list[Joint]) -> bool:
    return sum(map(sum, frame)) == 0


def energy(body: Body) -> float:
    total = 0.0
    for axis in range(3):
        values = [joint[axis] for frame in body if not is_zero(frame) for joint in frame]
        if values:
            mean = sum(values) / len(values)
            total += math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return total


def rotation(line: Joint, onto: list[int]) -> list[list[float]]:
    """By Euler and Rodrigues: four parameters from half the angle."""
    x, y, z = (line[i] * onto[j] - line[j] * onto[i] for i, j in ((1, 2), (2, 0), (0, 1)))
    identity = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    if abs(x) + abs(y) + abs(z) < 1e-6:
        return identity
    cosine = sum(line[i] * onto[i] for i in range(3)) / math.sqrt(sum(v * v for v in line))
    angle = math.acos(min(max(cosine, -1), 1))
    if abs(angle) < 1e-6:
        return identity
    half = math.sin(angle / 2) / math.sqrt(x * x + y * y + z * z)
    a, b, c, d = math.cos(angle / 2), -x * half, -y * half, -z * half
    return [
        [a * a + b * b - c * c - d * d, 2 * (b * c + a * d), 2 * (b * d - a * c)],
        [2 * (b * c - a * d), a * a + c * c - b * b - d * d, 2 * (c * d + a * b)],
        [2 * (b * d + a * c), 2 * (c * d - a * b), a * a + d * d - b * b - c * c],
    ]


def compare(rng: np.random.Generator, count: int) -> Counter[str]:
    """Ours against the plain loops on generated recordings; what became of these."""
    outcomes: Counter[str] = Counter()
    for _, switches in zip(range(count), cycle(SWITCHES), strict=False):
        topology = odd.topology(rng)
        tracked = rng.random() < 0.75
        made = (odd.tracked if tracked else odd.untracked)(rng, len(topology.joints))
        expected = plain_agcn(odd.in_frames(made), topology, tracked, **switches)
        kind = "tracked" if tracked else "untracked"
        try:
            poses = agcn(made, topology, **switches)
        except RejectedError:
            assert expected is None
            outcomes[f"{kind} rejected"] += 1
            continue
        assert expected is not None
        assert poses.dtype == np.float32
        assert poses.shape == expected.shape
        np.testing.assert_allclose(poses, expected, rtol=0, atol=1e-6)
        outcomes[f"{kind} {len(poses)}"] += 1
    return outcomes


def test_equals_the_plain_loops_on_odd_recordings() -> None:
    outcomes = compare(np.random.default_rng(4), 240)
    assert len(outcomes) == 7  # rejected, one body, two; without identities three as well
    assert min(outcomes.values()) >= 2, outcomes


@pytest.mark.slow
def test_equals_the_plain_loops_on_thousands_of_odd_recordings() -> None:
    outcomes = compare(np.random.default_rng(5), 5000)
    assert min(outcomes.values()) >= 50, outcomes


def test_places_within_the_frame_come_from_the_file_and_ids_do_not_matter() -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        frames: odd.Frames = [
            [(number, raw.joints(rng)) for number in rng.permutation(3)] for _ in range(6)
        ]
        others = [[(9 - number, xyz) for number, xyz in bodies] for bodies in frames]
        turned = [*frames[:3], *(bodies[::-1] for bodies in frames[3:])]
        poses, again, reverse = (agcn(parse(raw.skeleton(f))) for f in (frames, others, turned))
        expected = plain_agcn(frames, odd.KINECT, True, "closed", "tiled")
        assert expected is not None
        np.testing.assert_allclose(poses, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(poses, again)
        assert not np.allclose(poses, reverse, atol=1e-3)


def test_the_spine_is_the_origin_and_the_shoulders_lie_along_x() -> None:
    rng = np.random.default_rng(7)
    made = Recording.of_slots(rng.uniform(1, 3, (2, 9, 25, 3)))
    poses = agcn(made)
    assert (poses[0, :, 1] == 0).all()
    shoulders = poses[0, 0, 8] - poses[0, 0, 4]
    np.testing.assert_allclose(shoulders[1:], 0, atol=1e-6)
    assert shoulders[0] > 0
    # Turns keep lengths.
    xyz = made.slots()
    np.testing.assert_allclose(
        np.linalg.norm(poses[1], axis=-1),
        np.linalg.norm(xyz[1] - xyz[0][:, 1:2], axis=-1),
        atol=1e-5,
    )


def test_shoulders_square_to_the_spine_leave_it_upright() -> None:
    rng = np.random.default_rng(8)
    poses = rng.uniform(1, 3, (1, 4, 25, 3))
    poses[0, 0, [0, 1, 4, 8]] = (0, 0, 2), (0, 1, 2), (0.3, 2, 2), (0.1, 2, 2.2)
    spine = np.diff(agcn(Recording.of_slots(poses))[0, 0, [0, 1]], axis=0)
    np.testing.assert_allclose(spine, [[0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("top", [1.0, -1.0])
def test_a_spine_along_z_is_not_turned_even_if_it_points_down(top: float) -> None:
    rng = np.random.default_rng(9)
    poses = rng.uniform(1, 3, (1, 4, 25, 3))
    poses[0, 0, [0, 1]] = (1, 1, 2), (1, 1, 2 + top)
    poses[0, 0, [4, 8]] = (1, 1, 2), (2, 1, 2)
    np.testing.assert_allclose(agcn(Recording.of_slots(poses)), poses - poses[:, :, 1:2], atol=1e-6)


@pytest.mark.parametrize(("length", "tilt"), [(0.1, 5e-6), (10.0, 5e-7)])
def test_a_tiny_turn_is_left_out(length: float, tilt: float) -> None:
    """By the axis, which is as long as the line is, or by the angle."""
    rng = np.random.default_rng(10)
    poses = rng.uniform(1, 8, (1, 2, 25, 3))
    poses[0, 0, [0, 1]] = (1, 1, 2), (1, 1 + length * tilt, 2 + length)
    poses[0, 0, [4, 8]] = (1, 1, 2), (2, 1, 2)
    np.testing.assert_allclose(
        agcn(Recording.of_slots(poses)), poses - poses[:, :, 1:2], rtol=0, atol=1e-6
    )


def test_nearly_opposite_lines_are_turned_exactly() -> None:
    rng = np.random.default_rng(10)
    for tilt in np.logspace(-5, -1, 20):
        poses = rng.uniform(1, 3, (1, 2, 25, 3))
        poses[0, 0, [0, 1]] = (1, 1, 2), (1 + 0.6 * tilt, 1 + 0.8 * tilt, 1)
        made = Recording.of_slots(poses)
        expected = plain_agcn(odd.in_frames(made), odd.KINECT, False, "closed", "tiled")
        assert expected is not None
        np.testing.assert_allclose(agcn(made), expected, rtol=0, atol=1e-6)


def test_a_late_body_moves_to_the_start_and_an_early_one_repeats_unless_switched_off() -> None:
    rng = np.random.default_rng(11)
    poses = rng.uniform(1, 3, (3, 10, 25, 3))
    poses[1, :6] = 0
    poses[2, 3:] = 0

    def present(gaps: str = "closed", tail: str = "tiled") -> list[list[int]]:
        stored = agcn(Recording.of_slots(poses), gaps=gaps, tail=tail)
        return [np.flatnonzero(body.any(axis=(1, 2))).tolist() for body in stored]

    everywhere = list(range(10))
    assert present() == [everywhere, everywhere, everywhere]
    assert present(tail="zeros") == [everywhere, [0, 1, 2, 3], [0, 1, 2]]
    assert present(gaps="kept") == [everywhere, [6, 7, 8, 9], everywhere]
    assert present(gaps="kept", tail="zeros") == [everywhere, [6, 7, 8, 9], [0, 1, 2]]


def test_the_first_300_frames_of_the_bodies_of_the_whole_recording() -> None:
    rng = np.random.default_rng(12)
    calm, wild = rng.uniform(1, 1.1, (400, 25, 3)), rng.uniform(1, 5, (400, 25, 3))
    frames: odd.Frames = [[(1, calm[t])] + ([(2, wild[t])] if t >= 300 else []) for t in range(400)]
    read = parse(raw.skeleton(frames))
    poses = agcn(read)
    # Body 1 is the wilder one, which the stored frames do not show: nothing is centred or turned.
    np.testing.assert_allclose(poses, calm[None, :300], atol=1e-6)
    assert agcn(read.cut(0, 250)).shape == (1, 250, 25, 3)


def test_no_usable_body_and_an_empty_clip() -> None:
    recordings: list[odd.Frames] = [[], [[], []], [[(1, np.zeros((25, 3)))]]]
    for frames in recordings:
        with pytest.raises(RejectedError, match="no usable body"):
            agcn(parse(raw.skeleton(frames)))
    for shape in (2, 6, 25, 3), (1, 0, 25, 3), (0, 3, 25, 3):
        with pytest.raises(RejectedError, match="empty clip"):
            agcn(Recording.of_slots(np.zeros(shape)))


@pytest.mark.parametrize("missing", ["spine", "shoulders"])
def test_a_topology_must_say_how_to_turn(missing: str) -> None:
    lame = odd.STICK.model_copy(update={missing: None})
    with pytest.raises(UserError, match=r"'stick'[\s\S]*spine = \[lower, upper\]"):
        agcn(Recording.of_slots(np.ones((1, 2, 5, 3))), lame)


def test_equals_the_published_outputs(real_data: Path) -> None:
    folder = real_data / "odd"
    if not folder.is_dir():
        pytest.skip(f"no odd recordings in {folder}")
    with np.load(folder / "agcn.npz") as published, zipfile.ZipFile(folder / "odd_ntu.zip") as z:
        assert len(z.namelist()) == len(published.files) == 60
        for name in z.namelist():
            poses = agcn(parse(z.read(name)))
            expected = published[Path(name).stem]
            expected = expected[expected.any(axis=(1, 2, 3))]
            assert poses.shape == expected.shape
            np.testing.assert_allclose(poses, expected, rtol=0, atol=1e-5)
