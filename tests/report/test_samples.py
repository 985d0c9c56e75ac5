from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sets import Sample, tree, walk, write_set

from skelpipe.errors import UserError
from skelpipe.report.samples import choose, find, read_clips
from skelpipe.shards.card import STEP
from skelpipe.shards.index import read_index


def some(classes: int, each: int, joints: int = 15) -> list[Sample]:
    """Every class has one sample of two bodies at most."""
    return [
        Sample(
            f"a{label}-{number}",
            walk(10 * label + number, 3 + number, joints, 1 + (number == 1)),
            part="test" if number % 3 == 2 else "train",
            label=label,
        )
        for label in range(classes)
        for number in range(each)
    ]


def test_samples_are_of_different_classes_and_some_have_two_bodies(tmp_path: Path) -> None:
    samples = some(9, 3)
    index = read_index(write_set(tmp_path / "set", tree(15), samples))
    by_key = {sample.key: sample for sample in samples}
    draws = set()
    for seed in range(10):
        chosen = [by_key[key] for key in choose(index, 6, seed)]
        assert len({sample.label for sample in chosen}) == 6
        assert sum(len(sample.poses_MTJC) == 2 for sample in chosen) == 3
        assert choose(index, 6, seed) == [sample.key for sample in chosen]
        draws.add(tuple(sample.key for sample in chosen))
    assert len(draws) == 10


@pytest.mark.parametrize(("classes", "each", "expected"), [(2, 4, 6), (1, 2, 2), (3, 1, 3)])
def test_few_classes_and_few_samples(
    tmp_path: Path, classes: int, each: int, expected: int
) -> None:
    index = read_index(write_set(tmp_path / "set", tree(15), some(classes, each)))
    chosen = choose(index, 6, 0)
    assert len(set(chosen)) == len(chosen) == expected


def test_an_unknown_key_is_told_its_nearest(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", tree(15), some(9, 3))
    assert find(folder, "a3-1") == "a3-1"
    with pytest.raises(UserError, match=r"holds no sample 'a3-7'[^$]*did you mean 'a3-"):
        find(folder, "a3-7")
    with pytest.raises(UserError, match="choose one of: a7-2, a8-0, a8-1, a8-2"):
        find(folder, "zzzzzzzzzz")


@pytest.mark.parametrize(("joints", "bodies", "flat"), [(17, 1, True), (15, 2, False)])
@pytest.mark.parametrize("precision", ["float32", "int16"])
def test_clips_are_the_stored_samples(
    tmp_path: Path, joints: int, bodies: int, flat: bool, precision: str
) -> None:
    samples = [
        Sample(f"k{number}", walk(number, 4 + number, joints, bodies, flat=flat), part, label=1)
        for number, part in enumerate(["train", "test", "train"])
    ]
    samples[1].poses_MTJC[-1, :2] = 0
    folder = write_set(tmp_path / "set", tree(joints), samples, precision=precision, fps=25)
    clips = read_clips(folder, ["k1", "k2"])
    assert [clip.key for clip in clips] == ["k1", "k2"]
    for clip, sample in zip(clips, samples[1:], strict=True):
        assert (clip.what, clip.fps, clip.topology) == ("class1", 25, tree(joints))
        off = np.abs(clip.poses_MTJC - sample.poses_MTJC).max()
        assert off == 0 if precision == "float32" else off <= 0.51 * STEP
    assert not clips[0].poses_MTJC[-1, :2].any()
