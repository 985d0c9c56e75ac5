"""Which of the bodies that the sensor reported are actors, as CTR-GCN's preprocessing decides it.

Kinect loses people, gives them new ids, and takes furniture for people. The rules and thresholds
here are those of HCN, SGN and CTR-GCN (whose arrays MAMP and SkateFormer use), quirks included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .recording import Recording, RejectedError

SHORTEST = 11  # frames; an id seen no longer than this is noise
SPREAD = 0.8  # a person is at most this much wider than tall
NOISY = 0.69754  # an id is noise where this share of its frames is wider than that


def nobody(recording: Recording) -> RejectedError:
    """What becomes of a recording that is zero throughout."""
    kind = "empty clip" if recording.id_R is None else "no usable body"
    return RejectedError(kind, found=f"no body in any of {recording.frames} frames")


@dataclass(frozen=True, eq=False)
class _Track:
    """All n appearances of one id, and the frame that each is given."""

    frame_n: npt.NDArray[np.int64]
    xyz_nJC: npt.NDArray[np.float64]

    @property
    def start(self) -> int:
        return int(self.frame_n[0])

    @property
    def end(self) -> int:
        return int(self.frame_n[-1])


def actors(recording: Recording, *, keep_gaps: bool = False) -> npt.NDArray[np.float64]:
    """The one or two actors of a recording, shape (1 or 2, T, J, 3), zeros where one is absent.

    Frames without any body vanish. An id's appearances are counted on from its first one, so a gap
    in its track closes and what follows moves forward, against the other body: a fault that
    ``keep_gaps`` mends. A recording of one id is left as it is. Otherwise short and spread-out ids
    are dropped, the rest is taken in the order of its motion: the first is actor 1; every other one
    continues actor 1 where it does not overlap with it, else actor 2, else it is discarded; frames
    in which both are absent vanish. Two bodies are returned where two ids survive, even if both
    became actor 1.

    Raises:
        RejectedError: no body is left, or an id stands twice in one frame. With gaps closed, the
            second appearance moves all later ones back, and is told only where these run over the
            end.
    """
    if not len(recording.frame_R):
        raise nobody(recording)
    tracks, frames = _tracks(recording, keep_gaps)
    if len(tracks) == 1:
        if len(tracks[0].frame_n) > frames:
            raise _twice(tracks[0])
        return tracks[0].xyz_nJC[None]
    ranked = _denoised(tracks)
    bodies = np.zeros((min(len(ranked), 2), frames, *ranked[0].xyz_nJC.shape[1:]))
    _paste(bodies[0], ranked[0])
    taken = [(ranked[0].start, ranked[0].end), (0, 0)]
    for track in ranked[1:]:
        for actor, (start, end) in enumerate(taken):
            if min(end, track.end) - max(start, track.start) <= 0:
                _paste(bodies[actor], track)
                taken[actor] = min(start, track.start), max(end, track.end)
                break
    return bodies[:, bodies.any(axis=(0, 2, 3))]


def _tracks(recording: Recording, keep_gaps: bool) -> tuple[list[_Track], int]:
    """Tracks in the order of first appearance, and the number of frames that hold any body."""
    assert recording.id_R is not None, "a format without identities has slots, no tracks"
    frame_R: npt.NDArray[np.int64] = np.cumsum(
        np.diff(recording.frame_R, prepend=recording.frame_R[0]) > 0
    )
    frames = int(frame_R[-1]) + 1
    if (recording.id_R == recording.id_R[0]).all():
        return [_Track(frame_R, recording.xyz_RJC)], frames
    _, first, id_R = np.unique(recording.id_R, return_index=True, return_inverse=True)
    by_id = np.split(np.argsort(id_R, kind="stable"), np.cumsum(np.bincount(id_R))[:-1])
    tracks = []
    for number in np.argsort(first):
        rows = by_id[number]
        frame_n = frame_R[rows] if keep_gaps else frame_R[rows[0]] + np.arange(len(rows))
        tracks.append(_Track(frame_n, recording.xyz_RJC[rows]))
    return tracks, frames


def _denoised(tracks: list[_Track]) -> list[_Track]:
    """Tracks that may be people, the one that moves most first; ties keep their order."""
    kept = [track for track in tracks if len(track.xyz_nJC) > SHORTEST]
    if not kept:
        longest = max(len(track.xyz_nJC) for track in tracks)
        raise RejectedError(
            "no usable body",
            found=f"{len(tracks)} ids of at most {longest} frames",
            expected=f"one of more than {SHORTEST}",
        )
    people = list(kept)
    motion: dict[_Track, float] = {}
    for track in kept:
        if len(people) == 1:
            return people
        width, height = (np.ptp(track.xyz_nJC[..., axis], axis=1) for axis in (0, 1))
        valid = width <= SPREAD * height
        if (len(valid) - valid.sum()) / len(valid) >= NOISY:
            people.remove(track)
            continue
        motion[track] = _motion(track.xyz_nJC)
        if not valid.all():
            motion[track] = min(motion[track], _motion(track.xyz_nJC[valid]))
    return sorted(people, key=lambda track: motion[track], reverse=True)


def _motion(xyz_nJC: npt.NDArray[np.float64]) -> float:
    """Variance of all joint positions over frames and joints together, summed over x, y, z."""
    return sum(float(xyz_nJC[..., axis].var()) for axis in range(3))


def _paste(body_TJC: npt.NDArray[np.float64], track: _Track) -> None:
    if track.end >= len(body_TJC) or (np.diff(track.frame_n) == 0).any():
        raise _twice(track)
    body_TJC[track.frame_n] = track.xyz_nJC


def _twice(track: _Track) -> RejectedError:
    return RejectedError(
        "a body id stands twice in one frame",
        found=f"{len(track.frame_n)} appearances from frame {track.start} on",
        expected="one a frame",
    )
