"""Users' own arrays -> Recording: axes in order, y up, metres."""

from __future__ import annotations

import atexit
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from skelpipe.errors import UserError
from skelpipe.manifest import ArrayDataset, ArraySource, load_topology

from . import columnar, hdf5
from .archive import LARGEST, Member, Reader, inflated
from .array_texts import as_array, parse_csv, parse_json, under
from .child import Child, DiedError
from .npy import Header, parse_npy
from .recording import FARTHEST, Recording, RejectedError

MOST = 1 << 30  # bytes of a compressed array that holds all samples, which is inflated whole
_TIGHTEST = 300  # times that positions, padding among them, are ever compressed
_SECONDS = 10.0  # that reading one sample may take
_UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
# For each axis that may point up: which raw axis, with which sign, becomes x, y and z. All are
# rotations, none a reflection.
_TURNS = {
    "y": ((0, 1), (1, 1), (2, 1)),
    "-y": ((0, 1), (1, -1), (2, -1)),
    "z": ((0, 1), (2, 1), (1, -1)),
    "-z": ((0, 1), (2, -1), (1, 1)),
    "x": ((1, -1), (0, 1), (2, 1)),
    "-x": ((1, 1), (0, -1), (2, 1)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece(Member):
    """The array of one sample, where it lies.

    Attributes:
        place: HDF5: the path of its data set, where each sample has its own.
        block: Parquet, Arrow: the block of rows that holds it.
        rows: Its rows, from the first to before the last, where an array or block holds many.
        frames: How many of its frames are recorded, where the array is padded.
        header: Of an uncompressed .npy array that holds many samples: what its values are.
        origin: Its file, seen from the folder that the manifest's path starts from.
    """

    place: str = ""
    block: int = 0
    rows: tuple[int, int] | None = None
    frames: int | None = None
    header: Header | None = None
    origin: str = ""

    @property
    def source(self) -> str:
        return self.origin


def read(piece: Piece, dataset: ArrayDataset, reader: Reader) -> Recording:
    """Read a sample.

    HDF5, Parquet and Arrow are read in a child process: a file that ends it costs one sample.

    Raises:
        RejectedError: it is damaged, or is not what the manifest says.
        UserError: its file cannot be read.
    """
    source = dataset.source
    match source.layout:
        case "hdf5":
            path = source.data if source.stacked else piece.place
            values = apart(_SECONDS, hdf5.read, piece.file, path, piece.rows)
        case "parquet" | "arrow":
            assert piece.rows is not None
            values = apart(
                _SECONDS,
                columnar.read,
                piece.file,
                source.layout,
                source.data,
                piece.block,
                piece.rows[0],
            )
        case "npy" | "npz":
            values = _read_npy(piece, reader)
        case "csv":
            values = parse_csv(reader.read(piece), source.skip)
        case "json":
            values = as_array(under(parse_json(reader.read(piece)), source.data))
    if source.axes.startswith("N"):
        values = values[0]
    return arrange(values, dataset, piece.frames)


def _read_npy(piece: Piece, reader: Reader) -> npt.NDArray[Any]:
    if piece.rows is None:
        return parse_npy(reader.read(piece))
    if piece.header is None:
        # Of all samples in the member; as a plain Member, so that it is found again.
        names = [field.name for field in fields(Member)]
        return _inflated(Member(*(getattr(piece, name) for name in names)))[slice(*piece.rows)]
    flat = np.frombuffer(reader.read(piece), piece.header.dtype)
    return flat.reshape(-1, *piece.header.shape[1:])


@lru_cache(maxsize=1)
def _inflated(member: Member) -> npt.NDArray[Any]:
    """The whole of a compressed array that holds many samples."""
    if member.size > MOST or member.size > max(LARGEST, _TIGHTEST * member.stored):
        raise RejectedError(
            "too large to be inflated",
            found=f"{member.size:,} bytes in {member.stored:,}",
            expected=f"at most {MOST:,}, {_TIGHTEST} times what is stored; or np.savez, which does "
            "not compress",
        )
    data = unpacked(member, member.size + 1)
    if len(data) != member.size or isal_zlib.crc32(data) != member.crc:
        raise RejectedError("damaged archive member", found="another size, or another CRC-32")
    return parse_npy(data)


def unpacked(member: Member, most: int) -> bytes:
    """The first bytes of a member, ``most`` of them.

    Raises:
        RejectedError: it is damaged.
        UserError: the file cannot be read.
    """
    deflated = member.packing == "zip-deflated"
    try:
        with member.file.open("rb") as opened:
            opened.seek(start_of(member))
            data = opened.read(min(member.stored, most + 1024 if deflated else most))
    except OSError as error:
        raise UserError("the raw data cannot be read", file=member.file, found=error) from error
    return inflated(data, most) if deflated else data


def start_of(member: Member) -> int:
    """Where the bytes of a member begin in its file."""
    with Reader() as reader:
        return reader.start_of(member)


_child = Child()
_child_lock = threading.Lock()
atexit.register(_child.close)

P = ParamSpec("P")
R = TypeVar("R")


def apart(seconds: float, function: Callable[P, R], *args: P.args, **more: P.kwargs) -> R:
    """A function's result from this process's reading child.

    Raises:
        RejectedError: the child died of it. And what the function raises.
    """
    with _child_lock:
        try:
            return _child.call(seconds, function, *args, **more)
        except DiedError as error:
            raise RejectedError(
                "reading it ended the process that read it", found=str(error)
            ) from error


def arrange(
    values: npt.NDArray[Any], dataset: ArrayDataset, frames: int | None = None
) -> Recording:
    """A sample's array, its axes as the manifest says, as a recording.

    A body whose values are all NaN in a frame is absent in it, like one that is zero.

    Args:
        values: The array.
        dataset: Whose it is.
        frames: How many of its frames are recorded; by default all.

    Raises:
        RejectedError: the shape does not fit; a value is no number, or one beyond a million metres.
    """
    source, skeleton = dataset.source, dataset.skeleton
    if values.dtype.kind not in "fiu":
        raise RejectedError("no numbers", found=f"type {values.dtype}")
    joints = _joints(skeleton.topology) if skeleton.topology else skeleton.joints
    letters = "".join(source.groups)
    sizes = _sizes(values.shape, source, len(joints))
    poses = values.reshape([sizes[letter] for letter in letters])
    if "M" not in letters:
        poses, letters = poses[None], f"M{letters}"
    if frames is not None and frames > sizes["T"]:
        raise RejectedError("wrong number of frames", found=str(frames), expected=f"≤ {sizes['T']}")
    poses_MTJC = poses.transpose([letters.index(letter) for letter in "MTJC"])[:, :frames]
    if not (poses_MTJC.shape[0] and poses_MTJC.shape[1]):
        raise RejectedError("empty clip", found=f"{sizes}")
    given = [axis for axis in "xyz" if axis in source.coordinates]
    with np.errstate(invalid="ignore"):
        raw_MTJC = poses_MTJC[..., [source.coordinates.index(axis) for axis in given]].astype(
            np.float64
        )
    raw_MTJC[np.isnan(raw_MTJC).all(axis=(2, 3))] = 0
    if source.missing == "interpolated":
        _interpolate(raw_MTJC)
    factor = _UNITS.get(skeleton.unit, skeleton.scale)
    fits = np.abs(raw_MTJC) <= FARTHEST / factor  # false for NaN
    if not fits.all():
        body, frame, joint, axis = np.argwhere(~fits)[0]
        raise RejectedError(
            "no number in x, y, z",
            found=f"{raw_MTJC[body, frame, joint, axis]} in body {body}, frame {frame}, "
            f"{joints[joint]}, {given[axis]}",
            expected=f"a number of at most {FARTHEST / factor:g}; or NaN in all of a body, or "
            'missing = "interpolated" in the manifest',
        )
    turned_MTJC = np.zeros((*raw_MTJC.shape[:3], 3))
    for axis, (taken, sign) in enumerate(_TURNS[skeleton.up]):
        if taken < len(given):
            # + 0.0 makes a plain zero of a negative one.
            turned_MTJC[..., axis] = sign * factor * raw_MTJC[..., taken] + 0.0
    return Recording.of_slots(turned_MTJC)


def _interpolate(poses_MTJC: npt.NDArray[np.float64]) -> None:
    """Fill joints that are NaN from the frames of the same body in which they are seen."""
    lost_MTJ: npt.NDArray[np.bool_] = np.any(np.isnan(poses_MTJC), axis=3)
    there_MT: npt.NDArray[np.bool_] = np.any(poses_MTJC != 0, axis=(2, 3))  # true for NaN as well
    for body, joint in np.argwhere(np.any(lost_MTJ, axis=1)):
        lost_T = lost_MTJ[body, :, joint]
        seen = np.flatnonzero(there_MT[body] & ~lost_T)
        if len(seen):
            for track_T in poses_MTJC[body, :, joint].T:
                track_T[lost_T] = np.interp(np.flatnonzero(lost_T), seen, track_T[seen])


def _sizes(shape: tuple[int, ...], source: ArraySource, joints: int) -> dict[str, int]:
    """The size of every letter of the axes."""
    if len(shape) != len(source.groups):
        raise RejectedError(
            "wrong axes",
            found=f"shape {shape}",
            expected=f"{len(source.groups)} by axes = {source.axes!r}; flattened ones stand in "
            "parentheses",
        )
    sizes = {"J": joints, "C": len(source.coordinates)}
    if source.bodies is not None:
        sizes["M"] = source.bodies
    for group, size in zip(source.groups, shape, strict=True):
        known = math.prod(sizes[letter] for letter in group if letter in sizes)
        free = [letter for letter in group if letter not in sizes]
        if size != known if not free else size % known:
            kind = {"J": "wrong joint count", "C": "wrong coordinate count"}.get(
                group, "wrong axes"
            )
            expected = f"a multiple of {known}" if free else str(known)
            if "C" in group:
                expected += f", by coordinates = {source.coordinates!r}"
            raise RejectedError(
                kind, found=f"{size} along {group} in shape {shape}", expected=expected
            )
        if free:
            sizes[free[0]] = size // known
    return sizes


@cache
def _joints(topology: str) -> tuple[str, ...]:
    return load_topology(topology).joints
