"""Generated recordings: genuine text, the same bytes for a seed, hard enough and no harder."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from neighbours import nearest_neighbour
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.manifest import FieldSplit, load_dataset
from skelpipe.prepare import synth
from skelpipe.prepare.motion import KINECT, forward_kinematics, perform, performer, turned
from skelpipe.prepare.programmes import ACTIONS, programme
from skelpipe.prepare.synth import Take, recording, seen, takes, write_recordings

SMALL: dict[str, Any] = {"classes": 3, "subjects": 3, "replications": 1}
SPLITS = {"ntu60": ("xsub", "xview"), "ntu120": ("xsub", "xset")}
NAME = re.compile(r"nturgb\+d_skeletons/S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}\.skeleton")
INTEGER = re.compile(r"\d+")
DECIMAL = re.compile(r"-?\d+\.\d+")

Frames = list[dict[int, np.ndarray[Any, np.dtype[np.float64]]]]


def read(text: bytes) -> Frames:
    """A strict reader: the bodies of each frame, number -> (25, 12); nothing odd gets past it."""
    if b"\r" in text:
        assert text.count(b"\r\n") == text.count(b"\n") == text.count(b"\r")
    lines = iter(text.decode("ascii").replace("\r\n", "\n").removesuffix("\n").split("\n"))
    frames: Frames = []
    for _ in range(int(next(lines))):
        bodies = {}
        for _ in range(int(next(lines))):
            header = next(lines).split(" ")
            assert len(header) == 10
            assert re.fullmatch(r"\d{17}", header[0])
            assert all(INTEGER.fullmatch(header[place]) for place in (1, 2, 3, 4, 5, 6, 9))
            assert all(DECIMAL.fullmatch(value) for value in header[7:9])
            assert next(lines) == "25"
            rows = [next(lines).split(" ") for _ in range(25)]
            assert all(len(row) == 12 and row[11] in {"1", "2"} for row in rows)
            assert all(DECIMAL.fullmatch(value) for row in rows for value in row[:11])
            assert int(header[0]) not in bodies
            bodies[int(header[0])] = np.array(rows, dtype=np.float64)
        frames.append(bodies)
    assert next(lines, None) is None
    return frames


def split_of(name: str, split: str) -> FieldSplit:
    found = load_dataset(name).split(split)
    assert isinstance(found, FieldSplit)
    return found


@pytest.fixture
def faultless(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any fault, so that a test adds back the one it is about."""
    monkeypatch.setattr(synth, "_FAULTS", ())
    for share in ("EMPTY", "SHUFFLED", "CRLF"):
        monkeypatch.setattr(synth, share, 0.0)
    return monkeypatch


def test_archive_is_the_same_for_a_seed(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first.zip", "again.zip", "other.zip"))
    assert write_recordings("ntu60", first, **SMALL) == 27
    write_recordings("ntu60", again, **SMALL)
    write_recordings("ntu60", other, seed=1, **SMALL)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.zip",
        "first.zip",
        "other.zip",
    ]


def test_archive_holds_every_take_once(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "small.zip"
    calls: list[tuple[int, int]] = []
    write_recordings("ntu60", out, progress=lambda *call: calls.append(call), **SMALL)
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
        assert all(NAME.fullmatch(name) for name in names)
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        read(archive.read(names[0]))
    assert len(set(names)) == len(names) == 27
    assert calls[-1] == (27, 27)


def test_a_recording_depends_on_nothing_but_seed_and_name() -> None:
    sizes = (takes("ntu60", 4, 2, 3, 1), takes("ntu60", 12, 4, 3, 2))
    small, large = ({take.key: take for take in some} for some in sizes)
    assert set(small) < set(large)
    key = "S001C002P001R001A023"
    assert recording(3, small[key]) == recording(3, large[key])


def test_texts_are_pinned() -> None:
    digest = hashlib.sha256(recording(0, Take(1, 2, 1, 1, 23))).hexdigest()
    assert digest == "a3311afe1f875161ac6aba3c45db4a3a69f7df2e304b2ea67dedccf1ce291499"
    texts = [recording(0, take) for take in takes("ntu60", 60, 1, 1, 1)]
    digest = hashlib.sha256(b"".join(texts)).hexdigest()
    assert digest == "d9debfb620d4d8975ca6fedf5564972bd2020c1c40b657ea88502f5f14a0e870"


def test_both_parts_of_every_split_are_covered() -> None:
    all_takes = list(takes("ntu60", 12, 12, 3, 2))
    dataset = load_dataset("ntu60")
    for split in (split_of("ntu60", name) for name in SPLITS["ntu60"]):
        parts = {split.part(getattr(take, split.field)) for take in all_takes}
        assert parts == {"train", "test"}
    assert len({take.setup for take in all_takes}) == 2
    assert len({take.action for take in all_takes} & set(dataset.mutual)) == 2


def test_every_recording_is_genuine_text() -> None:
    kinds: collections.Counter[str] = collections.Counter()
    for take in takes("ntu60", 6, 8, 3, 1):
        text = recording(0, take)
        frames = read(text)
        assert 30 <= len(frames) <= 150
        people = 2 if take.action in load_dataset("ntu60").mutual else 1
        numbers = {number for bodies in frames for number in bodies}
        order = [list(bodies) for bodies in frames if len(bodies) > 1]
        kinds["crlf"] += b"\r\n" in text
        kinds["no body"] += not numbers
        kinds["empty frames"] += any(not bodies for bodies in frames)
        kinds["more bodies than people"] += len(numbers) > people
        kinds["shuffled"] += len(order) > 20 and len({tuple(bodies) for bodies in order}) > 3
    assert set(+kinds) >= {"crlf", "empty frames", "more bodies than people"}
    assert kinds["no body"] <= 2


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_few_recordings_are_without_a_body(seed: int) -> None:
    empty = sum(len(recording(seed, take)) < 1000 for take in takes("ntu60", 12, 12, 1, 1))
    assert empty <= 3


@pytest.mark.parametrize("fault", ["_late", "_lost", "_reissued", "_furniture", "_flicker"])
def test_faults(fault: str, faultless: pytest.MonkeyPatch) -> None:
    take = Take(1, 2, 1, 1, 23)
    sound = read(recording(0, take))
    (person,) = sound[0]
    assert all(list(bodies) == [person] for bodies in sound)
    faultless.setattr(synth, "_FAULTS", ((1.0, getattr(synth, fault)),))
    frames = read(recording(0, take))
    assert len(frames) == len(sound)
    shown = collections.Counter(number for bodies in frames for number in bodies)
    if fault == "_late":
        assert not frames[0]
        assert frames[11]
    if fault == "_lost":
        assert frames[0].keys() == frames[-1].keys()
        assert 1 <= sum(not bodies for bodies in frames) <= 6
    if fault == "_reissued":
        assert frames[0].keys() != frames[-1].keys()
        assert len(shown) == 2
    if fault == "_furniture":
        box = next(frames[0][number] for number in shown if number != person)
        assert np.ptp(box[:, 0]) > 0.8 * np.ptp(box[:, 1])
    if fault == "_flicker":
        assert min(shown.values()) <= 10


def test_no_body_and_shuffled_bodies(faultless: pytest.MonkeyPatch) -> None:
    pair = Take(1, 2, 1, 1, 50)
    faultless.setattr(synth, "SHUFFLED", 1.0)
    assert len({tuple(bodies) for bodies in read(recording(0, pair))}) == 2
    faultless.setattr(synth, "EMPTY", 1.0)
    assert not any(read(recording(0, pair)))


@pytest.mark.parametrize("action", load_dataset("ntu120").mutual)
def test_mutual_classes_have_two_people_face_to_face(action: int) -> None:
    actor, other = seen(0, Take(1, 2, 1, 1, action))
    assert actor.joints.shape == other.joints.shape
    away = other.joints[:, 0] - actor.joints[:, 0]
    assert 0.3 < np.linalg.norm(away[0, [0, 2]]) < 2.5
    for body, sign in ((actor, 1), (other, -1)):
        right = body.joints[0, 16] - body.joints[0, 12]
        ahead = np.cross([0, 1, 0], right)
        assert sign * ahead @ away[0] > 0


def test_cameras_see_the_same_performance_turned() -> None:
    left, middle, right = (seen(0, Take(1, camera, 1, 1, 24))[0] for camera in (1, 2, 3))
    for body, degrees in ((left, -45), (right, 45)):
        # Differences within the body are free of the place that a camera puts it at.
        inside = replace(middle, joints=middle.joints - middle.joints[:, :1])
        expected = turned(inside, np.radians(degrees))
        np.testing.assert_allclose(body.joints - body.joints[:, :1], expected.joints, atol=1e-9)
        np.testing.assert_allclose(body.turns, expected.turns, atol=1e-9)
    angle = np.radians(30)
    east = replace(middle, joints=np.tile([1.0, 0, 0], (1, 25, 1)))
    np.testing.assert_allclose(
        turned(east, angle).joints[0, 0], [np.cos(angle), 0, -np.sin(angle)], atol=1e-12
    )


def test_people_are_of_human_size_and_before_the_sensor() -> None:
    for action in ACTIONS["ntu120"]:
        for body in seen(0, Take(2, 3, 2, 1, action)):
            joints = body.joints
            assert (joints[:, 0, 2] > 1.2).all()
            assert (joints[:, 0, 2] < 4.5).all()
            trunk = np.linalg.norm(np.diff(joints[:, [0, 1, 20, 2, 3]], axis=1), axis=-1).sum(1)
            assert (trunk > 0.5).all()
            assert (trunk < 1.1).all()
            assert np.isfinite(joints).all()


def test_bones_keep_their_length() -> None:
    rng = np.random.default_rng(0)
    who = performer(rng)
    body = forward_kinematics(rng.normal(0, 1, (5, 25, 3)), who.bones)
    for joint, parent in enumerate(KINECT.parents):
        if parent >= 0:
            bone = np.linalg.norm(body.joints[:, joint] - body.joints[:, parent], axis=-1)
            np.testing.assert_allclose(bone, np.linalg.norm(who.bones[joint]), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(body.turns, axis=-1), 1, atol=1e-9)


def test_classes_do_not_depend_on_the_seed() -> None:
    assert sorted(ACTIONS["ntu60"]) == list(range(1, 61))
    assert sorted(ACTIONS["ntu120"]) == list(range(1, 121))
    assert programme(33) == programme(33) != programme(32)
    assert len({programme(action).swings for action in ACTIONS["ntu60"]}) >= 57
    assert len({programme(action) for action in ACTIONS["ntu120"]}) == 120
    mutual = {action for action in ACTIONS["ntu120"] if programme(action).partner}
    assert mutual == set(load_dataset("ntu120").mutual)


@pytest.mark.parametrize("subjects", [2, 3, 12, 106])
@pytest.mark.parametrize("classes", [1, 2, 12, 24, 120])
def test_any_ntu120_covers_both_parts_of_every_split(classes: int, subjects: int) -> None:
    all_takes = list(takes("ntu120", classes, subjects, 1, 1))
    for split in (split_of("ntu120", name) for name in SPLITS["ntu120"]):
        values = {getattr(take, split.field) for take in all_takes}
        assert {split.part(value) for value in values} == {"train", "test"}
    assert len({take.subject for take in all_takes}) == subjects
    shown = {take.action for take in all_takes}
    assert len(shown) == classes
    assert max(shown) >= 106
    assert shown & set(load_dataset("ntu120").mutual)


def test_ntu120_is_named_as_the_real_one() -> None:
    all_takes = list(takes("ntu120", 120, 106, 3, 1))
    assert len({take.key for take in all_takes}) == len(all_takes)
    assert {take.setup for take in all_takes} == set(range(1, 33))
    assert {take.subject for take in all_takes} == set(range(1, 107))
    for take in all_takes:
        assert (take.setup <= 17) == (take.action <= 60)
        assert take.subject <= 40 or take.action > 60


def test_24_classes_of_ntu120_hold_new_and_mutual_ones() -> None:
    shown = set(ACTIONS["ntu120"][:24])
    assert len({action for action in shown if action > 60}) == 12
    assert len({action for action in shown if action >= 106}) >= 4
    assert len({action for action in shown if 50 <= action <= 60}) >= 2


def test_either_hand_may_lead() -> None:
    leads = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        who = performer(rng)
        (body,) = perform(programme(23), who, who, rng)
        hands = body.joints[:, [7, 11], 1].max(axis=0)
        leads.add(int(hands.argmax()))
    assert leads == {0, 1}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_nearest_neighbour_of_raw_clips_is_right_in_40_to_70_percent(seed: int) -> None:
    split = split_of("ntu60", "xsub")
    all_takes = list(takes("ntu60", 12, 12, 3, 2))
    found = nearest_neighbour(
        [seen(seed, take)[0].joints for take in all_takes],
        [take.action for take in all_takes],
        [split.part(take.subject) == "train" for take in all_takes],
    )
    assert all(0.4 <= accuracy <= 0.7 for accuracy in found)


@pytest.mark.parametrize("split", SPLITS["ntu120"])
def test_24_classes_of_ntu120_can_be_told_apart(split: str) -> None:
    parts = split_of("ntu120", split)
    all_takes = list(takes("ntu120", 24, 12, 3, 1))
    found = nearest_neighbour(
        [seen(0, take)[0].joints for take in all_takes],
        [take.action for take in all_takes],
        [parts.part(getattr(take, parts.field)) == "train" for take in all_takes],
    )
    assert all(0.2 <= accuracy <= 0.7 for accuracy in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 61}, "wrong number of classes"),
        ({"subjects": 0}, "wrong number of subjects"),
        ({"cameras": 4}, "wrong number of cameras"),
        ({"replications": 1000}, "wrong number of replications"),
        ({"seed": -1}, "wrong seed"),
    ],
)
def test_sizes_out_of_range(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_recordings("ntu60", tmp_path / "out.zip", **options)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_archive_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_recordings("ntu60", tmp_path / "out.zip", progress=stop, **SMALL)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_recordings("ntu60", tmp_path / "file" / "out.zip", **SMALL)
    with pytest.raises(UserError, match="is a folder"):
        write_recordings("ntu60", tmp_path, **SMALL)


def invoke(*arguments: str) -> Any:
    """Run the command line as its script would."""
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="skelpipe")
    app = importlib.import_module(script.module).app
    return CliRunner().invoke(app, ["synth", *arguments])


def test_command_writes_and_refuses_to_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out.zip"
    sizes = ["--classes", "1", "--subjects", "1", "--cameras", "1", "--replications", "1"]
    result = invoke("ntu60", str(out), *sizes)
    assert result.exit_code == 0
    assert "1 generated recordings" in result.output
    before = out.read_bytes()
    result = invoke("ntu60", str(out), *sizes, "--seed", "1")
    assert isinstance(result.exception, UserError)
    assert "--force" in str(result.exception)
    assert out.read_bytes() == before
    assert invoke("ntu60", str(out), *sizes, "--seed", "1", "--force").exit_code == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize("name", synth.NAMES)
def test_command_knows_every_data_set(name: str, tmp_path: Path) -> None:
    sizes = ["--classes", "1", "--subjects", "2", "--replications", "1", "--actions", "1"]
    result = invoke(name, str(tmp_path / "out.zip"), *sizes)
    assert result.exit_code == 0
    assert "6 generated recordings" in result.output
    assert name in invoke("--help").output
    assert name in str(invoke("nothing", str(tmp_path / "other.zip")).exception)


def test_command_suggests_the_nearest_data_set(tmp_path: Path) -> None:
    result = invoke("ntu6", str(tmp_path / "out.zip"))
    assert isinstance(result.exception, UserError)
    assert "did you mean 'ntu60'" in str(result.exception)
    assert not list(tmp_path.iterdir())
