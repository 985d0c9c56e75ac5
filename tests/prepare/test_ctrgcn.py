"""Pipeline "ctrgcn" against the published outputs and a plain-loop reading of its rules."""

from __future__ import annotations

import zipfile
from collections import Counter
from itertools import cycle, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import odd
import pytest
import raw

from skelpipe.prepare.normalise import find_pipeline
from skelpipe.prepare.ntu import parse
from skelpipe.prepare.recording import Recording, RejectedError
from skelpipe.skeleton import Topology

Array = npt.NDArray[np.float64]
Track = list[tuple[int, Array]]
"""Frame and joints of every appearance."""

SWITCHES = [
    {"gaps": gaps, "centre": centre}
    for gaps, centre in product(("closed", "kept"), ("first", "none"))
]


def ctrgcn(
    recording: Recording, topology: Topology = odd.KINECT, **switches: str
) -> npt.NDArray[np.float32]:
    pipeline = find_pipeline("ctrgcn")
    return pipeline.apply(recording, topology, pipeline.settled(switches))


def plain_ctrgcn(
    frames: odd.Frames, topology: Topology, tracked: bool, gaps: str, centre: str
) -> Array | None:
    """The same, one rule after the other: (M, T, J, 3), or None where it must be rejected."""
    joints = len(topology.joints)
    if tracked:
        found = plain_actors(frames, joints, gaps == "kept")
        if found is None:
            return None
        slots, lone = found
    else:
        slots = np.zeros((max(map(len, frames), default=0), len(frames), joints, 3))
        for frame, bodies in enumerate(frames):
            for slot, (_, xyz) in enumerate(bodies):
                slots[slot, frame] = xyz
        lone = False
    out = []
    origin: Array | None = None
    for body in slots:
        if not body.any():
            continue
        moved = np.zeros_like(body)
        for frame, xyz in enumerate(body):
            if origin is None and xyz.any():
                origin = xyz[topology.centre].copy() if centre == "first" else np.zeros(3)
                for before in range(frame if lone else 0):
                    moved[before] = -origin
            if origin is not None and (xyz.any() or lone):
                for joint in range(joints):
                    for axis in range(3):
                        moved[frame, joint, axis] = xyz[joint, axis] - origin[axis]
        out.append(moved)
    return np.array(out) if out else None


def plain_actors(frames: odd.Frames, joints: int, keep_gaps: bool) -> tuple[Array, bool] | None:
    """The actors (2, T, J, 3), and whether the recording holds one id only."""
    seen: dict[int, Track] = {}
    length = 0
    for bodies in frames:
        if not bodies:
            continue
        for number, xyz in bodies:
            track = seen.setdefault(number, [])
            track.append((track[-1][0] + 1 if track and not keep_gaps else length, xyz))
        length += 1
    if not seen:
        return None

    def motion(track: Track) -> float:
        total = 0.0
        for axis in range(3):
            values = [value for _, xyz in track for value in xyz[:, axis].tolist()]
            mean = sum(values) / len(values)
            total += sum((value - mean) ** 2 for value in values) / len(values)
        return total

    def upright(xyz: Array) -> bool:
        x, y, _ = xyz.T.tolist()
        return bool(max(x) - min(x) <= 0.8 * (max(y) - min(y)))

    lone = len(seen) == 1
    order = list(seen)
    if not lone:
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
    slots = np.zeros((2, length, joints, 3))
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
        if end >= length or len({frame for frame, _ in seen[number]}) < len(seen[number]):
            return None
        for frame, xyz in seen[number]:
            slots[slot, frame] = xyz
    if not lone:
        slots = slots[:, [bool(slots[:, frame].any()) for frame in range(length)]]
    return slots, lone


def compare(rng: np.random.Generator, count: int) -> Counter[str]:
    """Ours against the plain loops on generated recordings; what became of these."""
    outcomes: Counter[str] = Counter()
    for _, switches in zip(range(count), cycle(SWITCHES), strict=False):
        topology = odd.topology(rng)
        tracked = rng.random() < 0.75
        made = (odd.tracked if tracked else odd.untracked)(rng, len(topology.joints))
        expected = plain_ctrgcn(odd.in_frames(made), topology, tracked, **switches)
        kind = "tracked" if tracked else "untracked"
        try:
            poses = ctrgcn(made, topology, **switches)
        except RejectedError:
            assert expected is None
            outcomes[f"{kind} rejected"] += 1
            continue
        assert expected is not None
        assert poses.dtype == np.float32
        assert poses.shape == expected.shape
        np.testing.assert_allclose(poses, expected, rtol=0, atol=1e-6)
        outcomes[f"{kind} {len(poses)}"] += 1
    return outcomes


def test_equals_the_plain_loops_on_odd_recordings() -> None:
    outcomes = compare(np.random.default_rng(4), 400)
    assert len(outcomes) == 7  # rejected, one body, two; without identities three as well
    assert min(outcomes.values()) >= 5, outcomes


@pytest.mark.slow
def test_equals_the_plain_loops_on_thousands_of_odd_recordings() -> None:
    outcomes = compare(np.random.default_rng(5), 8000)
    assert min(outcomes.values()) >= 100, outcomes


def test_equals_the_plain_loops_through_text() -> None:
    rng = np.random.default_rng(6)
    kept = 0
    for _ in range(20):
        frames = odd.in_frames(odd.tracked(rng, 25))
        read = parse(raw.skeleton(frames))
        expected = plain_ctrgcn(odd.in_frames(read), odd.KINECT, True, "closed", "first")
        if expected is None:
            with pytest.raises(RejectedError):
                ctrgcn(read)
        else:
            np.testing.assert_allclose(ctrgcn(read), expected, rtol=0, atol=1e-6)
            kept += 1
    assert kept > 10


def person(rng: np.random.Generator, number: int, frames: range) -> dict[int, raw.Body]:
    return {frame: (number, raw.joints(rng)) for frame in frames}


def recording(length: int, *tracks: dict[int, raw.Body]) -> Recording:
    frames = [[track[frame] for track in tracks if frame in track] for frame in range(length)]
    return parse(raw.skeleton(frames))


def test_first_spine_is_the_origin_and_translation_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    made = recording(20, person(rng, 1, range(20)), person(rng, 2, range(20)))
    shifted = Recording(made.frames, made.frame_R, made.id_R, made.xyz_RJC + np.array([1, 2, 3]))
    poses = ctrgcn(made)
    assert poses.shape == (2, 20, 25, 3)
    assert (poses[0, 0, 1] == 0).all()
    np.testing.assert_allclose(poses, ctrgcn(shifted), atol=1e-5)


def test_a_reissued_id_continues_the_actor() -> None:
    rng = np.random.default_rng(6)
    made = recording(40, person(rng, 1, range(20)), person(rng, 2, range(20, 40)))
    assert ctrgcn(made).shape == (1, 40, 25, 3)


def test_a_gap_in_the_track_of_one_of_two_closes_unless_it_is_kept() -> None:
    rng = np.random.default_rng(7)
    gap = {f: b for f, b in person(rng, 1, range(30)).items() if not 10 <= f < 15}
    made = recording(30, gap, person(rng, 2, range(30)))
    for gaps, absent in ("closed", range(25, 30)), ("kept", range(10, 15)):
        poses = ctrgcn(made, gaps=gaps)
        present = poses.any(axis=(2, 3))
        assert sorted(present.sum(axis=1).tolist()) == [25, 30]
        assert np.flatnonzero(~present.all(axis=0)).tolist() == list(absent)


def test_without_centre_the_metres_are_the_cameras() -> None:
    rng = np.random.default_rng(8)
    made = recording(5, person(rng, 1, range(5)))
    np.testing.assert_array_equal(ctrgcn(made, centre="none")[0], made.xyz_RJC.astype(np.float32))


def test_a_recording_of_one_id_passes_untouched_however_short_or_long() -> None:
    rng = np.random.default_rng(8)
    for length in (1, 400):
        made = recording(length, person(rng, 1, range(length)))
        assert ctrgcn(made).shape == (1, length, 25, 3)


def test_an_empty_frame_of_the_only_actor_is_moved_as_published() -> None:
    rng = np.random.default_rng(9)
    bodies = person(rng, 1, range(3)) | {1: (1, np.zeros((25, 3)))}
    poses = ctrgcn(recording(3, bodies))
    np.testing.assert_array_equal(
        poses[0, 1], np.tile(-bodies[0][1][1], (25, 1)).astype(np.float32)
    )


def test_a_clip_without_identities_keeps_its_frames_and_its_order() -> None:
    rng = np.random.default_rng(10)
    poses = rng.uniform(1, 2, (3, 8, 25, 3))
    poses[0] = 0
    poses[1, :2] = 0
    poses[2, 5] = 0
    stored = ctrgcn(Recording.of_slots(poses))
    assert stored.shape == (2, 8, 25, 3)
    assert (stored[0, 2, 1] == 0).all()  # the first body that is there at all gives the origin
    assert not stored[0, :2].any()
    assert not stored[1, 5].any()
    np.testing.assert_allclose(stored[1, 0], poses[2, 0] - poses[1, 2, 1], atol=1e-6)


@pytest.mark.parametrize(
    "frames",
    [[], [[], []], [[(1, np.zeros((25, 3)))]], [[(1, np.ones((25, 3))), (2, np.ones((25, 3)))]]],
)
def test_no_usable_body(frames: odd.Frames) -> None:
    with pytest.raises(RejectedError, match="no usable body"):
        ctrgcn(parse(raw.skeleton(frames)))


@pytest.mark.parametrize("shape", [(2, 6, 25, 3), (1, 0, 25, 3), (0, 3, 25, 3)])
def test_an_empty_clip(shape: tuple[int, ...]) -> None:
    with pytest.raises(RejectedError, match="empty clip"):
        ctrgcn(Recording.of_slots(np.zeros(shape)))


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
            np.testing.assert_allclose(poses, expected, rtol=0, atol=1e-5)
            equal += 1
        assert set(rejected).isdisjoint(published.files)
    assert (equal, len(rejected)) == (58, 2)
