from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import write_set
from recordings import recording_of, told, write_recordings
from served import serving
from sets import Sample

from skelpipe.errors import UserError
from skelpipe.stream.frame_labels import read_frame_labels
from skelpipe.stream.remote import fetch_set
from skelpipe.stream.source import select


def samples() -> list[Sample]:
    return [recording_of(number, part) for part in ("train", "test") for number in range(3)]


def changed(sample: Sample, **fields: Any) -> Sample:
    return replace(sample, told={**sample.told, **fields})


def test_labels_are_those_of_each_recording_in_the_order_asked_for(tmp_path: Path) -> None:
    data = write_recordings(tmp_path / "set", samples()[::-1])  # keys descend in the shards
    for part in ("train", "test"):
        table = select(data, part)  # type: ignore[arg-type]
        found = read_frame_labels(data, table)
        for number, labels in enumerate(found):
            sample = recording_of(number, part)
            runs = sample.told["frame_labels"]
            assert labels.label_T.tolist() == [label for label, n in runs for _ in range(n)]
            assert list(labels.actions) == [row[:3] for row in sample.told["actions"]]


def test_rows_that_start_after_their_end_are_swapped_or_none(tmp_path: Path) -> None:
    given = [recording_of(0, part) for part in ("train", "test")]
    rows = [(1, 10, 30, 2), (2, 60, 40, 1), (2, 70, 70, 2)]
    given[0] = replace(given[0], told=told("train00", 110, rows[:1]) | {"actions": rows})
    swapped = write_recordings(tmp_path / "swapped", given)
    (labels,) = read_frame_labels(swapped, select(swapped, "train"))
    assert labels.actions == ((1, 10, 30), (2, 40, 60))
    published = write_recordings(
        tmp_path / "published", given, switches={"reversed": "as_published"}
    )
    (labels,) = read_frame_labels(published, select(published, "train"))
    assert labels.actions == ((1, 10, 30),)


@pytest.mark.parametrize("size", ["1GB", "0"], ids=["cached", "by ranges"])
def test_labels_of_a_served_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    data = write_recordings(tmp_path / "set", samples())
    monkeypatch.setenv("SKELPIPE_CACHE_SIZE", size)
    with serving(data) as server:
        folder = fetch_set(server.url, tmp_path / "cache")
        found = read_frame_labels(folder, select(folder, "train"))
    wanted = read_frame_labels(data, select(data, "train"))
    assert [labels.actions for labels in found] == [labels.actions for labels in wanted]
    assert all((a.label_T == b.label_T).all() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda told: {"frame_labels": [(0, 109)]}, "labels of 109 frames"),
        (lambda told: {"frame_labels": [(0, 60), (3, 50)]}, "action 3"),
        (lambda told: {"actions": [(4, 5, 9, 2)]}, "action 4"),
        (lambda told: {"actions": [(0, 5, 9, 2)]}, "actions.0.0"),
        (lambda told: {"frame_labels": [(0, 10**30)]}, "frame_labels.0.1"),
        (lambda told: {"frame_labels": [("0", 110)]}, "frame_labels.0.0"),
        (lambda told: {"frame_labels": None}, "frame_labels"),
        (lambda told: {"key": "train07"}, "those of train07"),
        (lambda told: {"frames": 111}, "111 frames"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    tmp_path: Path, damage: Callable[[Any], dict[str, Any]], named: str
) -> None:
    given = samples()
    given[1] = changed(given[1], **damage(given[1].told))
    data = write_recordings(tmp_path / "set", given)
    with pytest.raises(UserError, match=r"labels of the recording train01 cannot be used") as error:
        read_frame_labels(data, select(data, "train"))
    assert named in str(error.value)
    assert "train-000000.tar" in str(error.value)


def test_a_damaged_shard_and_a_set_of_clips_are_named(tmp_path: Path) -> None:
    data = write_recordings(tmp_path / "set", samples())
    shard = data / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    place = content.index(b"train02.json")
    content[place + 130] ^= 1  # in the size of its header
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"recording train02[\s\S]*another header"):
        read_frame_labels(data, select(data, "train"))
    clips = write_set(tmp_path / "clips")
    with pytest.raises(UserError, match=r"labels of the recording train001 cannot be used"):
        read_frame_labels(clips, select(clips, "train"))


def test_what_preparation_writes_is_what_is_read() -> None:
    """The test's own JSON is that of preparation."""
    from skelpipe.prepare.pku import frame_labels

    rows = [(1, 5, 40, 2), (2, 30, 60, 1), (1, 100, 130, 2)]
    runs = told("x", 110, rows)["frame_labels"]
    labels = [label for label, count in json.loads(json.dumps(runs)) for _ in range(count)]
    assert labels == frame_labels(rows, 110).tolist()
