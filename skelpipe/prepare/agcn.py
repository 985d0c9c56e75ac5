"""Pipeline "agcn": z up, the spine at the origin in every frame, the shoulders along x."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from skelpipe.errors import UserError
from skelpipe.skeleton import Topology

from .bodies import nobody
from .recording import Recording

SWITCHES = {"gaps": ("closed", "kept"), "tail": ("tiled", "zeros")}

LONGEST = 300  # frames of the published arrays
_SLOTS = 4  # bodies of a frame that are looked at
_BODIES = 2
_TINY = 1e-6  # an axis or an angle below it turns nothing

Floats = npt.NDArray[np.float64]


def agcn(
    recording: Recording, topology: Topology, switches: Mapping[str, str]
) -> npt.NDArray[np.float32]:
    """2s-AGCN's preprocessing (skeleton-contrast's, CMD's and PCM³'s arrays): z up, metres.

    1. Bodies are told apart by their place within the frame alone. Of the first four places, the
       two of the highest energy stay, the higher first: the standard deviation over all joints of
       all frames that are not zero, summed over x, y and z. A recording without identities keeps
       its bodies as they are, and their order. The first 300 frames are taken.
    2. A body that is absent in the first frame has all its empty frames taken out. What is empty
       behind a body's last frame is filled by repeating the body from its first frame on.
    3. Body 1's centre joint (the topology's `centre`) is subtracted in the same frame from all
       joints of all bodies, but for joints whose coordinates sum to zero. Where body 1 is absent,
       the others stay where the camera saw them.
    4. Everything is turned so that body 1's `spine` in its first frame points to +z, then so that
       its line of `shoulders` in that frame points to +x. The second turn is not about z, so z is
       upright only nearly. A turn about less than 1e-6, in the sum of the axis (metres) or in the
       angle (radians), is left out: also that of a spine that points exactly down.

    Stored are the first L frames of the published array of 300, L being the recording's own length,
    at most 300 (P2: PCM³ calls it downsampled). A body that is zero throughout is left out. Where
    that is body 1, the others are neither centred nor turned, as published.

    The turns use neither matrix routines nor trigonometric functions, whose last bit depends on the
    machine: the same recording gives the same bytes everywhere.

    Switches:
        gaps: "closed" as in step 2, which is a fault: a body that is absent at first moves forward
            in time, by other gaps as well, against the other body. "kept": a body stays in the
            frames it was seen in.
        tail: "tiled" as in step 2, which is a fault: where a body has left, it appears to do again
            what it did at first. "zeros": it is absent.

    Returns:
        float32, shape (M, L, J, 3), M being 1 or 2 where bodies have identities.

    Raises:
        RejectedError: the recording holds no usable body in its first 300 frames.
        UserError: the topology names no spine or no shoulders.
    """
    if topology.spine is None or topology.shoulders is None:
        raise UserError(
            f"pipeline 'agcn' does not know how to turn the skeleton '{topology.name}'",
            found="a topology without spine or without shoulders",
            expected="spine = [lower, upper] and shoulders = [left, right], joints from 0",
            remedy="state both in the topology's manifest, or choose the pipeline 'ctrgcn'",
        )
    poses_MLJC = _bodies(recording)
    present_ML: npt.NDArray[np.bool_] = np.any(poses_MLJC, axis=(2, 3))
    ever_M: npt.NDArray[np.bool_] = np.any(present_ML, axis=1)
    if not ever_M.any():
        raise nobody(recording)
    if not present_ML.all():
        filled = [_filled(poses_MLJC[m], present_ML[m], switches) for m in range(len(ever_M))]
        poses_MLJC = np.stack(filled)
    # With gaps closed, body 1 starts in frame 0.
    first = 0 if switches["gaps"] == "closed" else int(present_ML[0].argmax())
    xyz_CMLJ = np.ascontiguousarray(np.moveaxis(poses_MLJC, -1, 0))
    real_MLJ = xyz_CMLJ.sum(axis=0) != 0
    xyz_CMLJ = (xyz_CMLJ - xyz_CMLJ[:, :1, :, topology.centre, None]) * real_MLJ
    start_CJ = xyz_CMLJ[:, 0, first]
    upright = _turn(_line(start_CJ, topology.spine), (0.0, 0.0, 1.0))
    sideways = _turn(_product(upright, _line(start_CJ, topology.shoulders)), (1.0, 0.0, 0.0))
    xyz_CMLJ = _product(_product(sideways, upright), xyz_CMLJ)
    return np.ascontiguousarray(np.moveaxis(xyz_CMLJ, 0, -1)[ever_M], dtype=np.float32)


def _bodies(recording: Recording) -> Floats:
    """The bodies of step 1 in the first 300 frames, shape (M, L, J, 3), zeros where absent."""
    if recording.id_R is None:
        return recording.cut(0, LONGEST).slots()
    frame_R, xyz_RJC = recording.frame_R, recording.xyz_RJC
    slot_R = np.arange(len(frame_R)) - np.searchsorted(frame_R, frame_R)
    places = int(slot_R.max(initial=-1)) + 1
    if places == 1 and len(frame_R) == recording.frames:
        return xyz_RJC[None, :LONGEST]
    # By the rows, as a frame that holds nobody may cost a file two bytes and a place in it 600.
    rows = [np.flatnonzero(slot_R == slot) for slot in range(min(places, _SLOTS))]
    if len(rows) > 1:
        energy = [_energy(xyz_RJC[rows_n]) for rows_n in rows]
        rows = [rows[slot] for slot in np.argsort(energy)[::-1]]
    poses = np.zeros((len(rows[:_BODIES]), min(recording.frames, LONGEST), *xyz_RJC.shape[1:]))
    for body, rows_n in enumerate(rows[:_BODIES]):
        rows_n = rows_n[frame_R[rows_n] < LONGEST]
        poses[body, frame_R[rows_n]] = xyz_RJC[rows_n]
    return poses


def _energy(xyz_nJC: Floats) -> float:
    """Standard deviation over frames that are not zero and joints, summed over x, y, z."""
    real_nJC = xyz_nJC[xyz_nJC.any(axis=(1, 2))]
    return sum(float(real_nJC[..., axis].std()) for axis in range(3)) if len(real_nJC) else 0.0


def _filled(
    body_LJC: Floats, present_L: npt.NDArray[np.bool_], switches: Mapping[str, str]
) -> Floats:
    """A body without the gaps in its track and the emptiness behind it: step 2."""
    frames = np.flatnonzero(present_L)
    if not len(frames):
        return body_LJC
    if frames[0] == 0 or switches["gaps"] == "kept":
        frames = np.arange(frames[-1] + 1)
    filled_LJC = body_LJC[frames[np.arange(len(body_LJC)) % len(frames)]]
    if switches["tail"] == "zeros":
        filled_LJC[len(frames) :] = 0
    return filled_LJC


def _line(xyz_CJ: Floats, joints: tuple[int, int]) -> Floats:
    return xyz_CJ[:, joints[1]] - xyz_CJ[:, joints[0]]


def _turn(line: Floats, onto: tuple[float, float, float]) -> Floats:
    """The matrix that turns a line onto a unit vector, about the axis upright on both."""
    x, y, z = line.tolist()
    to_x, to_y, to_z = onto
    axis = (y * to_z - z * to_y, z * to_x - x * to_z, x * to_y - y * to_x)
    if sum(map(abs, axis)) < _TINY:
        return np.eye(3)
    length, size = (math.sqrt(sum(part * part for part in line)) for line in ((x, y, z), axis))
    cosine = min(max((x * to_x + y * to_y + z * to_z) / length, -1.0), 1.0)
    if math.acos(cosine) < _TINY:
        return np.eye(3)
    sine, rest = size / length, 1 - cosine
    a, b, c = (part / size for part in axis)
    return np.array(
        [
            [cosine + rest * a * a, rest * a * b - sine * c, rest * a * c + sine * b],
            [rest * a * b + sine * c, cosine + rest * b * b, rest * b * c - sine * a],
            [rest * a * c - sine * b, rest * b * c + sine * a, cosine + rest * c * c],
        ]
    )


def _product(turn: Floats, xyz_C: Floats) -> Floats:
    """Matrix times vectors, which stand in the first axis of an array of any shape."""
    product: Floats = sum(np.multiply.outer(turn[:, c], xyz_C[c]) for c in range(3))
    return product


def upside_down(poses_MTJC: npt.NDArray[np.float32], topology: Topology) -> bool:
    """Whether the second turn has put body 1 on its head: one that does not face the sensor."""
    assert topology.spine is not None, "agcn needs it"
    lower, upper = topology.spine
    first = poses_MTJC[0, poses_MTJC[0].any(axis=(1, 2)).argmax()]
    return bool(first[upper, 2] < first[lower, 2])
