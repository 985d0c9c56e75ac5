"""Procedural human motion: a body of the Kinect's 25 joints, performers, and performances.

Body frame: x to the performer's right, y up, z backward; performers face -z. A rotation belongs
to the bone that ends in a joint and turns about the axes of its parent bone: about x forward
(an arm or a thigh is raised), about z outward (of the right side), about y a twist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from skelpipe.manifest import load_topology

from .programmes import Programme, Swing

Floats = npt.NDArray[np.float64]

FPS = 30
KINECT = load_topology("kinect_v2")

# How far executions differ. Fixed once, before any method was tuned on the generated data, so
# that the nearest neighbour of a raw clip shares its class in 40-70 % of the cases.
HEADING = 120.0  # degrees to either side of the middle camera
TEMPO = 0.25  # natural logarithm, between performers; half of it between executions
SIZE = 0.10  # of a performer's height, and again of every bone
AMPLITUDE = 0.20  # of every bone's swing
PHASE = 0.04  # turns, of every bone against the others
POSTURE = 6.0  # degrees, a performer's own carriage of every bone
FIDGET = 4.0  # degrees, slow aimless motion of every bone
IDLE = 0.15  # of a clip, at most, before and after the action
RAMP = 0.08  # of a clip, from idle to active
SECONDS = (1.5, 4.0)  # of an execution, which holds at least CYCLES
CYCLES = 1.5
FRAMES = (36, 150)

# Of several executions in turn.
FACING = 90.0  # degrees to either side of the middle camera, of the performance
SHIFT = 20.0  # and again of every execution
PAUSE = (10, 41)  # frames of idleness before, between and after executions

# Rest pose: each joint from its parent, metres. The right side; the left is its mirror image.
_REST = {
    "spine_mid": (0.0, 0.31, 0.0), "spine_shoulder": (0.0, 0.23, 0.0), "neck": (0.0, 0.08, 0.0),
    "head": (0.0, 0.15, -0.02), "right_shoulder": (0.17, -0.05, 0.0),
    "right_elbow": (0.03, -0.26, 0.0), "right_wrist": (0.02, -0.23, -0.03),
    "right_hand": (0.0, -0.07, -0.01), "right_hand_tip": (0.0, -0.08, -0.01),
    "right_thumb": (-0.03, -0.04, -0.03), "right_hip": (0.08, -0.03, 0.0),
    "right_knee": (0.02, -0.37, 0.0), "right_ankle": (0.0, -0.36, 0.02),
    "right_foot": (0.01, -0.05, -0.11),
}  # fmt: skip

# The bones that programmes move, by the joint each ends in; of pairs the right one.
_BONES = {
    "body": "spine_base", "trunk": "spine_mid", "chest": "spine_shoulder", "head": "head",
    "arm": "right_elbow", "forearm": "right_wrist", "hand": "right_hand",
    "thigh": "right_knee", "shin": "right_ankle",
}  # fmt: skip


@dataclass(frozen=True)
class Performer:
    """A person: bones (25, 3) from parent to joint, metres; tempo; carriage (25, 3), radians."""

    bones: Floats
    tempo: float
    carriage: Floats


@dataclass(frozen=True)
class Body:
    """A moving body: joints (T, 25, 3) in metres, orientations (T, 25, 4) as w, x, y, z."""

    joints: Floats
    turns: Floats


@dataclass(frozen=True)
class Performance:
    """Executions in turn, T frames: who is there when, and which frames each execution takes.

    The second body, where an execution has one, is there (``present``, (T,) each) during its own
    executions and half of the pauses around them.
    """

    bodies: list[Body]
    present: list[npt.NDArray[np.bool_]]
    spans: list[tuple[int, int]]  # first frame, frame after the last


def generator(seed: int, use: str, *numbers: int) -> np.random.Generator:
    """The random numbers of one use, such as a performer's body, apart from all others."""
    return np.random.default_rng([seed, *use.encode(), *numbers])


@lru_cache(maxsize=64)
def invented(seed: int, subject: int) -> Performer:
    """The performer of a number, the same in all recordings."""
    return performer(generator(seed, "performer", subject))


def performer(rng: np.random.Generator) -> Performer:
    """A person drawn at random; left and right are alike in length."""
    length = rng.normal(1, SIZE) * rng.normal(1, SIZE, 25).clip(0.8, 1.2)
    length = (length + length[KINECT.mirrored]) / 2
    carriage = np.radians(rng.normal(0, POSTURE, (25, 3)))
    carriage[KINECT.root] = 0
    return Performer(
        bones=_rest_pose() * length[:, None],
        tempo=float(np.exp(rng.normal(0, TEMPO))),
        carriage=carriage,
    )


def perform(
    what: Programme, actor: Performer, partner: Performer, rng: np.random.Generator
) -> list[Body]:
    """One execution, in metres around the middle of the scene, y from the floor.

    Camera 2 of the scene looks along z. Either hand may lead. The first body is the actor's; a
    mutual programme has a second, which faces the actor.
    """
    clock = _clock(what, actor, rng)
    heading = np.radians(rng.uniform(-HEADING, HEADING))
    centre = rng.uniform(-0.3, 0.3, 3) * (1, 0, 1)

    if what.partner is None:
        body = _move(what, actor, clock, rng)
        return [_place(body, heading, centre)]
    # The two stand across the view of camera 2, the actor on either side.
    heading += np.pi * rng.integers(2)
    apart = np.array([0, 0, what.gap * rng.uniform(0.9, 1.1) / 2])
    reply = _move(what.partner, partner, clock - rng.uniform(0.05, 0.2), rng)
    pair = [
        _place(_move(what, actor, clock, rng), 0, apart),
        _place(reply, np.pi, -apart),
    ]
    return [_place(body, heading + np.pi / 2, centre) for body in pair]


def perform_in_turn(
    whats: Sequence[Programme], actor: Performer, partner: Performer, rng: np.random.Generator
) -> Performance:
    """Executions one after another by the same people, in metres as those of `perform`.

    Between two of them the actor stands idle and turns and moves to where the next begins; a
    partner comes and goes.
    """
    clocks = [_clock(what, actor, rng) for what in whats]
    pauses = rng.integers(*PAUSE, len(whats) + 1)
    starts = np.cumsum(pauses[:-1]) + np.cumsum([0, *map(len, clocks[:-1])])
    spans = [(int(at), int(at) + len(clock)) for at, clock in zip(starts, clocks, strict=True)]
    frames = spans[-1][1] + int(pauses[-1])

    # What places the people: known during an execution, and in between on the way to the next.
    facing = rng.uniform(-FACING, FACING)
    heading, apart, centre = np.full(frames, np.nan), np.zeros((frames, 3)), np.zeros((frames, 3))
    for what, (start, end) in zip(whats, spans, strict=True):
        pair = what.partner is not None
        side = np.pi * (rng.integers(2) - 0.5) if pair else 0.0
        heading[start:end] = np.radians(facing + rng.uniform(-SHIFT, SHIFT)) + side
        apart[start:end, 2] = pair * what.gap * rng.uniform(0.9, 1.1) / 2
        centre[start:end] = rng.uniform(-0.3, 0.3, 3) * (1, 0, 1)
    busy = ~np.isnan(heading)
    heading, apart, centre = (_bridged(way, busy) for way in (heading, apart, centre))

    alone = _move_in_turn(whats, actor, clocks, spans, frames, rng)
    bodies = [Body(alone.joints + apart[:, None], alone.turns)]
    present = [np.ones(frames, bool)]
    if any(what.partner for what in whats):
        late = [clock - rng.uniform(0.05, 0.2) for clock in clocks]
        parts = [what.partner for what in whats]
        reply = turned(_move_in_turn(parts, partner, late, spans, frames, rng), np.pi)
        bodies.append(Body(reply.joints - apart[:, None], reply.turns))
        middles = [0, *((end + after) // 2 for (_, end), (after, _) in pairwise(spans)), frames]
        there = [part is not None for part in parts]
        present.append(np.repeat(there, np.diff(middles)))
    return Performance([_place(body, heading, centre[:, None]) for body in bodies], present, spans)


def forward_kinematics(rotations: Floats, bones: Floats) -> Body:
    """Joints of a body whose spine base stays at the origin.

    Args:
        rotations: Rotation vector of each bone in its parent bone's frame, (T, 25, 3), radians.
        bones: From parent to joint in the rest pose, (25, 3), metres.
    """
    turns = _quaternions(rotations)
    joints = np.zeros_like(rotations)
    for joint in KINECT.order[1:]:
        parent = KINECT.parents[joint]
        turns[:, joint] = _product(turns[:, parent], turns[:, joint])
        joints[:, joint] = joints[:, parent] + _turned(turns[:, joint], bones[joint])
    return Body(joints, turns)


def turned(body: Body, angle: float | Floats) -> Body:
    """The body turned about the vertical through the origin, counter-clockwise from above.

    The angle, in radians, holds for all frames or is one for each, (T,).
    """
    half, zero = np.asarray(angle) / 2, np.zeros_like(angle)
    turn = np.stack([np.cos(half), zero, np.sin(half), zero], axis=-1)[..., None, :]
    return Body(_turned(turn, body.joints), _product(turn, body.turns))


def _rest_pose() -> Floats:
    rest = np.zeros((25, 3))
    for name, offset in _REST.items():
        joint = KINECT.joints.index(name)
        rest[joint] = offset
        if KINECT.mirrored[joint] != joint:
            rest[KINECT.mirrored[joint]] = np.multiply(offset, (-1, 1, 1))
    return rest


def _move(what: Programme, who: Performer, clock: Floats, rng: np.random.Generator) -> Body:
    """One body's part, facing -z from the origin, with its lowest joint on the floor or above."""
    frames = len(clock)
    active = _active(frames, rng.uniform(0, IDLE), 1 - rng.uniform(0, IDLE))
    rotations = who.carriage + _fidget(frames, rng)
    _add_swings(rotations, what, clock, active, rng)
    return _embodied(rotations, _path(what, clock, active), who, rng)


def _move_in_turn(
    whats: Sequence[Programme | None],
    who: Performer,
    clocks: list[Floats],
    spans: list[tuple[int, int]],
    frames: int,
    rng: np.random.Generator,
) -> Body:
    """One body's part in executions in turn; it is idle where it has none."""
    rotations = who.carriage + _fidget(frames, rng)
    path, busy = np.zeros((frames, 3)), np.zeros(frames, bool)
    for what, clock, (start, end) in zip(whats, clocks, spans, strict=True):
        busy[start:end] = True
        if what:
            active = _active(end - start, RAMP / 2, 1 - RAMP / 2)
            _add_swings(rotations[start:end], what, clock, active, rng)
            path[start:end] = _path(what, clock, active)
    return _embodied(rotations, _bridged(path, busy), who, rng)


def _clock(what: Programme, actor: Performer, rng: np.random.Generator) -> Floats:
    """The cycles an execution has gone through at each of its frames, (T,)."""
    rate = what.rate * actor.tempo * np.exp(rng.normal(0, TEMPO / 2))
    seconds = max(rng.uniform(*SECONDS), CYCLES / rate)
    frames = int(np.clip(seconds * FPS, *FRAMES))
    clock: Floats = rng.random() + rate / FPS * np.arange(frames)
    clock += 0.06 * np.sin(2 * np.pi * (rng.random() + np.arange(frames) / (3 * FPS)))
    return clock


def _add_swings(
    rotations: Floats, what: Programme, clock: Floats, active: Floats, rng: np.random.Generator
) -> None:
    """Add to rotation vectors (T, 25, 3), in place, what a programme does with the bones."""
    for swing in what.swings:
        rotations += active[:, None, None] * _rotation(swing, clock, rng)


def _path(what: Programme, clock: Floats, active: Floats) -> Floats:
    """Way of a whole body in its own frame over an execution, (T, 3), metres."""
    wave = np.sin(2 * np.pi * clock)
    return np.stack(
        [
            active * what.sway * wave,
            active * what.lift * wave.clip(0),
            -what.advance * np.cumsum(active) / active.sum(),
        ],
        axis=1,
    )


def _embodied(rotations: Floats, path: Floats, who: Performer, rng: np.random.Generator) -> Body:
    """The body in the given postures, led by either hand, standing on the floor along a path."""
    left_handed = rng.random() < 0.5
    if left_handed:
        rotations = rotations[:, KINECT.mirrored] * (1, -1, -1)
    body = forward_kinematics(rotations, who.bones)
    path[:, 1] -= body.joints[..., 1].min(axis=1)
    return Body(body.joints + path[:, None], body.turns)


def _bridged(way: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    """(T,) or (T, C) values, known in some frames, with straight lines over all others."""
    frames = np.arange(len(way))
    columns = way.reshape(len(way), -1).T
    lines = [np.interp(frames, frames[known], column[known]) for column in columns]
    return np.stack(lines, axis=1).reshape(way.shape)


def _rotation(swing: Swing, clock: Floats, rng: np.random.Generator) -> Floats:
    """Rotation vectors (T, 25, 3), radians, that one swing adds."""
    size = rng.normal(1, AMPLITUDE)
    phase = swing.phase + rng.normal(0, PHASE)
    joint = KINECT.joints.index(_BONES[swing.bone])
    other = int(KINECT.mirrored[joint])
    axis = "xyz".index(swing.axis)
    reflected = 1 if axis == 0 else -1  # a mirror keeps turns about x and reverses the others

    def angle(shift: float) -> Floats:
        turn = clock + phase + shift
        angle_T: Floats = np.radians(swing.hold + size * swing.swing * np.sin(2 * np.pi * turn))
        return angle_T

    added = np.zeros((len(clock), 25, 3))
    if swing.side != "left":
        added[:, joint, axis] = angle(0)
    if swing.side != "right" and other != joint:
        added[:, other, axis] = reflected * angle(0.5 if swing.side == "alternate" else 0)
    return added


def _active(frames: int, start: float, end: float) -> Floats:
    """0 while idle before and after the action, 1 during it, smooth between, (T,).

    The bounds are shares of the frames, each in the middle of its ramp.
    """
    time = np.linspace(0, 1, frames)
    ramp = (np.minimum(time - start, end - time) / RAMP + 0.5).clip(0, 1)
    smooth: Floats = ramp * ramp * (3 - 2 * ramp)
    return smooth


def _fidget(frames: int, rng: np.random.Generator) -> Floats:
    """Slow small rotations of every bone, (T, 25, 3), radians."""
    rate = rng.uniform(0.1, 0.5, (25, 3))
    phase = rng.random((25, 3))
    size = np.radians(rng.normal(0, FIDGET, (25, 3)))
    size[KINECT.root] = 0
    time = np.arange(frames)[:, None, None] / FPS
    return size * np.sin(2 * np.pi * (rate * time + phase))


def _place(body: Body, heading: float | Floats, where: Floats) -> Body:
    body = turned(body, heading)
    return Body(body.joints + where, body.turns)


def _quaternions(vectors: Floats) -> Floats:
    """Unit quaternions (…, 4) of rotation vectors (…, 3)."""
    angle = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    # sinc keeps the limit of a vanishing angle exact
    return np.concatenate([np.cos(angle / 2), vectors / 2 * np.sinc(angle / (2 * np.pi))], axis=-1)


def _product(a: Floats, b: Floats) -> Floats:
    """Hamilton product of quaternions (…, 4)."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def _turned(turns: Floats, vectors: Floats) -> Floats:
    """Vectors (…, 3) turned by unit quaternions (…, 4)."""
    scalar, axis = turns[..., :1], turns[..., 1:]
    cross = 2 * np.cross(axis, vectors)
    return vectors + scalar * cross + np.cross(axis, cross)
