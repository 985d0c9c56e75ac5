"""Pipeline "ctrgcn": y up, the first frame's spine at the origin."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from skelpipe.skeleton import Topology

from .bodies import actors, nobody
from .recording import Recording

SWITCHES = {"gaps": ("closed", "kept"), "centre": ("first", "none")}


def ctrgcn(
    recording: Recording, topology: Topology, switches: Mapping[str, str]
) -> npt.NDArray[np.float32]:
    """CTR-GCN's preprocessing (from HCN and SGN; MAMP's and SkateFormer's arrays): y up, metres.

    The actors are found as `bodies.actors` says. The origin is moved to the topology's centre joint
    (the middle of the spine) of body 1 in its first frame that is not zero; there is neither
    rotation nor scale. With two actors, a frame in which one is absent stays zero; with one, such a
    frame is moved like any other, as published.

    A recording without identities (a clip of PKU-MMD, a user's array) keeps all its bodies and all
    its frames, and a frame in which a body is absent stays zero. Where its first body is zero
    throughout, the first that is not takes its place.

    Stored are the frames that survive the cleaning, however many: the published arrays are padded
    to 300 frames, their longest recording, and cut nothing. A body that is zero throughout is left
    out; so is the published copy of the only actor in slot 2 (NTU-120).

    Switches:
        gaps: "closed" as published, which is a fault: what follows a gap in a body's track moves
            forward in time, against the other body. "kept": a body stays in the frames it was seen
            in, the time axis being the frames that hold any actor; an id that stands twice in one
            frame is then always rejected.
        centre: "first" as above. "none": raw metres, which is what MAMP does to PKU-MMD; rotations
            about the origin then move the body, and clips of NTU and PKU-MMD lie apart.

    Returns:
        float32, shape (M, T, J, 3), M being 1 or 2 where bodies have identities.

    Raises:
        RejectedError: the recording holds no usable body.
    """
    if recording.id_R is None:
        poses_MTJC = recording.slots()
    else:
        poses_MTJC = actors(recording, keep_gaps=switches["gaps"] == "kept")
    present_MT: npt.NDArray[np.bool_] = np.any(poses_MTJC, axis=(2, 3))
    ever_M: npt.NDArray[np.bool_] = np.any(present_MT, axis=1)
    if not ever_M.any():
        raise nobody(recording)
    if switches["centre"] == "first":
        body = ever_M.argmax()
        moved_MTJC = poses_MTJC - poses_MTJC[body, present_MT[body].argmax(), topology.centre]
        if recording.id_R is None or len(poses_MTJC) > 1:
            moved_MTJC[~present_MT] = 0
        poses_MTJC = moved_MTJC
    stored_MTJC: npt.NDArray[np.float32] = poses_MTJC[ever_M].astype(np.float32)
    return stored_MTJC
