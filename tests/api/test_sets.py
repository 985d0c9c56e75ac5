from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import KINECT, batch_of, mixed_samples, recording
from served import serving
from sets import Sample, walk, write_set

import skelpipe
from skelpipe.api.dense import pad, resample, unpad
from skelpipe.errors import UserError
from skelpipe.protocols.features import view

POSES = {
    "d": walk(0, 40, 25),
    "c": walk(1, 70, 25, 2),
    "b": walk(2, 9, 25),
    "a": walk(3, 25, 25, 2),
    "t": walk(4, 12, 25),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [
        Sample(key, poses, "test" if key == "t" else "train", label=number % 3, subject=number + 1)
        for number, (key, poses) in enumerate(POSES.items())
    ]
    return write_set(tmp_path_factory.mktemp("sets") / "own", KINECT, samples)


def test_a_set_is_a_sequence_in_key_order(folder: Path) -> None:
    found = skelpipe.open_set(folder)
    assert len(found) == 4
    assert found.keys == ["a", "b", "c", "d"]
    assert found.labels.tolist() == [0, 2, 1, 0]
    assert found.table["subject"].to_pylist() == [4, 3, 2, 1]
    assert found.classes == ("class0", "class1", "class2")
    assert found.topology == KINECT
    for sample, key, label in zip(found, found.keys, found.labels.tolist(), strict=True):
        assert (sample.key, sample.label) == (key, label)
        assert np.array_equal(sample.x.numpy(), POSES[key])
    assert found[-1].key == "d"
    for place in (4, -5):
        with pytest.raises(IndexError):
            found[place]
    assert repr(found) == "<4 samples of own half (ctrgcn)>"


def test_parts(folder: Path) -> None:
    assert skelpipe.open_set(folder, "test").keys == ["t"]
    assert skelpipe.open_set(folder, "all").keys == ["a", "b", "c", "d", "t"]
    with pytest.raises(UserError, match="no part 'val'"):
        skelpipe.open_set(folder, "val")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such folder"):
        skelpipe.open_set(folder / "nothing")


@pytest.mark.parametrize("source", ["mapped", "resident"])
def test_batches_are_padded_recordings(folder: Path, source: str) -> None:
    found = skelpipe.open_set(folder, source=source)  # type: ignore[arg-type]
    batches = list(found.batches(3))
    assert [batch.keys for batch in batches] == [["a", "b", "c"], ["d"]]
    assert [tuple(batch.x.shape) for batch in batches] == [(3, 2, 70, 25, 3), (1, 2, 40, 25, 3)]
    for batch in batches:
        assert len(batch) == len(batch.keys)
        for place, key in enumerate(batch.keys):
            poses = torch.from_numpy(POSES[key])
            bodies, frames = poses.shape[:2]
            assert int(batch.frames[place]) == frames
            assert torch.equal(batch.x[place, :bodies, :frames], poses)
            assert batch.mask[place].sum() == bodies * frames
            assert batch.mask[place, :bodies, :frames].all()
            assert batch.x[place].count_nonzero() == poses.count_nonzero()
        assert batch.labels.tolist() == [found[found.keys.index(key)].label for key in batch.keys]


def test_batches_of_chosen_samples(folder: Path) -> None:
    found = skelpipe.open_set(folder)
    for places in ([3, 0, 3], torch.tensor([3, 0, 3])):
        assert [batch.keys for batch in found.batches(2, places=places)] == [["d", "a"], ["d"]]
    assert list(found.batches(2, places=[])) == []
    with pytest.raises(UserError, match="no such samples"):
        found.batches(2, places=[0, 4])
    for wrong in ({"size": 0}, {"size": 1, "frames": 0}, {"size": 1, "centre": 1.5}):
        with pytest.raises(UserError, match="no such batches"):
            found.batches(**wrong)  # type: ignore[arg-type]


def test_resampled_batches_take_the_first_frame_of_each_bin(folder: Path) -> None:
    found = skelpipe.open_set(folder)
    (batch,) = found.batches(9, frames=20, centre=0.9)
    assert batch.x.shape == (4, 2, 20, 25, 3)
    assert batch.frames.tolist() == [20] * 4
    for key, trim, kept in (("a", 1, 23), ("c", 3, 64), ("d", 2, 36)):
        place = batch.keys.index(key)
        for body, poses in enumerate(POSES[key]):
            for frame in range(20):
                wanted = poses[trim + frame * kept // 20]
                assert np.array_equal(batch.x[place, body, frame].numpy(), wanted)
    assert batch.mask.any(-1).tolist() == [[True, True], [True, False], [True, True], [True, False]]
    assert not batch.x[~batch.mask].any()


def test_resampled_bodies_are_those_of_the_test_view() -> None:
    batch = batch_of(mixed_samples())
    x, mask = resample(batch, 2, 16, 0.95)
    rows, sample_B = view(batch, 16, centre=0.95, absent_body="skip")
    seen = mask.any(-1)
    assert torch.equal(x[seen], rows)
    assert torch.equal(seen.nonzero()[:, 0], sample_B)


def test_unpadded_is_what_was_padded() -> None:
    samples = [*mixed_samples(), recording(6, 20, 3, [(1, 0, 20)])]
    batch = batch_of(samples)
    x, mask = pad(batch, 3)
    assert x.shape == (7, 3, 90, 25, 3)
    for place, poses in enumerate(samples):
        there = (poses != 0).any((2, 3))
        bodies, frames = there.shape
        assert np.array_equal(mask[place, :bodies, :frames].numpy(), there)
        assert mask[place].sum() == there.sum()
    again = unpad(x, batch.frames_N)
    for name in ("flat_RJC", "present_R", "start_N", "frames_N", "bodies_N"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name


def test_a_set_is_opened_by_its_url(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKELPIPE_CACHE", str(tmp_path / "cache"))
    with serving(folder) as server:
        found = skelpipe.open_set(server.url)
        assert np.array_equal(found[2].x.numpy(), POSES["c"])
