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


@dataclass(frozen=True, eq=False)
class _Track:
    """All appearances of one id, n of them, as if they had followed each other without a gap."""

    start: int
    xyz_nJC: npt.NDArray[np.float64]

    @property
    def end(self) -> int:
        return self.start + len(self.xyz_nJC) - 1


def actors(recording: Recording) -> npt.NDArray[np.float64]:
    """The one or two actors of a recording, shape (1 or 2, T, J, 3), zeros where one is absent.

    Frames without any body vanish. An id's appearances are counted on from its first one, so a gap
    in its track closes and what follows moves forward. A recording of one id is left as it is.
    Otherwise short and spread-out ids are dropped, the rest is taken in the order of its motion:
    the first is actor 1; every other one continues actor 1 where it does not overlap with it, else
    actor 2, else it is discarded; frames in which both are absent vanish. Two bodies are returned
    where two ids survive, even if both became actor 1.

    Raises:
        RejectedError: no body is left.
    """
    tracks, frames = _tracks(recording)
    if len(tracks) == 1:
        return _paste(np.zeros((1, frames, *tracks[0].xyz_nJC.shape[1:])), 0, tracks[0])
    ranked = _denoised(tracks)
    bodies = np.zeros((min(len(ranked), 2), frames, *ranked[0].xyz_nJC.shape[1:]))
    _paste(bodies, 0, ranked[0])
    taken = [(ranked[0].start, ranked[0].end), (0, 0)]
    for track in ranked[1:]:
        for actor, (start, end) in enumerate(taken):
            if min(end, track.end) - max(start, track.start) <= 0:
                _paste(bodies, actor, track)
                taken[actor] = min(start, track.start), max(end, track.end)
                break
    return bodies[:, (bodies != 0).any(axis=(0, 2, 3))]


def _tracks(recording: Recording) -> tuple[list[_Track], int]:
    """Tracks in the order of first appearance, and the number of frames that hold any body."""
    occupied, frame_R = np.unique(recording.frame_R, return_inverse=True)
    if not len(occupied):
        raise RejectedError("no usable body", found="no body in any frame")
    assert recording.id_R is not None, "a format without identities has slots, no tracks"
    _, first, id_R = np.unique(recording.id_R, return_index=True, return_inverse=True)
    by_id = np.split(np.argsort(id_R, kind="stable"), np.cumsum(np.bincount(id_R))[:-1])
    tracks = [
        _Track(int(frame_R[by_id[number][0]]), recording.xyz_RJC[by_id[number]])
        for number in np.argsort(first)
    ]
    return tracks, len(occupied)


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
    motion = {track: _motion(track.xyz_nJC) for track in kept}
    for track in kept:
        if len(people) == 1:
            break
        width, height = np.ptp(track.xyz_nJC[..., :2], axis=1).T
        valid = width <= SPREAD * height
        if (len(valid) - valid.sum()) / len(valid) >= NOISY:
            people.remove(track)
        elif not valid.all():
            motion[track] = min(motion[track], _motion(track.xyz_nJC[valid]))
    return sorted(people, key=lambda track: motion[track], reverse=True)


def _motion(xyz_nJC: npt.NDArray[np.float64]) -> float:
    """Variance of all joint positions over frames and joints together, summed over x, y, z."""
    return float(xyz_nJC.reshape(-1, 3).var(axis=0).sum())


def _paste(bodies: npt.NDArray[np.float64], actor: int, track: _Track) -> npt.NDArray[np.float64]:
    if track.end >= bodies.shape[1]:
        raise RejectedError(
            "a body id stands twice in one frame",
            found=f"{len(track.xyz_nJC)} appearances from frame {track.start}",
            expected=f"at most {bodies.shape[1] - track.start}",
        )
    bodies[actor, track.start : track.end + 1] = track.xyz_nJC
    return bodies
