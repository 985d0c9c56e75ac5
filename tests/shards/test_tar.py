from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import webdataset

from skelpipe.shards.card import STEP
from skelpipe.shards.tar import (
    PAYLOAD_HEADER,
    OutOfRangeError,
    ShardWriter,
    member_header,
    payload_bytes,
    payload_header,
)


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


def test_headers_are_those_of_the_libraries() -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcXYZ019_-"))
    for length in range(1, 91):
        name = "".join(rng.choice(letters, length)) + (".x.npy" if length % 2 else ".json")
        header = tarfile.TarInfo(name)
        header.size = int(rng.choice([0, 1, 511, 40_000, 8**11 - 1]))
        header.mode = 0o644
        assert member_header(name, header.size) == header.tobuf(tarfile.USTAR_FORMAT)
    for precision, dtype in (("float32", np.float32), ("int16", np.int16)):
        file = io.BytesIO()
        np.lib.format.write_array(file, np.ones((2, 103, 25, 3), dtype), version=(1, 0))
        header = payload_header((2, 103, 25, 3), precision)  # type: ignore[arg-type]
        assert file.getvalue()[:PAYLOAD_HEADER] == header


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 1), ("n", 8**11)])
def test_what_ustar_cannot_hold(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="ustar"):
        member_header(name, size)


def stored(poses: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    read = np.load(io.BytesIO(payload_bytes(poses, "int16")), allow_pickle=False)
    assert read.dtype == np.dtype("<i2")
    assert read.shape == poses.shape
    return read


def test_int16_is_an_eighth_of_a_millimetre_off_at_most() -> None:
    rng = np.random.default_rng(0)
    for width in (0.001, 0.1, 1.0, 8.19175):
        given = rng.uniform(-width, width, (2, 50, 25, 3)).astype(np.float32)
        given[0, 7], given[1, 9, 3] = 0, 0
        steps = stored(given)
        assert np.abs(steps * STEP - given.astype(np.float64)).max() <= STEP / 2 + 1e-12
        assert not steps[0, 7].any()
        assert not steps[1, 9, 3].any()
        present = (given != 0).any((2, 3))
        np.testing.assert_array_equal(steps.any((2, 3)), present)
    assert len(payload_bytes(given, "int16")) - PAYLOAD_HEADER == given.nbytes // 2
    ends = np.full((1, 1, 2, 3), 8.19175, np.float32)
    ends[:, :, 1] *= -1
    assert set(stored(ends).ravel().tolist()) == {32767, -32767}


@pytest.mark.parametrize("value", [8.192, -8.192, 1e30, np.inf, -np.inf, np.nan])
def test_what_int16_cannot_hold_is_told(value: float) -> None:
    given = poses(0)
    given[0, 1, 2, 1] = value
    with pytest.raises(OutOfRangeError) as error:
        payload_bytes(given, "int16")
    assert error.value.value == pytest.approx(value, nan_ok=True)
    assert "8.19175 m" in str(error.value)


def test_a_body_at_the_origin_stays_present_in_int16() -> None:
    given = np.zeros((2, 3, 25, 3), np.float32)
    given[0, 1, 4] = (1e-5, -1e-4, 1e-30)
    given[1, 2, 24, 2] = 1e-40
    steps = stored(given)
    assert np.argwhere(steps).tolist() == [[0, 1, 4, 1], [1, 2, 24, 2]]
    assert steps[0, 1, 4, 1] == -1
    assert steps[1, 2, 24, 2] == 1
