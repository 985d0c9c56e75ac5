"""Generated recordings full of what sensors do wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import raw

from skelpipe.manifest import load_topology
from skelpipe.prepare.recording import Recording
from skelpipe.skeleton import Topology

Array = npt.NDArray[np.float64]
Frames = list[list[raw.Body]]

KINECT = load_topology("kinect_v2")
STICK = Topology(
    name="stick",
    joints=("neck", "left", "right", "waist", "foot"),
    parents=(3, 0, 0, -1, 3),
    mirror=((1, 2),),
    parts={"all": (0, 1, 2, 3, 4)},
    centre=0,
    spine=(3, 0),
    shoulders=(1, 2),
)


def topology(rng: np.random.Generator) -> Topology:
    return KINECT if rng.random() < 0.15 else STICK


def tracked(rng: np.random.Generator, joints: int) -> Recording:
    """Up to eight ids that come, go, flicker, return and are given again; furniture; empty frames.

    Bodies and joints may be zero, and a few ids stand twice in a frame.
    """
    frames = int(rng.choice([rng.integers(1, 5), rng.integers(5, 70)], p=[0.1, 0.9]))
    if rng.random() < 0.04:
        frames = int(rng.integers(290, 330))
    furnished = rng.random() < 0.1  # nothing but tables and chairs
    lossy = rng.choice([0.0, 0.03])
    rows: list[tuple[int, float, int, Array]] = []
    taken: set[tuple[int, int]] = set()
    for number in range(rng.choice([0, 1, 2, 3, 8], p=[0.03, 0.25, 0.32, 0.3, 0.1])):
        start = int(rng.integers(frames)) if rng.random() < 0.5 else 0
        stop = min(start + int(rng.choice([8, 16, 32, 400])), frames)
        width = 0.3 if rng.random() < 0.6 else rng.choice([0.5, 0.65, 0.8])
        xyz = _bodies(rng, stop - start, joints, rng.uniform(0.9, 1.2) if furnished else width)
        xyz *= rng.random((len(xyz), joints, 1)) >= lossy
        xyz *= rng.random((len(xyz), 1, 1)) >= rng.choice([0.0, 0.03, 1.0], p=[0.5, 0.45, 0.05])
        seen = rng.random(len(xyz)) >= rng.choice([0.0, 0.2, 0.6], p=[0.5, 0.3, 0.2])
        again = rng.random() < 0.1
        twice = rng.random() < 0.05
        for frame in (start + np.flatnonzero(seen)).tolist():
            person = raw.PERSON + (0 if again else number)
            if (frame, person) not in taken or twice:
                rows.append((frame, rng.random(), person, xyz[frame - start]))
                taken.add((frame, person))
    for cut in (0, int(rng.integers(frames)), frames - 1):
        if rng.random() < 0.15:
            reach = int(rng.integers(1, 12))
            rows = [row for row in rows if abs(row[0] - cut) >= reach]
    rows.sort(key=lambda row: row[:2])
    return Recording(
        frames=frames,
        frame_R=np.array([row[0] for row in rows], dtype=np.int64),
        id_R=np.array([row[2] for row in rows], dtype=np.int64),
        xyz_RJC=np.array([row[3] for row in rows]).reshape(-1, joints, 3),
    )


def untracked(rng: np.random.Generator, joints: int) -> Recording:
    """One to three bodies without identities that come, go and flicker; a few are never there."""
    frames = int(rng.integers(290, 330)) if rng.random() < 0.04 else int(rng.integers(1, 60))
    bodies = int(rng.integers(1, 4))
    poses = _bodies(rng, bodies * frames, joints, 0.3).reshape(bodies, frames, joints, 3)
    poses *= rng.random((bodies, frames, joints, 1)) >= rng.choice([0.0, 0.03])
    for body in range(bodies):
        if rng.random() < 0.3:
            poses[body, : rng.integers(frames + 1)] = 0
        if rng.random() < 0.3:
            poses[body, rng.integers(frames) :] = 0
        poses[body] *= rng.random((frames, 1, 1)) >= rng.choice(
            [0.0, 0.1, 1.0], p=[0.6, 0.25, 0.15]
        )
    return Recording.of_slots(poses)


def in_frames(recording: Recording) -> Frames:
    """The bodies of each frame in their order; without identities their places stand for these."""
    frames: Frames = [[] for _ in range(recording.frames)]
    for row, frame in enumerate(recording.frame_R.tolist()):
        number = len(frames[frame]) if recording.id_R is None else int(recording.id_R[row])
        frames[frame].append((number, recording.xyz_RJC[row]))
    return frames


def _bodies(rng: np.random.Generator, count: int, joints: int, width: float) -> Array:
    """Bodies (count, joints, 3), each with a will of its own; ``width`` as in `raw.joints`."""
    place = rng.uniform((-1, -1, 2), (1, 1, 4), (count, 1, 3))
    size = (1.5 * width, 1.5, 0.3)
    return place + rng.uniform(-0.5, 0.5, (count, joints, 3)) * size
