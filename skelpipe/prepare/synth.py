"""Generated data sets: procedural motion as a sensor would have recorded it.

Here are those in NTU's layout, and the archive of all.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skelpipe.errors import UserError, nearest
from skelpipe.files import into_place, new_name

from . import synth_pku
from .motion import KINECT, Body, Floats, generator, invented, perform, performer
from .programmes import ACTIONS, programme
from .sensor import measured, seen_by

# The greatest number of subjects of each data set, and of replications by each.
_MOST = {"ntu60": (40, 999), "ntu120": (106, 999), "pku1": (66, 4), "pku2": (13, 26)}
NAMES = tuple(_MOST)

# Share of the recordings (of those with several bodies: SHUFFLED) that show each fault.
EMPTY = 0.004  # no body at all; of a small set, a handful at most
LATE = 0.03  # the first frames hold no body
LOST = 0.04  # a body is lost for some frames, and keeps its number
REISSUED = 0.04  # a body is lost and comes back under another number
FURNITURE = 0.04  # a table or chair is taken for a body
FLICKER = 0.04  # something is taken for a body for some frames
SHUFFLED = 0.1  # bodies change places within the frames
CRLF = 0.03

_DEPTH = (365.0, 256.0, 212.0)  # focal length and centre in pixels
_COLOUR = (1060.0, 960.0, 540.0)
_STAMP = (1980, 1, 1, 0, 0, 0)  # the archive holds no time, so that its bytes depend on the seed
_LEAVES = sorted(set(range(25)) - set(KINECT.parents))  # the sensor gives these no orientation

# The numbers of NTU-120's performers as they are taken, in turn NTU-60's 40 and the others.
_SUBJECTS_120 = (
    *(number for pair in zip(range(1, 41), range(41, 81), strict=True) for number in pair),
    *range(81, 107),
)

_JOINT = "%.4f %.4f %.4f %.2f %.2f %.2f %.2f %.4f %.4f %.4f %.4f %d"
_BODY = "0 1 1 1 1 0 %.4f %.4f 2\n25\n" + "\n".join([_JOINT] * 25)


@dataclass(frozen=True)
class Take:
    """What a recording's name says, each number from 1."""

    setup: int
    camera: int
    subject: int
    replication: int
    action: int

    @property
    def key(self) -> str:
        return (
            f"S{self.setup:03}C{self.camera:03}P{self.subject:03}"
            f"R{self.replication:03}A{self.action:03}"
        )


@dataclass(frozen=True)
class Track:
    """A body as the sensor reports it under one number: n frames, rising, of the recording."""

    number: int
    frames: npt.NDArray[np.int64]
    joints: Floats  # (n, 25, 3) metres, camera space
    turns: Floats  # (n, 25, 4) w, x, y, z
    inferred: npt.NDArray[np.bool_]  # (n, 25)

    def only(self, keep: npt.NDArray[np.bool_]) -> Track:
        """The track in some of its frames."""
        return Track(
            self.number, self.frames[keep], self.joints[keep], self.turns[keep], self.inferred[keep]
        )


def write_recordings(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    classes: int = 12,
    subjects: int = 12,
    cameras: int = 3,
    replications: int = 2,
    actions: int = 8,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a generated data set as a zip in its layout; the same bytes for the same call.

    Memory does not grow with the number of recordings. Nothing half-written stands under ``out``.

    Args:
        name: Data set whose layout is written: "ntu60", "ntu120", "pku1" or "pku2".
        out: The zip.
        seed: Of performers, executions and faults; what the classes are does not depend on it.
        classes: Number of classes, at most 60, 120, 51 and 41; the first 12 hold mutual ones.
        subjects: Number of performers, at most 40, 106, 66 and 13; two are enough for both parts
            of cross-subject and cross-setup, but in ntu60. Of ntu120, those numbered above 40
            perform only actions above 60, as in the real one.
        cameras: Number of cameras, 1-3; of PKU-MMD the views M, L, R in this order.
        replications: Number of executions of each class by each performer; of PKU-MMD the number
            of performances of each performer, at most 4 in Part I, 26 (the scripts) in Part II.
        actions: Number of executions in a recording of PKU-MMD, a quarter more or less.
        force: Replace ``out`` where it exists.
        progress: Called with (recordings written, recordings in all).

    Returns:
        The number of recordings.

    Raises:
        UserError: unknown data set, ``out`` exists, sizes out of range.
    """
    _check(name, out, force)
    sizes = {
        "classes": (classes, len(ACTIONS[name])),
        "subjects": (subjects, _MOST[name][0]),
        "cameras": (cameras, 3),
        "replications": (replications, _MOST[name][1]),
        "actions": (actions, 40),
    }
    for what, (size, most) in sizes.items():
        if not 1 <= size <= most:
            raise UserError(f"wrong number of {what}", found=size, expected=f"1 to {most}")
    if seed < 0:
        raise UserError("wrong seed", found=seed, expected="0 or more")

    files: Iterator[dict[str, bytes]]  # those of a recording, by name
    lists: dict[str, bytes] = {}
    if name in synth_pku.LISTS:
        sessions = list(synth_pku.takes(name, subjects, cameras, replications))
        total = len(sessions)
        files = (synth_pku.files(seed, take, classes, actions) for take in sessions)
        lists = synth_pku.lists(sessions)
    else:
        total = sum(1 for _ in takes(name, classes, subjects, cameras, replications))
        files = (
            {f"nturgb+d_skeletons/{take.key}.skeleton": recording(seed, take)}
            for take in takes(name, classes, subjects, cameras, replications)
        )
    partial = new_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with zipfile.ZipFile(partial, "w") as archive:
                for done, texts in enumerate(files, 1):
                    _add(archive, texts)
                    if progress:
                        progress(done, total)
                _add(archive, lists)
            into_place(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError("the archive cannot be written", file=out, found=error.strerror) from error
    return total


def takes(
    name: str, classes: int, subjects: int, cameras: int, replications: int
) -> Iterator[Take]:
    """The recordings of a data set of NTU's of some size, by performer."""
    for place in range(subjects):
        subject = (_SUBJECTS_120 if name == "ntu120" else range(1, 41))[place]
        for replication in range(1, replications + 1):
            for action in sorted(ACTIONS[name][:classes]):
                if subject <= 40 or action > 60:
                    setup = _setup(name, place, action)
                    for camera in range(1, cameras + 1):
                        yield Take(setup, camera, subject, replication, action)


def _setup(name: str, place: int, action: int) -> int:
    """Each performer's setup, odd and even ones among both parts of the subjects."""
    if name == "ntu60":
        return 1 + place % 2
    step = place + 5 * (place // 2)
    return 1 + step % 17 if action <= 60 else 18 + step % 15


def recording(seed: int, take: Take) -> bytes:
    """The text of a recording: what the camera makes of the performance, with its faults."""
    rng = generator(seed, "sensor", *vars(take).values())
    bodies = seen(seed, take)
    count = len(bodies[0].joints)
    tracks = [_track(body, rng) for body in bodies]
    if rng.random() < EMPTY:
        tracks = []
    for share, fault in _FAULTS:
        if tracks and rng.random() < share:
            tracks = fault(tracks, count, rng)
    shuffled = len(tracks) > 1 and rng.random() < SHUFFLED

    tracks = [track for track in tracks if track.frames.size]
    rows = [_lines(track) for track in tracks]
    frames: list[list[str]] = [[] for _ in range(count)]
    for track, lines in zip(tracks, rows, strict=True):
        for frame, line in zip(track.frames.tolist(), lines, strict=True):
            frames[frame].append(line)
    parts = [str(count)]
    for here in frames:
        order = rng.permutation(len(here)) if shuffled else range(len(here))
        parts += [str(len(here)), *(here[body] for body in order)]
    text = "\n".join([*parts, ""])
    return (text.replace("\n", "\r\n") if rng.random() < CRLF else text).encode("ascii")


def seen(seed: int, take: Take) -> list[Body]:
    """The true bodies of a take in its camera's space, before noise and faults; the actor first."""
    scene = generator(seed, "setup", take.setup)
    return seen_by(take.camera, _performance(seed, replace(take, camera=0)), scene)


@lru_cache(maxsize=1)
def _performance(seed: int, take: Take) -> list[Body]:
    """What all cameras see; kept for the next camera."""
    rng = generator(seed, "performance", *vars(take).values())
    partner = performer(rng)
    return perform(programme(take.action), invented(seed, take.subject), partner, rng)


def _check(name: str, out: Path, force: bool) -> None:
    if name not in NAMES:
        raise UserError(
            f"no data set '{name}' to generate",
            expected=", ".join(NAMES),
            remedy=nearest(name, NAMES),
        )
    if out.is_dir():
        raise UserError("the archive to write is a folder", file=out, remedy="name a zip in it")
    if out.exists() and not force:
        raise UserError("the archive exists", file=out, remedy="add --force to replace it")


def _add(archive: zipfile.ZipFile, texts: dict[str, bytes]) -> None:
    for path, text in texts.items():
        member = zipfile.ZipInfo(path, _STAMP)
        member.create_system, member.external_attr = 3, 0o644 << 16
        archive.writestr(member, text, zipfile.ZIP_DEFLATED, compresslevel=1)


def _track(body: Body, rng: np.random.Generator) -> Track:
    """A body as the sensor sees it: noise everywhere, now and then a joint somewhere else."""
    joints, jumps = measured(body.joints, rng)
    turns = body.turns.copy()
    turns[:, _LEAVES] = 0
    return Track(_number(rng), np.arange(len(joints)), joints, turns, jumps)


def _number(rng: np.random.Generator) -> int:
    return int(rng.integers(72_057_594_037_927_936, 72_057_594_038_927_936))


def _late(tracks: list[Track], count: int, rng: np.random.Generator) -> list[Track]:
    start = rng.integers(1, 11)
    return [track.only(track.frames >= start) for track in tracks]


def _lost(tracks: list[Track], count: int, rng: np.random.Generator) -> list[Track]:
    first = tracks[0]
    start = rng.integers(count // 4, count // 2)
    gap = (first.frames >= start) & (first.frames < start + rng.integers(1, 7))
    return [first.only(~gap), *tracks[1:]]


def _reissued(tracks: list[Track], count: int, rng: np.random.Generator) -> list[Track]:
    first = tracks[0]
    start = rng.integers(count * 2 // 5, count * 3 // 5)
    late = first.only(first.frames >= start + rng.integers(0, 4))
    return [first.only(first.frames < start), replace(late, number=_number(rng)), *tracks[1:]]


def _furniture(tracks: list[Track], count: int, rng: np.random.Generator) -> list[Track]:
    """A body's 25 joints strewn over a still box, far wider than high."""
    box = rng.uniform(-0.5, 0.5, (25, 3)) * (1.2, 0.4, 0.6)
    where = rng.uniform((-1.2, -0.8, 2.5), (1.2, -0.2, 3.8))
    joints = box + where + np.zeros((count, 1, 1))
    return [*tracks, _track(Body(joints, np.zeros((count, 25, 4))), rng)]


def _flicker(tracks: list[Track], count: int, rng: np.random.Generator) -> list[Track]:
    """The first body seen twice, somewhere else, for less than eleven frames."""
    first = tracks[0]
    start = rng.integers(0, count - 11)
    short = first.only((first.frames >= start) & (first.frames < start + rng.integers(2, 11)))
    where = rng.uniform((-1, -0.2, -0.5), (1, 0.2, 0.5))
    return [*tracks, replace(short, number=_number(rng), joints=short.joints + where)]


_FAULTS = (
    (LATE, _late),
    (LOST, _lost),
    (REISSUED, _reissued),
    (FURNITURE, _furniture),
    (FLICKER, _flicker),
)


def _lines(track: Track) -> list[str]:
    """The text of a body in each of its frames: its header, 25, and 25 joints of 12 fields."""
    rows = np.empty((len(track.frames), 25, 12))
    rows[..., :3] = track.joints
    x, y, z = np.moveaxis(track.joints, -1, 0)
    for column, (focal, across, down) in ((3, _DEPTH), (5, _COLOUR)):
        rows[..., column] = across + focal * x / z
        rows[..., column + 1] = down - focal * y / z
    rows[..., 7:11] = track.turns
    rows[..., 11] = np.where(track.inferred, 1, 2)
    upper = track.joints[:, 20] - track.joints[:, 0]  # how the body leans: right, ahead
    values = np.concatenate([upper[:, [0, 2]] * (1, -1), rows.reshape(-1, 300)], axis=1)
    body = f"{track.number} {_BODY}"
    return [body % tuple(row) for row in values.tolist()]
