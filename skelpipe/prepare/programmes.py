"""Motor programmes: what performers of each generated class do with their bones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from skelpipe.manifest import load_dataset

Side = Literal["right", "both", "alternate", "left"]

Axis = Literal["x", "y", "z"]

_Option = TypeVar("_Option")


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

_HIGH_FIVE = (Swing("arm", "x", 118, 12), Swing("forearm", "x", 35, -20))
_FIST_GAME = (Swing("arm", "x", 30, 12), Swing("forearm", "x", 80, 22))
_TOAST = (Swing("arm", "x", 55, 12), Swing("forearm", "x", 75, -50))
_CARRY = (
    *_march(22, 20),
    Swing("arm", "x", 30, 0, "both"),
    Swing("forearm", "x", 35, 4, "both"),
)

# Programmes written by hand, by NTU's action and in the order in which they are taken; repetitive
# or sustained, so that half of a clip shows the class. All other classes are drawn.
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

# The same for actions that only NTU-120 has.
_HANDMADE_120 = {
    112: Programme(0.9, _HIGH_FIVE, partner=Programme(0.9, _HIGH_FIVE), gap=0.8),
    97: Programme(
        1.1, (Swing("arm", "x", 70, 65, "both"), Swing("arm", "z", 45, 40, "both", phase=0.25))
    ),
    102: Programme(
        0.8, (Swing("thigh", "z", 32, 34), Swing("trunk", "z", 6, 8), Swing("arm", "z", 30))
    ),
    99: Programme(
        1.7,
        (*_march(45, 45), Swing("forearm", "x", 80, 6, "both"), Swing("trunk", "x", -8)),
        lift=0.05,
    ),
    106: Programme(
        0.8,
        (
            Swing("arm", "x", 110, -50),
            Swing("forearm", "x", 60, 40),
            Swing("trunk", "x", -8, 10),
        ),
        partner=replace(_RECOIL, sway=0.06),
        gap=0.9,
    ),
    104: Programme(
        0.45,
        (
            Swing("arm", "z", 135, 30, "both"),
            Swing("forearm", "z", 20, 15, "both"),
            Swing("trunk", "z", 0, 14),
        ),
    ),
    101: Programme(
        0.8,
        (
            Swing("trunk", "x", -45, -15),
            Swing("trunk", "y", 0, 35),
            Swing("arm", "z", 70, 10, "both"),
        ),
    ),
    120: Programme(1.5, _FIST_GAME, partner=Programme(1.5, _FIST_GAME), gap=1.2),
    100: Programme(
        1.5,
        (
            Swing("thigh", "x", 0, 8, "alternate"),
            Swing("shin", "x", -55, 50, "alternate"),
            Swing("forearm", "x", 70, 5, "both"),
        ),
    ),
    98: Programme(0.9, (Swing("arm", "x", 20, 60, "both"), Swing("forearm", "x", 10, 8, "both"))),
    # side by side, so that the partner, face to face, goes the other way
    114: Programme(0.9, _CARRY, sway=0.35, partner=Programme(0.9, _CARRY, sway=-0.35)),
    95: Programme(0.7, (Swing("arm", "z", 90, 6, "both"), Swing("forearm", "z", 78, 14, "both"))),
    64: Programme(
        1.8,
        (
            Swing("arm", "x", 28, 10),
            Swing("forearm", "x", 45, 28),
            Swing("trunk", "x", -14, 3),
            Swing("shin", "x", -18, 6, "both"),
            Swing("thigh", "x", 16, 5, "both"),
        ),
    ),
    113: Programme(0.6, _TOAST, partner=Programme(0.6, _TOAST), gap=1.0),
    80: Programme(0.6, (*_SQUAT, Swing("arm", "x", 70, 15, "both"))),
    65: Programme(
        0.8,
        (
            Swing("chest", "y", 0, 40),
            Swing("arm", "x", 45, 15),
            Swing("arm", "z", 40, 45),
            Swing("trunk", "z", 0, 6),
        ),
    ),
    93: Programme(2.2, (Swing("arm", "x", 80, 6), Swing("forearm", "x", 85, 22))),
}

_MUTUAL = frozenset(load_dataset("ntu120").mutual)

# NTU's action that each of PKU-MMD's 51 is like, from the first.
PKU = (
    35, 4, 3, 33, 22, 10, 40, 1, 5, 2, 43, 56, 23, 58, 26, 55, 27, 51, 24, 28, 53, 6, 29, 54, 31,
    50, 52, 20, 25, 11, 34, 38, 8, 9, 21, 19, 15, 90, 32, 13, 7, 46, 45, 44, 47, 30, 49, 14, 18,
    37, 12,
)  # fmt: skip


def _with_others(first: Iterable[int], last: int) -> tuple[int, ...]:
    """Some actions, then all others up to the last."""
    return tuple(dict.fromkeys([*first, *range(1, last + 1)]))


_NTU60 = _with_others(_HANDMADE, 60)
_PKU1 = tuple(PKU.index(action) + 1 for action in _with_others(_NTU60, 120) if action in PKU)

# The classes of each data set in the order in which they are taken. Those of NTU-120 are in turn
# new ones and NTU-60's; Part II of PKU-MMD leaves some out.
ACTIONS = {
    "ntu60": _NTU60,
    "ntu120": _with_others(
        (action for pair in zip(_HANDMADE_120, _NTU60, strict=False) for action in pair), 120
    ),
    "pku1": _PKU1,
    "pku2": _PKU1[:41],
}


def programme(action: int) -> Programme:
    """The motor programme of one of NTU's 120 actions (from 1): the same for every seed."""
    handmade = _HANDMADE.get(action) or _HANDMADE_120.get(action)
    if handmade:
        return handmade
    rng = np.random.default_rng([action, *b"class"])
    drawn = _drawn(rng)
    if action not in _MUTUAL:
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
