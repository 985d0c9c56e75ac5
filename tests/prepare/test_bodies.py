"""The rules by which bodies become actors, one at a time; test_ctrgcn.py tries them together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest

from skelpipe.prepare.bodies import NOISY, SHORTEST, actors
from skelpipe.prepare.recording import Recording, RejectedError

PERSON, FURNITURE = (0.5, 1.5, 0.3), (1.6, 1.5, 0.3)  # metres: width, height, depth

Track = dict[int, npt.NDArray[np.float64]]
"""Frame -> joints."""


def track(
    seed: int, frames: Iterable[int], size: tuple[float, float, float] = PERSON, sway: float = 0.0
) -> Track:
    """A body of four joints, the first ``seed`` metres away, that sways sideways so many metres."""
    rng = np.random.default_rng(seed)
    corners = np.array([(0, 0, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1)]) * size + (0, 0, seed)
    return {frame: corners + rng.uniform(0, sway + 0.01) * np.array([1, 0, 0]) for frame in frames}


def recording(*tracks: Track, ids: Iterable[int] = range(100, 200)) -> Recording:
    rows = sorted(
        (
            (frame, order, number, xyz)
            for order, (number, body) in enumerate(zip(ids, tracks, strict=False))
            for frame, xyz in body.items()
        ),
        key=lambda row: row[:2],
    )
    return Recording(
        frames=max(row[0] for row in rows) + 1,
        frame_R=np.array([row[0] for row in rows]),
        id_R=np.array([row[2] for row in rows]),
        xyz_RJC=np.array([row[3] for row in rows]),
    )


def shows(body_TJC: npt.NDArray[np.float64], tracked: Track) -> bool:
    return np.array_equal(body_TJC, np.array(list(tracked.values())))


def test_the_one_that_moves_most_is_actor_1() -> None:
    calm, lively = track(1, range(20)), track(2, range(20), sway=1.0)
    bodies = actors(recording(calm, lively))
    assert shows(bodies[0], lively)
    assert shows(bodies[1], calm)


def test_an_id_that_is_seen_shortly_is_dropped() -> None:
    long, short = track(1, range(20)), track(2, range(SHORTEST), sway=1.0)
    bodies = actors(recording(long, short))
    assert len(bodies) == 1
    assert shows(bodies[0], long)
    assert len(actors(recording(long, track(2, range(SHORTEST + 1))))) == 2


def test_only_short_ids_are_no_body_but_a_single_short_id_is() -> None:
    short = track(1, range(SHORTEST))
    with pytest.raises(RejectedError, match="2 ids of at most 11 frames, expected one of more"):
        actors(recording(short, track(2, range(SHORTEST))))
    assert shows(actors(recording(short))[0], short)


def test_furniture_is_dropped_where_it_shows_in_most_frames() -> None:
    person = track(1, range(40))
    for wide in range(40):
        other = track(2, range(40 - wide)) | track(2, range(40 - wide, 40), FURNITURE)
        assert len(actors(recording(person, other))) == (1 if wide / 40 >= NOISY else 2)


def test_the_last_id_stays_whatever_its_shape() -> None:
    bodies = actors(recording(track(1, range(20), FURNITURE), track(2, range(20), FURNITURE)))
    assert len(bodies) == 1
    assert shows(bodies[0], track(2, range(20), FURNITURE))


def test_motion_is_that_of_the_upright_frames_where_it_is_less() -> None:
    person = track(1, range(40), sway=0.5)
    calm = track(2, range(30)) | track(2, range(30, 40), (9.0, 1.5, 0.3))
    assert shows(actors(recording(calm, person))[0], person)


def test_later_ids_continue_actor_1_then_actor_2_else_are_discarded() -> None:
    first, second = track(1, range(20), sway=1.0), track(2, range(25), sway=0.8)
    third, fourth = track(3, range(30, 50), sway=0.6), track(4, range(35, 50), sway=0.4)
    fifth = track(5, range(15, 40), sway=0.2)
    bodies = actors(recording(fifth, fourth, third, second, first))
    # Frames 25 to 29 show nobody but the discarded one.
    assert bodies[0, :, 0, 2].tolist() == [1] * 20 + [0] * 5 + [3] * 20
    assert bodies[1, :, 0, 2].tolist() == [2] * 25 + [0] * 5 + [4] * 15


@pytest.mark.parametrize("keep_gaps", [False, True])
def test_an_id_twice_in_a_frame(keep_gaps: bool) -> None:
    body, other = track(1, range(15)), track(2, range(15))
    lone = recording(body, other, ids=(1, 1))
    with pytest.raises(RejectedError, match="twice in one frame: found 30 appearances"):
        actors(lone, keep_gaps=keep_gaps)
    with pytest.raises(RejectedError, match="twice in one frame: found 30 appearances"):
        actors(recording(body, other, track(3, range(30)), ids=(1, 1, 2)), keep_gaps=True)
    assert len(actors(recording(body, other, track(3, range(30)), ids=(1, 1, 2)))) == 2
