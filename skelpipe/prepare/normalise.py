"""The named pipelines: recording -> what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skelpipe.errors import UserError, nearest
from skelpipe.skeleton import Topology

from .bodies import actors
from .recording import Recording, RejectedError


@dataclass(frozen=True)
class Pipeline:
    """A way to clean and normalise. The version grows whenever any stored number changes.

    ``apply(recording, topology, switches)`` gives float32 (M, T, J, 3) in metres, M real bodies,
    or raises RejectedError. ``switches`` lists the values that each switch may have, the default
    first; `apply` is given one for each.
    """

    name: str
    version: int
    switches: Mapping[str, tuple[str, ...]]
    apply: Callable[[Recording, Topology, Mapping[str, str]], npt.NDArray[np.float32]]

    def settled(self, given: Mapping[str, str]) -> dict[str, str]:
        """A value for every switch: the given ones, else the defaults.

        Raises:
            UserError: an unknown switch or value.
        """
        for name, value in given.items():
            if name not in self.switches:
                raise UserError(
                    f"pipeline '{self.name}' has no switch '{name}'",
                    remedy=nearest(name, self.switches),
                )
            if value not in self.switches[name]:
                raise UserError(
                    f"switch '{name}' of pipeline '{self.name}' knows no '{value}'",
                    expected=" or ".join(self.switches[name]),
                )
        return {name: given.get(name, values[0]) for name, values in self.switches.items()}


def ctrgcn(
    recording: Recording, topology: Topology, switches: Mapping[str, str]
) -> npt.NDArray[np.float32]:
    """CTR-GCN's preprocessing (from HCN and SGN; MAMP's and SkateFormer's arrays): y up, metres.

    The actors are found as `bodies.actors` says. The origin is moved to the middle of the spine
    (joint 1) of actor 1 in its first frame that is not zero; there is neither rotation nor scale.
    With two actors, a frame in which one is absent stays zero; with one, such a frame is moved like
    any other, as published.

    Stored are the frames that survive the cleaning, however many: the published arrays are padded
    to 300 frames, their longest recording, and cut nothing. A second body that is zero throughout
    is left out; so is the published copy of the only actor in slot 2 (NTU-120).

    Returns:
        float32, shape (1 or 2, T, J, 3).

    Raises:
        RejectedError: the recording holds no usable body.
    """
    bodies_MTJC = actors(recording)
    present_MT: npt.NDArray[np.bool_] = np.any(bodies_MTJC != 0, axis=(2, 3))
    if not present_MT[0].any():
        raise RejectedError("no usable body", found="zeros in every frame")
    origin = bodies_MTJC[0, present_MT[0].argmax(), topology.centre]
    moved_MTJC = bodies_MTJC - origin
    if len(bodies_MTJC) > 1:
        moved_MTJC[~present_MT] = 0
    stored_MTJC: npt.NDArray[np.float32] = moved_MTJC[present_MT.any(axis=1)].astype(np.float32)
    return stored_MTJC


PIPELINES = {"ctrgcn": Pipeline("ctrgcn", 1, {}, ctrgcn)}


def find_pipeline(name: str) -> Pipeline:
    """The pipeline of that name; an unknown one is the user's error."""
    if name not in PIPELINES:
        raise UserError(f"unknown pipeline '{name}'", remedy=nearest(name, PIPELINES))
    return PIPELINES[name]
