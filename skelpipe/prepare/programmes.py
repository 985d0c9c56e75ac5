"""Motor programmes: what performers of each generated class do with their bones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

Side = Literal["right", "both", "alternate", "left"]

Axis = Literal["x", "y", "z"]


@dataclass(frozen=True)
class Swing:
    """One bone's rotation about one axis: ``hold + swing·sin(2π(cycles + phase))``.

    Angles in degrees, phase in turns; ``side`` says whether the right bone of a pair moves, both
    do as in a mirror, both alternate, or the left one alone does.
    """

    bone: str
    axis: Axis
    hold: float = 0.0
    swing: float = 0.0
    side: Side = "right"
    phase: float = 0.0


@dataclass(frozen=True)
class Programme:
    """What performers of a class do: cycles a second, rotations, and motion of the whole body.

    ``lift`` is the height of a jump, ``sway`` the way to the side, ``advance`` the way ahead over
    the whole clip, in metres. ``partner`` is what the second person does, ``gap`` metres away.
    """

    rate: float
    swings: tuple[Swing, ...]
    lift: float = 0.0
    sway: float = 0.0
    advance: float = 0.0
    partner: Programme | None = None
    gap: float = 1.0


def _march(thigh: float, shin: float) -> tuple[Swing, ...]:
    return (
        Swing("thigh", "x", thigh / 3, thigh, "alternate"),
        Swing("shin", "x", -shin, shin, "alternate", phase=0.25),
        Swing("arm", "x", 0, -thigh / 2, "alternate"),
    )


_SQUAT = (Swing("thigh", "x", 40, 40, "both"), Swing("shin", "x", -42, -42, "both"))
_KICK = (
    Swing("thigh", "x", 25, 40),
    Swing("shin", "x", -38, 34, phase=-0.1),
    Swing("arm", "z", 15, 10, "both"),
    Swing("trunk", "x", 0, 8),
)
_PUNCH = (
    Swing("arm", "x", 50, 38),
    Swing("forearm", "x", 55, -45),
    Swing("chest", "y", 0, 18),
    Swing("forearm", "x", 75, 5, "left"),
)
_SHAKE = (
    Swing("arm", "x", 32, 9),
    Swing("forearm", "x", 45, 16),
    Swing("trunk", "x", -6, 2),
)
_RECOIL = Programme(1.0, (Swing("trunk", "x", 8, 9), Swing("arm", "x", 20, 12, "both")), sway=0.03)
_STROLL = Programme(0.9, _march(26, 22))

# Written by hand, in the order in which they are taken; repetitive or sustained, so that half of
# a clip shows the class. All other classes are drawn.
_HANDMADE = {
    23: Programme(1.5, (Swing("arm", "z", 85, 8), Swing("forearm", "z", 65, 35))),
    24: Programme(0.8, _KICK),
    50: Programme(1.0, _PUNCH, partner=_RECOIL, gap=0.9),
    27: Programme(
        0.8, (*_SQUAT, Swing("arm", "x", 30, -50, "both"), Swing("trunk", "x", -8, -8)), lift=0.25
    ),
    42: Programme(0.9, (*_march(28, 24), Swing("body", "z", 0, 9)), sway=0.2),
    49: Programme(
        2.2, (Swing("arm", "x", 35, 4), Swing("forearm", "x", 95, 18), Swing("hand", "x", 0, 25))
    ),
    58: Programme(1.7, _SHAKE, partner=Programme(1.7, _SHAKE), gap=1.1),
    10: Programme(
        1.8,
        (
            Swing("arm", "x", 38, 0, "both"),
            Swing("arm", "z", 6, 20, "both"),
            Swing("forearm", "x", 55, 0, "both"),
            Swing("forearm", "z", -22, 8, "both"),
        ),
    ),
    8: Programme(0.55, (*_SQUAT, Swing("trunk", "x", -14, -14), Swing("forearm", "x", 20))),
    40: Programme(
        0.9,
        (
            Swing("arm", "x", 62, 0, "both"),
            Swing("arm", "z", 10, 32, "both"),
            Swing("forearm", "z", -20, 22, "both"),
        ),
    ),
    7: Programme(
        0.9,
        (
            Swing("arm", "x", 105, 55),
            Swing("forearm", "x", 55, -40, phase=0.1),
            Swing("chest", "y", 0, 20),
            Swing("trunk", "x", -6, -8),
        ),
    ),
    26: Programme(
        1.6,
        (
            Swing("thigh", "x", 38, 6, "left"),
            Swing("shin", "x", -80, 6, "left"),
            Swing("thigh", "x", 12, -10),
            Swing("shin", "x", -22, 18),
            Swing("arm", "z", 22, 12, "both"),
        ),
        lift=0.12,
    ),
    35: Programme(
        0.6,
        (
            Swing("trunk", "x", -26, -26),
            Swing("chest", "x", -8, -8),
            Swing("head", "x", -8, -8),
        ),
    ),
    22: Programme(1.0, (Swing("arm", "z", 115, 40, "both"), Swing("forearm", "z", 15, 15, "both"))),
    34: Programme(
        2.0,
        (
            Swing("arm", "x", 22, 0, "both"),
            Swing("forearm", "x", 75, 16, "alternate"),
            Swing("forearm", "z", -24, 0, "both"),
        ),
    ),
    38: Programme(0.7, (Swing("arm", "z", 85, 4), Swing("forearm", "z", 125, 8))),
    51: Programme(0.8, _KICK, partner=_RECOIL, gap=1.1),
    59: Programme(0.9, _march(26, 22), advance=0.6, partner=_STROLL, gap=1.7),
    60: Programme(0.9, _march(26, 22), advance=-0.6, partner=_STROLL, gap=0.7),
}  # fmt: skip

ACTIONS = (*_HANDMADE, *(action for action in range(1, 61) if action not in _HANDMADE))

_Option = TypeVar("_Option")


def programme(action: int, mutual: bool) -> Programme:
    """The motor programme of an action (from 1): the same for every seed of a data set."""
    if action in _HANDMADE:
        return _HANDMADE[action]
    rng = np.random.default_rng([action, *b"class"])
    drawn = _drawn(rng)
    if not mutual:
        return drawn
    reply = _pick(rng, drawn, _RECOIL)
    return replace(drawn, partner=reply, gap=_pick(rng, 0.8, 1.0, 1.3))


def _drawn(rng: np.random.Generator) -> Programme:
    """Arms in one of several postures, swinging; legs and trunk that often go with them."""
    side: Side = _pick(rng, "right", "both", "alternate")
    swings = [
        Swing(
            "arm", _pick(rng, "x", "z"), _pick(rng, 15, 45, 80, 110), _pick(rng, 5, 15, 30), side
        ),
        Swing("forearm", "x", _pick(rng, 15, 60, 100), _pick(rng, 10, 25, 40), side),
        Swing("forearm", "z", _pick(rng, -25, 0, 25), _pick(rng, 0, 20), side),
    ]
    swings += _pick(rng, (), (), _SQUAT, _march(15, 25), _march(35, 25))
    swings += _pick(
        rng,
        (),
        (),
        (Swing("trunk", "x", -18, 14),),
        (Swing("trunk", "y", 0, 20),),
        (Swing("trunk", "z", 0, 14),),
    )
    return Programme(_pick(rng, 0.6, 1.0, 1.6, 2.2), tuple(swings))


def _pick(rng: np.random.Generator, *options: _Option) -> _Option:
    return options[rng.integers(len(options))]
