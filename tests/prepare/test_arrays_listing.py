from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_arrays import manifest, poses, read_all

from skelpipe.errors import UserError
from skelpipe.prepare.archive import LARGEST
from skelpipe.prepare.arrays_listing import key_of, list_arrays
from skelpipe.prepare.listing import Listing

ALL = {"splits": {"all": {"by": {"pattern": "(.)"}, "train": ["w"], "test": ["s"]}}}


def write(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", poses(number))


def listed(folder: Path, changes: dict[str, Any] | None = None, **source: Any) -> Listing:
    return list_arrays(manifest(folder, {**ALL, **(changes or {})}, **source), [])


def keys(listing: Listing) -> list[str]:
    return [unit.clips[0].key for unit in listing.units]


# --- names and files ---


def test_names_become_keys() -> None:
    for name, key in [
        ("wave-3_b", "wave-3_b"), ("a b/c.d", "a_b_c_d"), ("é", "_"), ("", "_"),
        ("x" * 90, "x" * 90),
    ]:  # fmt: skip
        assert key_of(name) == key
    long = [key_of("x" * 90 + str(number)) for number in range(9)]
    assert len(set(long)) == 9
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{90}", key) for key in long)


def test_files_are_named_from_where_the_pattern_begins(tmp_path: Path) -> None:
    write(tmp_path / "raw", "wave-1", "day 2/wave-1", "other")
    assert keys(listed(tmp_path, path="raw/**/*-1.npy")) == ["day_2_wave-1", "wave-1"]
    assert keys(listed(tmp_path, path="raw/wave-1.npy")) == ["wave-1"]


def test_the_same_name_twice_is_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, "wave-1/a", "wave-1_a")
    with pytest.raises(UserError, match="two samples have the same name") as caught:
        listed(tmp_path, path="**/*.npy")
    assert "'wave-1/a' in" in str(caught.value)
    assert "'wave-1_a' in" in str(caught.value)


def test_other_folders_and_files_are_named_with_raw(tmp_path: Path) -> None:
    write(tmp_path / "a", "wave-1")
    write(tmp_path / "b", "sit-1")
    dataset = manifest(tmp_path / "home", ALL)
    assert keys(list_arrays(dataset, [tmp_path / "a", tmp_path / "b"])) == ["sit-1", "wave-1"]
    assert keys(list_arrays(dataset, [tmp_path / "a/wave-1.npy"])) == ["wave-1"]
    with pytest.raises(UserError, match="there are no raw data"):
        list_arrays(dataset, [tmp_path / "c"])
    with pytest.raises(UserError, match="no file fits the pattern"):
        list_arrays(dataset, [tmp_path])
    with pytest.raises(UserError, match=r"there are no raw data[\s\S]*no\.npy"):
        list_arrays(manifest(tmp_path, ALL, path="no.npy"), [])


def test_files_of_a_pattern_name_their_samples(tmp_path: Path) -> None:
    for day in ("mon", "tue"):
        np.savez(tmp_path / f"{day}.npz", **{"wave-1": poses(1), "sit-2": poses(2)})
    changes = {"labels": {"pattern": "/(.+)-"}, "splits": {"a": {"by": {"pattern": "(.+)/"},
               "train": ["mon"], "test": ["tue"]}}}  # fmt: skip
    listing = listed(tmp_path, changes, path="*.npz")
    assert keys(listing) == ["mon_sit-2", "mon_wave-1", "tue_sit-2", "tue_wave-1"]
    assert [unit.parts["a"] for unit in listing.units] == ["train", "train", "test", "test"]


def test_one_damaged_file_among_others_costs_its_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", **{"wave-1": poses(1)})
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[: len(whole) // 2])
    listing = listed(tmp_path, {"labels": {"pattern": "/(.+)-"}}, path="*.npz")
    assert keys(listing) == ["good_wave-1"]
    ((key, source, _),) = listing.refused
    assert (key, source) == ("bad", "bad.npz")


@pytest.mark.parametrize(
    ("suffix", "largest"), [("npy", LARGEST), ("json", LARGEST // 4), ("csv", LARGEST // 4)]
)
def test_a_file_too_large_is_refused_unread(tmp_path: Path, suffix: str, largest: int) -> None:
    for number, size in enumerate((largest, largest + 1)):
        with (tmp_path / f"wave-{number}.{suffix}").open("wb") as file:
            file.truncate(size)
    listing = listed(tmp_path, path=f"*.{suffix}")
    assert keys(listing) == ["wave-0"]
    ((key, _, reason),) = listing.refused
    assert key == "wave-1"
    assert reason == f"too large: found {largest + 1} bytes, expected ≤ {largest}"


# --- labels ---


def test_listed_classes_by_name_and_by_number(tmp_path: Path) -> None:
    write(tmp_path, "wave-1", "2-1", "3-1", "4-1", "sitt-1")
    changes = {
        "classes": ["sit", "wave", "4"],
        "labels": {"pattern": "(.+)-", "first": 1},
    }
    listing = listed(tmp_path, changes)
    assert {u.clips[0].key: u.clips[0].label for u in listing.units} == {
        "2-1": 1, "3-1": 2, "4-1": 2, "wave-1": 1,
    }  # fmt: skip
    ((key, _, reason),) = listing.refused
    assert key == "sitt-1"
    assert "found 'sitt', expected one of 3 names, or a number from 1 to 3" in reason


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("classes", [{"classes": ["sit", "wave"]}, {}])
def test_a_mutual_class_that_there_is_not(
    tmp_path: Path, classes: dict[str, Any], number: int
) -> None:
    write(tmp_path, "wave-1", "sit-1")
    changes = {**classes, "labels": {"pattern": "(.+)-"}}
    assert len(listed(tmp_path, {**changes, "mutual": [1, 2]}).units) == 2
    with pytest.raises(UserError, match=rf"mutual[\s\S]*found: {number}\n.*from 1 to 2"):
        listed(tmp_path, {**changes, "mutual": [2, number]})


def test_classes_that_are_not_listed_are_those_that_occur(tmp_path: Path) -> None:
    write(tmp_path, "w10-1", "w09-1", "w2-1")
    listing = listed(tmp_path, {"labels": {"pattern": r"w(\d+)-"}})
    assert listing.classes == ("2", "9", "10")
    assert [unit.clips[0].label for unit in listing.units] == [1, 2, 0]


def test_a_sample_without_label_or_subject_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "wave-1", "sit", "sit-x")
    listing = listed(tmp_path, {"subjects": {"pattern": r"-(\d)"}})
    assert keys(listing) == ["wave-1"]
    assert {key: reason for key, _, reason in listing.refused} == {
        "sit": "no label: found nothing by [labels] for 'sit'",
        "sit-x": "no subject: found nothing by [subjects] for 'sit-x'",
    }
    with pytest.raises(UserError, match=r"no sample can be used[\s\S]*no label"):
        listed(tmp_path, {"labels": {"pattern": r"(\d\d\d)"}})


# --- tables and lists ---


def table(folder: Path, text: str, **more: str) -> dict[str, Any]:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return {"labels": {"table": "t.csv", "column": "action", **more}}


def test_a_table_calls_samples_by_name_or_file(tmp_path: Path) -> None:
    write(tmp_path, "wave-1", "sit-1", "sit-2")
    text = '\ufeffperson,take,action\r\n1,wave-1,"wave, high"\r\n2,sit-1.npy,sit\r\n\r\n'
    listing = listed(tmp_path, table(tmp_path, text, key="take"))
    assert listing.classes == ("sit", "wave, high")
    assert [key for key, *_ in listing.refused] == ["sit-2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("take,acton\nwave-1,wave", "no column 'action'[\\s\\S]*did you mean 'acton'"),
        ("", "no column"),
        ("take,action\nwave-1", "line 2[\\s\\S]*found: 1[\\s\\S]*expected: 2"),
        ("take,action\nwave-1,wave\nwave-1,sit", "twice[\\s\\S]*line 3"),
        ('take,action\n"wave-1,wave', "no CSV table"),
    ],
)
def test_what_is_wrong_in_a_table(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "wave-1")
    with pytest.raises(UserError, match=message) as caught:
        listed(tmp_path, table(tmp_path, text))
    assert "t.csv" in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "wave-1")
    with pytest.raises(UserError, match="cannot be read"):
        listed(tmp_path, {"labels": {"table": "no.csv", "column": "a"}})


def test_lists_of_names(tmp_path: Path) -> None:
    write(tmp_path, "wave-1", "wave-2", "sit-3")
    changes = {"splits": {"a": {"train": "train.txt", "test": "test.txt"}}}
    (tmp_path / "train.txt").write_text("wave-1\n\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("wave-2.npy\nunknown\n", encoding="utf-8")
    listing = listed(tmp_path, changes)
    assert [unit.parts for unit in listing.units] == [{}, {"a": "train"}, {"a": "test"}]
    assert listing.outside["a"] == (("sit-3", "sit-3.npy", "not in the lists of a: found nothing"),)
    (tmp_path / "test.txt").write_text("wave-1", encoding="utf-8")
    with pytest.raises(UserError, match="both train and test"):
        listed(tmp_path, changes)


# --- fields, splits, digest ---


def test_subjects_by_name_are_numbered_and_told(tmp_path: Path) -> None:
    write(tmp_path, "wave-bo", "wave-al", "sit-al")
    changes = {
        "subjects": {"pattern": "-(.+)"},
        "splits": {"xsub": {"by": "subject", "train": ["al"], "test": ["bo"]}},
    }
    listing = listed(tmp_path, changes)
    assert [(u.clips[0].subject, u.parts["xsub"]) for u in listing.units] == [
        (1, "train"), (1, "train"), (2, "test"),
    ]  # fmt: skip
    assert listing.notes == ("subjects are numbered from 1: al = 1, bo = 2",)


def test_whole_numbers_stand_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, "wave-007", "wave-40")
    changes = {"cameras": {"pattern": "-(.+)"}, "setups": {"pattern": "(.)$"},
               "splits": {"a": {"by": "camera", "train": [7], "test": ["040"]}}}  # fmt: skip
    listing = listed(tmp_path, changes)
    assert [(u.clips[0].camera, u.clips[0].setup) for u in listing.units] == [(7, 2), (40, 1)]
    assert [unit.parts["a"] for unit in listing.units] == ["train", "test"]
    assert listing.notes == ("setups are numbered from 1: 0 = 1, 7 = 2",)


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    rows = pa.table({"id": ["wave-1"], "poses": [poses(1).tolist()], "lable": [1]})
    pq.write_table(rows, tmp_path / "all.parquet")
    source = {"path": "all.parquet", "data": "poses", "names": "id"}
    with pytest.raises(UserError, match=r"no column 'label'[\s\S]*did you mean 'lable'"):
        listed(tmp_path, {"labels": {"column": "label"}}, **source)
    with pytest.raises(UserError, match="no column 'pose'"):
        listed(tmp_path, **{**source, "data": "pose"})


def test_a_source_without_columns_is_told(tmp_path: Path) -> None:
    write(tmp_path, "wave-1")
    with pytest.raises(UserError, match="npy has no columns"):
        listed(tmp_path, {"labels": {"column": "label"}})


@pytest.mark.parametrize(
    ("lengths", "names", "message"),
    [
        ([5, 4], ["wave-1", "sit-1"], "'lengths' does not fit the frames: found 9 frames in all"),
        ([10], ["wave-1", "sit-1"], "'names' does not fit the samples: found 2 values, expected 1"),
        ([11, -1], ["wave-1", "sit-1"], "wrong number of frames: found '-1'"),
        ([5.5, 4.5], ["wave-1", "sit-1"], "wrong number of frames: found '5.5'"),
    ],
)
def test_lengths_that_do_not_fit(
    tmp_path: Path, lengths: list[float], names: list[str], message: str
) -> None:
    np.savez(tmp_path / "all.npz", x=poses(1, 10, 1)[0], lengths=lengths, names=names)
    source = {"path": "all.npz", "data": "x", "axes": "TJC", "lengths": "lengths", "names": "names"}
    with pytest.raises(UserError, match=re.escape(message)):
        listed(tmp_path, **source)


def test_a_length_beyond_the_padding_is_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", x=poses(1, 10, 1), lengths=[11], names=["wave-1"])
    source = {
        "path": "all.npz",
        "data": "x",
        "axes": "NTJC",
        "lengths": "lengths",
        "names": "names",
    }
    dataset = manifest(tmp_path, ALL, **source)
    with pytest.raises(Exception, match="wrong number of frames: found 11, expected ≤ 10"):
        read_all(dataset)


def test_what_decides_the_samples_is_in_the_digest(tmp_path: Path) -> None:
    write(tmp_path, "wave-1", "sit-1")
    changes = table(tmp_path, "take,action\nwave-1,wave\nsit-1,sit")
    first = listed(tmp_path, changes)
    assert listed(tmp_path, changes).source == first.source
    moved = list_arrays(manifest(tmp_path / "x", {**ALL, "labels": {"pattern": "(.)"}}), [tmp_path])
    assert moved.source.digest != first.source.digest
    changes = table(tmp_path, "take,action\nwave-1,wave\nsit-1,wave")
    assert listed(tmp_path, changes).source.digest != first.source.digest
