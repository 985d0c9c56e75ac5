"""Generated PKU-MMD: the official layout, its oddities, and classes that can be told apart."""

from __future__ import annotations

import hashlib
import re
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from neighbours import nearest_neighbour

from skelpipe.errors import UserError
from skelpipe.prepare import synth_pku
from skelpipe.prepare.motion import perform_in_turn, performer
from skelpipe.prepare.programmes import ACTIONS, PKU, programme
from skelpipe.prepare.synth import write_recordings
from skelpipe.prepare.synth_pku import LISTS, Row, Take, files, recording, takes

SMALL: dict[str, Any] = {"classes": 4, "subjects": 3, "replications": 1, "actions": 3}
NAMES = {"pku1": r"\d{4}-[LMR]", "pku2": r"A\d\dN\d\d-[LMR]"}
PAIRS = {action for action in range(1, 52) if programme(PKU[action - 1]).partner}


def read_skeleton(text: bytes) -> npt.NDArray[np.float64]:
    """A strict reader: (T, 2, 25, 3)."""
    lines = text.decode("ascii").replace("\r\n", "\n").removesuffix("\n").split("\n")
    rows = [line.split(" ") for line in lines]
    assert all(len(row) == 150 for row in rows)
    assert all(re.fullmatch(r"0|-?\d+\.\d{4}", number) for row in rows for number in row)
    return np.array(rows, dtype=np.float64).reshape(-1, 2, 25, 3)


def read_labels(text: bytes) -> list[Row]:
    lines = text.decode("ascii").replace("\r\n", "\n").removesuffix("\n").split("\n")
    assert all(re.fullmatch(r"\d+,\d+,\d+,[12]", line) for line in lines)
    return [Row(*map(int, line.split(","))) for line in lines]


def read_list(text: bytes) -> tuple[list[str], list[str]]:
    """Names that train and that validate; each line of them ends with a stray comma."""
    heading, train, other, validate = text.decode("ascii").removesuffix("\n").split("\n")
    assert (heading, other) == ("Training videos:", "Validataion videos:")
    for line in (train, validate):
        assert re.fullmatch(r"([^ ,]+, )*[^ ,]+,", line)
    return train[:-1].split(", "), validate[:-1].split(", ")


@pytest.fixture
def faultless(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any fault, so that a test adds back the one it is about."""
    monkeypatch.setattr(synth_pku, "_FAULTS", ())
    for share in ("OVERLAPPING", "CRLF"):
        monkeypatch.setattr(synth_pku, share, 0.0)
    return monkeypatch


@pytest.mark.parametrize("name", LISTS)
def test_archive_is_the_same_for_a_seed(name: str, tmp_path: Path) -> None:
    first, again, other = (tmp_path / file for file in ("first.zip", "again.zip", "other.zip"))
    assert write_recordings(name, first, **SMALL) == 9
    write_recordings(name, again, **SMALL)
    write_recordings(name, other, seed=1, **SMALL)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_texts_are_pinned() -> None:
    texts = files(0, Take("pku2", 2, 1, 2), 12, 8)
    assert list(texts) == [
        "PKU_Skeleton_Renew/A01N02-M.txt",
        "Train_Label_PKU_final/A01N02-M.txt",
    ]
    digest = hashlib.sha256(b"".join(texts.values())).hexdigest()
    assert digest == "b036683f2f69327a0f4649e65577e0cbcce109fafc839f8cb4eb032965a7686f"


@pytest.mark.parametrize("name", LISTS)
def test_archive_is_laid_out_as_the_official_one(name: str, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_recordings(name, tmp_path / "a.zip", progress=lambda *call: calls.append(call), **SMALL)
    assert calls == [(done, 9) for done in range(1, 10)]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        texts = {member: archive.read(member) for member in archive.namelist()}
    folders: dict[str, set[str]] = {}
    for member in texts:
        folder, file = member.split("/")
        folders.setdefault(folder, set()).add(file)
    assert set(folders) == {"PKU_Skeleton_Renew", "Train_Label_PKU_final", "Split"}
    assert folders["PKU_Skeleton_Renew"] == folders["Train_Label_PKU_final"]
    recordings = {file.removesuffix(".txt") for file in folders["PKU_Skeleton_Renew"]}
    assert len(recordings) == 9
    assert all(re.fullmatch(NAMES[name], recording) for recording in recordings)

    assert folders["Split"] == set(LISTS[name].values())
    for split, file in LISTS[name].items():
        train, validate = read_list(texts[f"Split/{file}"])
        assert sorted(train + validate) == sorted(recordings)
        for key in validate:
            if split == "xview":
                assert key[-1] == "L"
            elif name == "pku1":
                assert 291 <= int(key[:4]) <= 334
            else:
                assert key[3:6] in {"N02", "N03", "N07"}
        assert {key[-1] for key in train} == ({"M", "R"} if split == "xview" else {"L", "M", "R"})

    for key in recordings:
        rows = read_labels(texts[f"Train_Label_PKU_final/{key}.txt"])
        assert len(rows) == 3  # a quarter more or less would be less than one
        assert {row.action for row in rows} <= set(ACTIONS[name][:4])
        poses_TMJC = read_skeleton(texts[f"PKU_Skeleton_Renew/{key}.txt"])
        assert len(poses_TMJC) > max(row.start for row in rows)


@pytest.mark.parametrize("name", LISTS)
def test_names_are_the_official_ones(name: str) -> None:
    most = {"pku1": (66, 4), "pku2": (13, 26)}[name]
    all_takes = list(takes(name, most[0], 3, most[1]))
    keys = {take.key for take in all_takes}
    assert len(keys) == len(all_takes)
    if name == "pku1":
        numbers = {int(key[:4]) for key in keys}
        assert min(numbers) == 2
        assert max(numbers) <= 364
        validate = {number for number in numbers if 291 <= number <= 334}
        assert validate == {int(take.key[:4]) for take in all_takes if not take.trains("xsub")}
        assert 0.1 < len(validate) / len(numbers) < 0.2
        # nobody stands in both parts
        parts = {(take.subject, take.trains("xsub")) for take in all_takes}
        assert len(parts) == 66
    else:
        assert {key[:6] for key in keys} == {
            f"A{script:02}N{subject:02}" for script in range(1, 27) for subject in range(1, 14)
        }


@pytest.mark.parametrize("name", LISTS)
def test_two_performers_and_two_views_cover_both_parts(name: str) -> None:
    all_takes = list(takes(name, 2, 2, 1))
    assert {take.key[-1] for take in all_takes} == {"L", "M"}
    for split in LISTS[name]:
        assert {take.trains(split) for take in all_takes} == {True, False}


def test_a_recording_does_not_depend_on_the_number_of_others() -> None:
    small, large = (set(takes("pku1", *sizes)) for sizes in ((2, 1, 1), (9, 3, 4)))
    assert small < large


def test_labels_show_what_is_performed(faultless: pytest.MonkeyPatch) -> None:
    """Rows in turn, with idle frames between; a partner during the interactions alone."""
    seen = set()
    for take in takes("pku1", 6, 1, 1):
        joints, present, rows = recording(0, take, 12, 8)
        assert 6 <= len(rows) <= 10
        assert all(row.start < row.end for row in rows)
        pauses = [after.start - row.end for row, after in pairwise(rows)]
        pauses += [rows[0].start, present.shape[1] - rows[-1].end]
        assert all(10 <= pause <= 40 for pause in pauses)
        assert present[0].all()
        for row in rows:
            partner = len(present) == 2 and present[1, row.start : row.end]
            assert np.all(partner) if row.action in PAIRS else not np.any(partner)
            seen.add(row.action)
        # camera metres, not centred
        assert (joints[0, :, 0, 2] > 1.2).all()
        assert (joints[0, :, 0, 2] < 4.5).all()
    assert seen == set(ACTIONS["pku1"][:12])
    assert len(seen & PAIRS) == 2


def test_nobody_leaps_between_executions() -> None:
    rng = np.random.default_rng(0)
    actor, partner = performer(rng), performer(rng)
    for _ in range(5):
        actions = rng.permutation(list(PAIRS | set(range(1, 12))))[:8]
        whats = [programme(PKU[action - 1]) for action in actions]
        shown = perform_in_turn(whats, actor, partner, rng)
        assert len(shown.bodies) == 2
        idle = np.ones(len(shown.present[0]), bool)
        for start, end in shown.spans:
            idle[start + 1 : end - 1] = False
        for body in shown.bodies:
            steps_TJ = np.linalg.norm(np.diff(body.joints, axis=0), axis=-1)
            assert steps_TJ[idle[1:] & idle[:-1]].max() < 0.2


def test_views_show_the_same_performance_turned(faultless: pytest.MonkeyPatch) -> None:
    left, middle, right = (recording(0, Take("pku2", 1, 1, view), 12, 8) for view in (1, 2, 3))
    assert [row.action for row in left[2]] == [row.action for row in middle[2]]
    inside = middle[0] - middle[0][:, :, :1]
    for (joints, _, _), degrees in ((left, -45), (right, 45)):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        # all but the sensor's noise
        away = np.linalg.norm(joints - joints[:, :, :1] - inside @ turn.T, axis=-1)
        assert np.median(away) < 0.05


def test_confidence_is_now_and_then_low(faultless: pytest.MonkeyPatch) -> None:
    rows = [row for take in takes("pku1", 12, 1, 2) for row in recording(0, take, 12, 8)[2]]
    assert 0.04 < np.mean([row.confidence == 1 for row in rows]) < 0.2


def sound(take: Take) -> tuple[synth_pku.Present, list[Row]]:
    _, present, rows = recording(0, take, 12, 8)
    return present, rows


@pytest.mark.parametrize("fault", ["_past", "_empty", "_absent", "_reversed"])
def test_faults(fault: str, faultless: pytest.MonkeyPatch) -> None:
    take = Take("pku1", 1, 1, 2)
    before, clean = sound(take)
    faultless.setattr(synth_pku, "_FAULTS", ((1.0, getattr(synth_pku, fault)),))
    present, rows = sound(take)
    changed = [(row, now) for row, now in zip(clean, rows, strict=True) if row != now]
    if fault == "_past":
        ((_, now),) = changed
        assert now is rows[-1]
        assert now.end > present.shape[1] > now.start
    if fault == "_empty":
        assert not changed
        assert sum(not present[:, row.start : row.end].any() for row in rows) == 1
    if fault == "_absent":
        assert not changed
        assert 1 <= np.sum(before.any(axis=0) & ~present.any(axis=0)) <= 20
    if fault == "_reversed":
        ((row, now),) = changed
        assert (now.start, now.end) == (row.end, row.start)


def test_overlaps(faultless: pytest.MonkeyPatch) -> None:
    faultless.setattr(synth_pku, "OVERLAPPING", 1.0)
    for take in takes("pku2", 4, 1, 1):
        _, rows = sound(take)
        over = [after.start < row.end < after.end for row, after in pairwise(rows)]
        assert 1 <= sum(over) <= 3
    _, rows = sound(Take("pku1", 1, 1, 2))
    assert not any(after.start < row.end for row, after in pairwise(rows))


def test_a_frame_without_a_body_is_a_row_of_zeros(faultless: pytest.MonkeyPatch) -> None:
    faultless.setattr(synth_pku, "_FAULTS", ((1.0, synth_pku._absent),))
    take = Take("pku1", 1, 1, 2)
    joints, present, _ = recording(0, take, 12, 8)
    skeletons, _ = files(0, take, 12, 8).values()
    poses_TMJC = read_skeleton(skeletons)
    there = np.asarray((poses_TMJC != 0).any(axis=(2, 3))).T
    assert (there[: len(present)] == present).all()
    assert not there[0].all()
    for body, (seen, shown) in enumerate(zip(joints, present, strict=True)):
        np.testing.assert_allclose(poses_TMJC[shown, body], seen[shown], atol=5.1e-5)


def test_oddities_show_at_their_rates() -> None:
    """Over 216 recordings: a rate that was lost or doubled falls out of these bounds."""
    counts = dict.fromkeys(("overlap", "past", "empty", "reversed", "absent"), 0)
    all_takes = list(takes("pku2", 12, 3, 6))
    for take in all_takes:
        _, present, rows = recording(0, take, 6, 4)
        upright = [row for row in rows if row.start < row.end]
        nobody = np.asarray(~present.any(axis=0))
        empty = [row for row in upright if nobody[row.start : row.end].all()]
        counts["overlap"] += any(
            after.start < row.end < after.end for row, after in pairwise(upright)
        )
        counts["past"] += any(row.end > present.shape[1] for row in rows)
        counts["empty"] += bool(empty)
        counts["reversed"] += len(upright) < len(rows)
        counts["absent"] += bool(nobody.any()) and not empty
    share = {what: count / len(all_takes) for what, count in counts.items()}
    assert 0.4 < share["overlap"] < 0.6
    assert 0.02 < share["past"] < 0.09
    assert 0.015 < share["empty"] < 0.08
    assert 0.02 < share["reversed"] < 0.09
    assert 0.05 < share["absent"] < 0.16


def test_some_files_end_lines_with_crlf() -> None:
    texts = [files(0, take, 2, 1).values() for take in takes("pku2", 12, 3, 6)]
    both = [{b"\r\n" in text for text in pair} for pair in texts]
    assert all(len(of_pair) == 1 for of_pair in both)
    assert 0.01 < np.mean([True in of_pair for of_pair in both]) < 0.06


def test_crlf_files_hold_the_same(faultless: pytest.MonkeyPatch) -> None:
    take = Take("pku1", 1, 1, 2)
    plain = files(0, take, 4, 2)
    faultless.setattr(synth_pku, "CRLF", 1.0)
    other = files(0, take, 4, 2)
    for path, text in other.items():
        assert text == plain[path].replace(b"\n", b"\r\n")


def test_classes_are_pku_mmds_and_mean_the_same_everywhere() -> None:
    assert sorted(ACTIONS["pku1"]) == list(range(1, 52))
    assert len(ACTIONS["pku2"]) == 41
    assert set(ACTIONS["pku2"]) < set(ACTIONS["pku1"])
    assert len(set(PKU)) == 51
    assert {12, 14, 16, 18, 21, 24, 26, 27} == PAIRS


@pytest.mark.parametrize("split", ["xsub", "xview"])
@pytest.mark.parametrize("name", LISTS)
def test_classes_can_be_told_apart(name: str, split: str, faultless: pytest.MonkeyPatch) -> None:
    clips, actions, train = [], [], []
    for take in takes(name, 12, 3, 2):
        joints, _, rows = recording(0, take, 12, 8)
        for row in rows:
            clips.append(joints[0, row.start : row.end])
            actions.append(row.action)
            train.append(take.trains(split))
    # of 12 classes; under xview, the other cameras saw the very performance
    most = 0.75 if split == "xsub" else 0.9
    assert all(0.35 < accuracy < most for accuracy in nearest_neighbour(clips, actions, train))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pku1", {"classes": 52}, "wrong number of classes"),
        ("pku2", {"classes": 42}, "wrong number of classes"),
        ("pku1", {"subjects": 67}, "wrong number of subjects"),
        ("pku2", {"subjects": 14}, "wrong number of subjects"),
        ("pku1", {"replications": 5}, "wrong number of replications"),
        ("pku2", {"replications": 27}, "wrong number of replications"),
        ("pku1", {"actions": 0}, "wrong number of actions"),
    ],
)
def test_sizes_out_of_range(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_recordings(name, tmp_path / "out.zip", **options)
    assert not list(tmp_path.iterdir())


def test_an_execution_may_be_the_only_one() -> None:
    _, _, rows = recording(0, Take("pku2", 1, 26, 1), 1, 1)
    assert len(rows) == 1
