from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from skelpipe.shards.tar import ShardWriter, payload_bytes


def poses(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.normal(size=(1 + number % 2, 3 + number, 25, 3)).astype(np.float32)


def write(file: Path, count: int = 5) -> list[tuple[int, bytes]]:
    places = []
    with file.open("wb") as opened:
        writer = ShardWriter(opened)
        for number in range(count):
            payload = payload_bytes(poses(number))
            described = json.dumps({"key": f"sample-{number}", "label": number}).encode()
            places.append((writer.add(f"sample-{number}", payload, described), payload))
        sha256 = writer.close()
    assert writer.size == file.stat().st_size
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    return places


def test_offsets_point_at_the_payloads(tmp_path: Path) -> None:
    places = write(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    for number, (offset, payload) in enumerate(places):
        assert data[offset : offset + len(payload)] == payload
        read = np.load(io.BytesIO(payload), allow_pickle=False)
        np.testing.assert_array_equal(read, poses(number))
        assert read.dtype == np.float32


def test_members_carry_neither_time_nor_owner(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as opened:
        members = opened.getmembers()
    assert [member.name for member in members[:2]] == ["sample-0.x.npy", "sample-0.json"]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname) == ("", "")


def test_any_order_in_memory_is_stored_as_c_order() -> None:
    given = poses(3)
    assert payload_bytes(np.asfortranarray(given)) == payload_bytes(given)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves closing to the
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # collector
def test_plain_webdataset_reads_shards_the_empty_ones_too(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    write(tmp_path / "b.tar", count=0)
    urls = [str(tmp_path / name) for name in ("b.tar", "a.tar")]
    shards = webdataset.WebDataset(urls, shardshuffle=False)
    samples = list(shards.decode())
    assert [sample["__key__"] for sample in samples] == [f"sample-{n}" for n in range(5)]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["x.npy"], poses(number))
        assert sample["json"]["label"] == number
