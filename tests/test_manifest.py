"""The packaged data set manifests say what their owners published."""

from __future__ import annotations

import re

import pytest

from skelpipe.errors import UserError
from skelpipe.manifest import Dataset, load_dataset, load_topology, manifest_names, read_manifest

NAMES = ("ntu60", "ntu120")
PHASES = ("pku1", "pku2")


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return load_dataset(request.param)


def test_all_are_found() -> None:
    assert {*NAMES, *PHASES} <= set(manifest_names("dataset"))


def test_topology_exists(dataset: Dataset) -> None:
    assert len(load_topology(dataset.topology).joints) == 25


def test_counts_add_up(dataset: Dataset) -> None:
    assert dataset.recordings - dataset.missing.count == dataset.published
    for split in dataset.splits.values():
        assert split.published.train + split.published.test == dataset.published


def test_digest_of_the_missing_list_is_a_sha256(dataset: Dataset) -> None:
    assert len(bytes.fromhex(dataset.missing.sha256)) == 32


@pytest.mark.parametrize(
    ("name", "split", "last", "train", "test"),
    [
        ("ntu60", "xsub", 40, 40_091, 16_487),
        ("ntu60", "xview", 3, 37_646, 18_932),
        ("ntu120", "xsub", 106, 63_026, 50_919),
        ("ntu120", "xset", 32, 54_468, 59_477),
    ],
)
def test_split_lists(name: str, split: str, last: int, train: int, test: int) -> None:
    rule = load_dataset(name).split(split)
    assert sorted(rule.train + rule.test) == list(range(1, last + 1))
    assert (rule.published.train, rule.published.test) == (train, test)
    assert rule.part(last + 1) is None


def test_who_trains() -> None:
    small, large = load_dataset("ntu60"), load_dataset("ntu120")
    assert len(small.split("xsub").train) == len(small.split("xsub").test) == 20
    assert len(large.split("xsub").train) == len(large.split("xsub").test) == 53
    assert set(small.split("xsub").train) < set(large.split("xsub").train)
    assert small.split("xview").train == (2, 3)
    assert all(setup % 2 == 0 for setup in large.split("xset").train)


def test_classes(dataset: Dataset) -> None:
    assert len(set(dataset.classes)) == len(dataset.classes) == dataset.actions[1]
    for action, name in {1: "drink water", 23: "hand waving", 43: "falling down"}.items():
        assert dataset.classes[action - 1] == name
    assert dataset.classes[50 - 1] == "punch or slap"
    assert dataset.classes[60 - 1] == "walking apart"


def test_the_larger_set_extends_the_smaller() -> None:
    small, large = load_dataset("ntu60"), load_dataset("ntu120")
    assert large.classes[:60] == small.classes
    assert large.classes[97 - 1] == "arm circles"
    assert large.classes[120 - 1] == "rock paper scissors"
    assert small.mutual == tuple(range(50, 61))
    assert large.mutual == (*range(50, 61), *range(106, 121))


@pytest.mark.parametrize(
    ("name", "recordings", "xsub", "xview"),
    [("pku1", 1076, (944, 132), (717, 359)), ("pku2", 1009, (775, 234), (671, 338))],
)
def test_phases_of_pku_mmd(
    name: str, recordings: int, xsub: tuple[int, int], xview: tuple[int, int]
) -> None:
    phase = load_dataset(name)
    assert phase.recordings == recordings
    assert (phase.fps, phase.longest, phase.topology) == (30, 300, "kinect_v2")
    assert set(phase.splits) == {"xsub", "xview"}
    for split, counts in (("xsub", xsub), ("xview", xview)):
        listed = phase.split(split).recordings
        assert (listed.train, listed.test) == counts
        assert sum(counts) == recordings


def test_classes_of_pku_mmd() -> None:
    first, second = map(load_dataset, PHASES)
    assert first.classes == second.classes
    assert len(set(first.classes)) == 51
    assert first.mutual == second.mutual
    for dataset in (first, second):
        assert [dataset.split(name).apart for name in ("xsub", "xview")] == ["subject", "camera"]
    together = {first.classes[action - 1] for action in first.mutual}
    assert {name for name in first.classes if "other person" in name} == together - {"handshaking"}
    for action, start in {1: "bow", 8: "drink", 33: "sitting", 42: "touch back", 51: "wri"}.items():
        assert first.classes[action - 1].startswith(start)


def test_names_tell_the_phases_of_pku_mmd_apart() -> None:
    first, second = (re.compile(load_dataset(name).names) for name in PHASES)
    told = {"setup": "0002", "view": "L"}
    assert first.fullmatch("0002-L").groupdict() == told
    assert second.fullmatch("A01N13-R").groupdict() == {
        "setup": "01", "subject": "13", "view": "R",
    }  # fmt: skip
    assert not first.fullmatch("A01N13-R")
    assert not second.fullmatch("0002-L")


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'ntu60'"):
        load_dataset("ntu6")
    with pytest.raises(UserError, match="is no dataset"):
        load_dataset("kinect_v2")
    with pytest.raises(UserError, match="unknown dataset"):
        read_manifest("dataset", "../ntu60")
    with pytest.raises(UserError, match="did you mean 'xview'"):
        load_dataset("ntu60").split("xviews")
