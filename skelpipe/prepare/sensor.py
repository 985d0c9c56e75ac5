"""What a sensor makes of generated bodies: its camera's view of them, and its noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .motion import Body, Floats, turned

# Degrees by which cameras 1, 2, 3 see the scene turned: from the left, the middle, the right.
CAMERAS = (-45.0, 0.0, 45.0)

_NOISE = 0.008  # metres, of every coordinate
_JUMPS = 0.003  # share of joints and frames in which a joint is seen elsewhere, and only inferred


def seen_by(camera: int, bodies: list[Body], rng: np.random.Generator) -> list[Body]:
    """Bodies around the middle of a scene, in the space of one of its cameras (from 1).

    The generator is the scene's: it says how high its cameras stand and how far away.
    """
    height, distance = rng.uniform(0.8, 1.2), rng.uniform(2.8, 3.2)
    place = np.array([0, -height, distance])
    angle = np.radians(CAMERAS[camera - 1])
    seen = (turned(body, angle) for body in bodies)
    return [replace(body, joints=body.joints + place) for body in seen]


def measured(joints: Floats, rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Joints (T, J, 3) with noise everywhere and jumps now and then; which jumped, (T, J)."""
    jumps = rng.random(joints.shape[:2]) < _JUMPS
    noisy = joints + rng.normal(0, _NOISE, joints.shape)
    noisy[jumps] += rng.normal(0, 0.2, (int(jumps.sum()), 3))
    return noisy, jumps
