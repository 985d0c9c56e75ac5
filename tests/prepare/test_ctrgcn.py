"""Pipeline "ctrgcn" against the published outputs and a plain-loop reading of its rules."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import raw

from skelpipe.manifest import load_topology
from skelpipe.prepare.normalise import find_pipeline
from skelpipe.prepare.ntu import parse
from skelpipe.prepare.recording import Recording, RejectedError

Array = npt.NDArray[np.float64]
KINECT = load_topology("kinect_v2")


def ctrgcn(recording: Recording, **switches: str) -> npt.NDArray[np.float32]:
    pipeline = find_pipeline("ctrgcn")
    return pipeline.apply(recording, KINECT, pipeline.settled(switches))


def plain_ctrgcn(frames: list[list[raw.Body]]) -> Array | None:
    """The same, one rule after the other: (M, T, 25, 3), or None where no body is usable."""
    seen: dict[int, list[tuple[int, Array]]] = {}  # id -> (frame, joints)
    length = 0
    for bodies in frames:
        if not bodies:
            continue
        for number, xyz in bodies:
            track = seen.setdefault(number, [])
            track.append((track[-1][0] + 1 if track else length, xyz))
        length += 1
    if not seen or any(track[-1][0] >= length for track in seen.values()):
        return None

    def motion(track: list[tuple[int, Array]]) -> float:
        total = 0.0
        for axis in range(3):
            values = [float(joint[axis]) for _, xyz in track for joint in xyz]
            mean = sum(values) / len(values)
            total += sum((value - mean) ** 2 for value in values) / len(values)
        return total

    def upright(xyz: Array) -> bool:
        return max(xyz[:, 0]) - min(xyz[:, 0]) <= 0.8 * (max(xyz[:, 1]) - min(xyz[:, 1]))

    several = len(seen) > 1
    order = list(seen)
    if several:
        order = [number for number in order if len(seen[number]) > 11]
        if not order:
            return None
        motions = {number: motion(seen[number]) for number in order}
        if len(order) > 1:
            for number in list(order):
                if len(order) == 1:
                    break
                good = [entry for entry in seen[number] if upright(entry[1])]
                bad = len(seen[number]) - len(good)
                if bad / len(seen[number]) >= 0.69754:
                    order.remove(number)
                elif bad:
                    motions[number] = min(motions[number], motion(good))
        order.sort(key=lambda number: -motions[number])
    slots = np.zeros((2, length, 25, 3))
    spans: list[list[int]] = []
    for number in order:
        start, end = seen[number][0][0], seen[number][-1][0]
        if not spans:
            spans = [[start, end], [0, 0]]
            slot = 0
        else:
            free = [s for s in (0, 1) if min(spans[s][1], end) - max(spans[s][0], start) <= 0]
            if not free:
                continue
            slot = free[0]
            spans[slot] = [min(start, spans[slot][0]), max(end, spans[slot][1])]
        for frame, xyz in seen[number]:
            slots[slot, frame] = xyz
    if several:
        slots = slots[:, [bool(slots[:, frame].any()) for frame in range(length)]]
    first = next((frame for frame in range(slots.shape[1]) if slots[0, frame].any()), None)
    if first is None:
        return None
    origin = slots[0, first, 1].copy()
    out = np.zeros_like(slots)
    for slot in range(2):
        for frame in range(slots.shape[1]):
            if slots[slot, frame].any() or (len(order) == 1 and slot == 0):
                out[slot, frame] = slots[slot, frame] - origin
    return np.array([out[slot] for slot in range(2) if slots[slot].any()])


def odd_recording(rng: np.random.Generator) -> list[list[raw.Body]]:
    """Up to eight ids that come, go, return and flicker; zeros, furniture and empty frames."""
    frames: list[list[raw.Body]] = [[] for _ in range(int(rng.integers(1, 70)))]
    furnished = rng.random() < 0.1  # nothing but tables and chairs
    for number in range(int(rng.integers(0, 9))):
        start = int(rng.integers(len(frames)))
        stop = min(start + int(rng.choice([8, 16, 32, 70])), len(frames))
        seldom = rng.choice([0.0, 0.0, 0.2, 0.6])
        wide = 1.0 if furnished else rng.choice([0.0, 0.0, 0.3, 0.65, 0.75, 1.0])
        still = rng.random() < 0.1
        standing = raw.joints(rng)
        for frame in range(start, stop):
            if rng.random() < seldom:
                continue
            xyz = (
                standing
                if still
                else raw.joints(
                    rng, rng.uniform(1.1 if furnished else 0.6, 1.2) if rng.random() < wide else 0.3
                )
            )
            frames[frame].append((raw.PERSON + number, xyz * (rng.random() > 0.02)))
    for bodies in frames:
        order = rng.permutation(len(bodies))
        bodies[:] = [bodies[i] for i in order] if rng.random() > 0.05 else []
    return frames


def test_equals_the_plain_loops_on_odd_recordings() -> None:
    rng = np.random.default_rng(4)
    outcomes = {"rejected": 0, 1: 0, 2: 0}
    for _ in range(300):
        frames = odd_recording(rng)
        expected = plain_ctrgcn(frames)
        try:
            poses = ctrgcn(parse(raw.skeleton(frames)))
        except RejectedError:
            assert expected is None
            outcomes["rejected"] += 1
            continue
        assert expected is not None
        assert poses.dtype == np.float32
        assert poses.shape == expected.shape
        np.testing.assert_allclose(poses, expected, atol=1e-6)
        outcomes[len(poses)] += 1
    assert min(outcomes.values()) > 20, outcomes


def person(rng: np.random.Generator, number: int, frames: range) -> dict[int, raw.Body]:
    return {frame: (number, raw.joints(rng)) for frame in frames}


def recording(length: int, *tracks: dict[int, raw.Body]) -> list[list[raw.Body]]:
    return [[track[frame] for track in tracks if frame in track] for frame in range(length)]


def test_first_spine_is_the_origin_and_translation_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    frames = recording(20, person(rng, 1, range(20)), person(rng, 2, range(20)))
    moved = [[(number, xyz + np.array([1, 2, 3])) for number, xyz in bodies] for bodies in frames]
    poses = ctrgcn(parse(raw.skeleton(frames)))
    assert poses.shape == (2, 20, 25, 3)
    assert (poses[0, 0, 1] == 0).all()
    np.testing.assert_allclose(poses, ctrgcn(parse(raw.skeleton(moved))), atol=1e-5)


def test_a_reissued_id_continues_the_actor() -> None:
    rng = np.random.default_rng(6)
    frames = recording(40, person(rng, 1, range(20)), person(rng, 2, range(20, 40)))
    assert ctrgcn(parse(raw.skeleton(frames))).shape == (1, 40, 25, 3)


def test_a_gap_in_the_track_of_one_of_two_closes() -> None:
    rng = np.random.default_rng(7)
    gap = {f: b for f, b in person(rng, 1, range(30)).items() if not 10 <= f < 15}
    poses = ctrgcn(parse(raw.skeleton(recording(30, gap, person(rng, 2, range(30))))))
    present = poses.any(axis=(2, 3)).sum(axis=1)
    assert sorted(present.tolist()) == [25, 30]
    short = present.argmin()
    assert not poses[short, 25:].any()


def test_a_recording_of_one_id_passes_untouched_however_short_or_long() -> None:
    rng = np.random.default_rng(8)
    for length in (1, 400):
        frames = recording(length, person(rng, 1, range(length)))
        assert ctrgcn(parse(raw.skeleton(frames))).shape == (1, length, 25, 3)


def test_an_id_twice_in_a_frame_is_rejected_where_it_overflows() -> None:
    rng = np.random.default_rng(9)
    frames: list[list[raw.Body]] = [[(1, raw.joints(rng)), (1, raw.joints(rng))] for _ in range(5)]
    with pytest.raises(RejectedError, match="twice in one frame"):
        ctrgcn(parse(raw.skeleton(frames)))


@pytest.mark.parametrize(
    "frames",
    [[], [[], []], [[(1, np.zeros((25, 3)))]], [[(1, np.ones((25, 3))), (2, np.ones((25, 3)))]]],
)
def test_no_usable_body(frames: list[list[raw.Body]]) -> None:
    with pytest.raises(RejectedError, match="no usable body"):
        ctrgcn(parse(raw.skeleton(frames)))


def test_equals_the_published_outputs(real_data: Path) -> None:
    folder = real_data / "odd"
    if not folder.is_dir():
        pytest.skip(f"no odd recordings in {folder}")
    rejected, equal = [], 0
    with np.load(folder / "ctrgcn.npz") as published, zipfile.ZipFile(folder / "odd_ntu.zip") as z:
        for name in z.namelist():
            key = Path(name).stem
            try:
                poses = ctrgcn(parse(z.read(name)))
            except RejectedError:
                rejected.append(key)
                continue
            expected = published[key].transpose(1, 0, 2, 3)
            expected = expected[expected.any(axis=(1, 2, 3))]
            assert poses.shape == expected.shape
            np.testing.assert_allclose(poses, expected, atol=1e-5)
            equal += 1
        assert set(rejected).isdisjoint(published.files)
    assert (equal, len(rejected)) == (58, 2)
