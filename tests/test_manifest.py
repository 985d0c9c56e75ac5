"""The packaged data set manifests say what their owners published."""

from __future__ import annotations

import pytest

from skelpipe.errors import UserError
from skelpipe.manifest import Dataset, load_dataset, load_topology, manifest_names, read_manifest

NAMES = ("ntu60", "ntu120")


@pytest.fixture(params=NAMES)
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return load_dataset(request.param)


def test_both_are_found() -> None:
    assert set(NAMES) <= set(manifest_names("dataset"))


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


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'ntu60'"):
        load_dataset("ntu6")
    with pytest.raises(UserError, match="is no dataset"):
        load_dataset("kinect_v2")
    with pytest.raises(UserError, match="unknown dataset"):
        read_manifest("dataset", "../ntu60")
    with pytest.raises(UserError, match="did you mean 'xview'"):
        load_dataset("ntu60").split("xviews")
