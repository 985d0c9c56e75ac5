"""A moving skeleton laid out for drawing: three views in one scale, and what is where in pixels.

What draws it (`gif`, `player`) only connects points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skelpipe.errors import UserError
from skelpipe.skeleton import Topology

from .colours import GREY, colour, tint

FINE = 2  # units of a scene to a pixel of its picture: points lie between pixels as well
HEADER, FOOTER, MARGIN = 46 * FINE, 34 * FINE, 14 * FINE
_ROOM = (940 * FINE, 400 * FINE)  # units for all views together: at most so wide, so high
_INSET = 22 * FINE  # between a view's border and what moves in it
_CAPTION = 22 * FINE  # above a view
_LEAST_WIDTH = 130 * FINE  # of a view: its caption must fit
_LEAST_PICTURE = 480 * FINE  # so must the header

# Of bodies whose parts are coloured: share of white in the bones, and the colour of the joints
# (none: the part's own).
_BODIES = ((0.0, None), (0.45, "#FFFFFF"), (0.45, "#222222"), (0.45, GREY))


@dataclass(frozen=True)
class Clip:
    """A moving skeleton.

    Attributes:
        key: Name of the sample or recording.
        what: What it shows, such as its class; may be empty.
        poses_MTJC: Positions of bodies over time, shape (M, T, J, 3), zeros where a body is absent.
        topology: Joints, bones, parts and the axis that points up.
        fps: Frames a second.
        metric: Whether positions are metres.
        bodies: Names of the bodies, each of which is drawn in a colour of its own. Without them
            the parts of the body are coloured, and bodies are told apart by shade.
    """

    key: str
    what: str
    poses_MTJC: npt.NDArray[np.floating]
    topology: Topology
    fps: float
    metric: bool = True
    bodies: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """One side: its caption, its rectangle, and the height of the floor line (None from above)."""

    caption: str
    left: int
    top: int
    right: int
    bottom: int
    floor: int | None


@dataclass(frozen=True)
class Limb:
    """What has one colour: bones as pairs of joints, joints, of one body."""

    body: int
    bones: tuple[tuple[int, int], ...]
    joints: tuple[int, ...]
    colour: str
    dots: str


@dataclass(frozen=True)
class Scene:
    """Where everything is, in units of which `FINE` make a pixel; the origin is the upper left.

    Attributes:
        clip: What is shown.
        width, height: Of the whole picture.
        views: The sides that show anything: all three, or only the front of a flat skeleton.
        xy_VMTJ2: Place of each joint in each view, whole units.
        present_MT: False where a body is absent.
        limbs: What to draw of each body, in this order.
        legend: (name, colour, colour of the dot) of parts or bodies.
        bar: Length of the scale bar, and what it says; None where the unit is unknown.
    """

    clip: Clip
    width: int
    height: int
    views: tuple[View, ...]
    xy_VMTJ2: npt.NDArray[np.int64]
    present_MT: npt.NDArray[np.bool_]
    limbs: tuple[Limb, ...]
    legend: tuple[tuple[str, str, str], ...]
    bar: tuple[int, str] | None

    @property
    def frames(self) -> int:
        return int(self.present_MT.shape[1])

    def counter(self, frame: int) -> str:
        """What stands above a frame, counted from 0."""
        return f"frame {frame + 1} of {self.frames}, {frame / self.clip.fps:.2f} s"


def lay_out(clip: Clip) -> Scene:
    """Find a scale in which everything that ever happens fits, the same in all views.

    Raises:
        UserError: there is nobody in any frame.
    """
    present_MT: npt.NDArray[np.bool_] = np.any(clip.poses_MTJC, axis=(2, 3))
    if not present_MT.any():
        raise UserError(
            f"there is nothing to draw of {clip.key}",
            found=f"{present_MT.shape[1]} frames with nobody in them",
        )
    seen_nC = clip.poses_MTJC[present_MT].reshape(-1, 3).astype(np.float64)
    sides = _sides(clip.topology.up)
    turned = [np.stack([seen_nC @ across, seen_nC @ upward]) for _, across, upward in sides]
    low, high = (np.array([end(xy_2n, axis=1) for xy_2n in turned]) for end in (np.min, np.max))
    shown = [number for number in range(len(sides)) if (high - low)[number].all()] or [0]
    size = (high - low)[shown]

    wide = _ROOM[0] - 2 * _INSET * len(shown) - MARGIN * (len(shown) - 1)
    scale = min(
        wide / max(size[:, 0].sum(), 1e-9), (_ROOM[1] - 2 * _INSET) / max(size[:, 1].max(), 1e-9)
    )
    if not size.any():
        scale = 1.0
    top = HEADER + _CAPTION
    bottom = top + 2 * _INSET + round(scale * size[:, 1].max())
    left = MARGIN
    views, xy = [], []
    for number, (breadth, rise) in zip(shown, size, strict=True):
        caption, across, upward = sides[number]
        width = max(round(scale * breadth) + 2 * _INSET, _LEAST_WIDTH)
        floor = bottom - _INSET
        if caption.startswith("top"):
            floor -= (bottom - top - 2 * _INSET - round(scale * rise)) // 2
        views.append(
            View(
                caption, left, top, left + width, bottom,
                None if caption.startswith("top") else floor,
            )
        )  # fmt: skip
        start = left + (width - scale * breadth) / 2
        x_MTJ = start + scale * (clip.poses_MTJC @ across - low[number, 0])
        y_MTJ = floor - scale * (clip.poses_MTJC @ upward - low[number, 1])
        xy.append(np.stack([x_MTJ, y_MTJ], axis=-1))
        left += width + MARGIN
    xy_VMTJ2 = np.where(present_MT[..., None, None], np.array(xy), 0)
    return Scene(
        clip=clip,
        width=max(left, _LEAST_PICTURE),
        height=bottom + FOOTER,
        views=tuple(views),
        xy_VMTJ2=np.rint(xy_VMTJ2).astype(np.int64),
        present_MT=present_MT,
        limbs=tuple(_limbs(clip)),
        legend=tuple(_legend(clip)),
        bar=_scale_bar(scale) if clip.metric else None,
    )


def _sides(up: str) -> list[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(caption, axis to the right, axis upwards) of the front, the side and the top.

    The first axis that does not point up goes to the right, as the sensor recorded it; away from
    the viewer is what follows from that.
    """
    axis = {name: np.eye(3, dtype=np.int64)[number] for number, name in enumerate("xyz")}
    right = "y" if up == "x" else "x"
    away_C = np.cross(axis[right], axis[up])
    away = ("−" if away_C.sum() < 0 else "") + "xyz"[int(np.abs(away_C).argmax())]
    return [
        (f"front: {right} →, {up} ↑", axis[right], axis[up]),
        (f"side: {away} →, {up} ↑", away_C, axis[up]),
        (f"top: {right} →, {away} ↑", axis[right], away_C),
    ]


def _limbs(clip: Clip) -> list[Limb]:
    parents = clip.topology.parents

    def limb(body: int, joints: Sequence[int], bones: str, dots: str) -> Limb:
        pairs = tuple((parents[joint], joint) for joint in joints if parents[joint] >= 0)
        return Limb(body, pairs, tuple(joints), bones, dots)

    whole = range(len(parents))
    if clip.bodies:
        return [limb(body, whole, colour(body), colour(body)) for body in range(len(clip.bodies))]
    return [
        limb(body, joints, *_shades(number, body))
        for body in range(len(clip.poses_MTJC))
        for number, joints in enumerate(_parts(clip).values())
    ]


def _parts(clip: Clip) -> dict[str, tuple[int, ...]]:
    """Parts by name, so that the same part has the same colour whatever their order is."""
    return dict(sorted(clip.topology.parts.items()))


def _shades(part: int, body: int) -> tuple[str, str]:
    """Colours of a part's bones and of its joints in a body."""
    share, dots = _BODIES[body % len(_BODIES)]
    return tint(colour(part), share), dots or colour(part)


def _legend(clip: Clip) -> list[tuple[str, str, str]]:
    if clip.bodies:
        return [(name, colour(body), colour(body)) for body, name in enumerate(clip.bodies)]
    parts = [
        (name.replace("_", " "), colour(number), colour(number))
        for number, name in enumerate(_parts(clip))
    ]
    count = len(clip.poses_MTJC)
    shades = [_BODIES[body % len(_BODIES)] for body in range(count if count > 1 else 0)]
    bodies = [
        (f"body {body + 1}", tint("#444444", share), dots or "#444444")
        for body, (share, dots) in enumerate(shades)
    ]
    return parts + bodies


def _scale_bar(scale: float) -> tuple[int, str]:
    """A scale bar of a round length, not longer than 120 pixels if it can be."""
    for length in (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1):
        if scale * length <= 120 * FINE:
            break
    return round(scale * length), f"{length:g} m"
