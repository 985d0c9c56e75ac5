"""The named pipelines: recording -> what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from skelpipe.errors import UserError, nearest
from skelpipe.skeleton import Topology

from . import agcn, ctrgcn
from .bodies import nobody
from .recording import Recording


@dataclass(frozen=True)
class Pipeline:
    """A way to clean and normalise. The version grows whenever any stored number changes.

    ``apply(recording, topology, switches)`` gives float32 (M, T, J, 3) in metres, M real bodies,
    or raises RejectedError. ``switches`` lists the values that each switch may have, the default
    first; `apply` is given one for each. ``up`` is the axis that points up in what is stored, where
    y does in what is read.
    """

    name: str
    version: int
    switches: Mapping[str, tuple[str, ...]]
    apply: Callable[[Recording, Topology, Mapping[str, str]], npt.NDArray[np.float32]]
    up: Literal["y", "z"] = "y"

    def settled(self, given: Mapping[str, str]) -> dict[str, str]:
        """A value for every switch: the given ones, else the defaults.

        Raises:
            UserError: an unknown switch or value.
        """
        for name, value in given.items():
            if name not in self.switches:
                raise UserError(
                    f"pipeline '{self.name}' has no switch '{name}'",
                    remedy=nearest(name, self.switches) if self.switches else "it has none",
                )
            if value not in self.switches[name]:
                raise UserError(
                    f"switch '{name}' of pipeline '{self.name}' knows no '{value}'",
                    expected=" or ".join(self.switches[name]),
                )
        return {name: given.get(name, values[0]) for name, values in self.switches.items()}


def recordings(
    recording: Recording, topology: Topology, switches: Mapping[str, str]
) -> npt.NDArray[np.float32]:
    """Recordings as they are, for detection: every frame and every body, in the camera's metres.

    Bodies are told apart by their place within the frame. Where one is absent it is zero; places
    behind the last one that anything ever stands in are left out.

    Returns:
        float32, shape (M, T, J, 3).

    Raises:
        RejectedError: all of it is zero.
    """
    poses_MTJC = recording.slots()
    seen = np.flatnonzero(poses_MTJC.any(axis=(1, 2, 3)))
    if not len(seen):
        raise nobody(recording)
    return poses_MTJC[: seen[-1] + 1].astype(np.float32)


PIPELINES = {
    "ctrgcn": Pipeline("ctrgcn", 1, ctrgcn.SWITCHES, ctrgcn.ctrgcn),
    "agcn": Pipeline("agcn", 1, agcn.SWITCHES, agcn.agcn, up="z"),
    "recordings": Pipeline("recordings", 1, {}, recordings),
}


def find_pipeline(name: str) -> Pipeline:
    """The pipeline of that name; an unknown one is the user's error."""
    if name not in PIPELINES:
        raise UserError(f"unknown pipeline '{name}'", remedy=nearest(name, PIPELINES))
    return PIPELINES[name]
