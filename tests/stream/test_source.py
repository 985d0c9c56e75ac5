from __future__ import annotations

import gc
import json
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from builders import CPU, recording, write_set

from skelpipe.errors import UserError
from skelpipe.shards.index import read_index
from skelpipe.stream.source import Batch, Mapped, Resident, open_source, select


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy")


def sample(batch: Batch, number: int) -> torch.Tensor:
    frames, bodies = int(batch.frames_N[number]), int(batch.bodies_N[number])
    start = int(batch.start_N[number])
    return batch.flat_RJC[start : start + bodies * frames].view(bodies, frames, 25, 3)


@pytest.mark.parametrize("kind", [Resident, Mapped])
def test_samples_come_as_they_were_written(
    folder: Path, kind: type[Resident] | type[Mapped]
) -> None:
    table = select(folder, "train")
    source = kind(folder, table, CPU)
    batch = source.take(torch.arange(12))
    assert len(source) == len(batch) == 12
    keys = table["key"].to_pylist()
    assert keys == sorted(keys)
    for place, key in enumerate(keys):
        number = 12 - int(key.removeprefix("train"))
        poses = recording(number, 10 + 3 * number, 2 if number % 3 == 2 else 1)
        poses[..., 0] += number % 2
        assert torch.equal(sample(batch, place), torch.from_numpy(poses))
        assert int(batch.label_N[place]) == number % 2
    assert torch.equal(batch.row_N, torch.tensor(table["row"].to_pylist()))
    assert not bool(batch.key_N.any())


@pytest.mark.parametrize("places", [[0], [5, 2, 2, 11], list(range(12))])
def test_resident_and_mapped_give_the_same_samples(folder: Path, places: list[int]) -> None:
    table = select(folder, "train")
    where, keys = torch.tensor(places), torch.arange(len(places)) + 5
    resident = open_source(folder, table, CPU, "resident").take(where, keys)
    mapped = open_source(folder, table, CPU, "mapped").take(where, keys)
    for number in range(len(places)):
        assert torch.equal(sample(resident, number), sample(mapped, number))
    for field in fields(Batch):
        if field.name not in ("flat_RJC", "present_R", "start_N"):
            assert torch.equal(getattr(resident, field.name), getattr(mapped, field.name))
    assert bool(mapped.present_R.all())


def test_rows_of_zeros_are_absent(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "toy")
    table = select(folder, "train")
    source = Resident(folder, table, CPU)
    source.flat_RJC[3] = 0
    present = (source.flat_RJC != 0).flatten(1).any(1)
    assert present.tolist() == [True] * 3 + [False] + [True] * (len(present) - 4)
    assert bool(source.present_R.all())


def test_plain_webdataset_reads_the_same_samples(folder: Path) -> None:
    table = select(folder, "train")
    batch = Resident(folder, table, CPU).take(torch.arange(12))
    by_key = {key: sample(batch, place) for place, key in enumerate(table["key"].to_pylist())}
    shards = sorted(str(path) for path in folder.glob("train-*.tar"))
    with warnings.catch_warnings():
        # webdataset leaves the closing of its files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        pipeline = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode()
        found = {item["__key__"]: item for item in pipeline}
        del pipeline
        gc.collect()
    assert found.keys() == by_key.keys()
    for key, item in found.items():
        assert np.array_equal(item["x.npy"], by_key[key].numpy())
        assert item["json"] == {"key": key}


def flip_byte(folder: Path, place: int) -> tuple[str, int]:
    """Turn one bit in the middle of a sample's coordinates."""
    table = read_index(folder)
    shard, offset, size = (table[name][place].as_py() for name in ("shard", "offset", "size"))
    data = bytearray((folder / shard).read_bytes())
    data[offset + size // 2] ^= 1
    (folder / shard).write_bytes(data)
    return table["key"][place].as_py(), offset


@pytest.mark.parametrize("kind", ["resident", "mapped"])
def test_a_damaged_payload_is_named(tmp_path: Path, kind: str) -> None:
    folder = write_set(tmp_path / "toy")
    table = read_index(folder)
    place = table["part"].to_pylist().index("train") + 3
    key, offset = flip_byte(folder, place)
    with pytest.raises(UserError, match=key) as error:
        open_source(folder, select(folder, "train"), CPU, kind).take(torch.arange(12))  # type: ignore[arg-type]
    assert f"byte {offset}" in str(error.value)
    assert "crc32" in str(error.value)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_shard_is_named(tmp_path: Path, size: int) -> None:
    folder = write_set(tmp_path / "toy")
    shard = folder / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(UserError, match=r"train-000001\.tar"):
        Resident(folder, select(folder, "train"), CPU)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "toy")
    (folder / "train-000002.tar").unlink()
    with pytest.raises(UserError, match=r"train-000002\.tar"):
        Mapped(folder, select(folder, "train"), CPU)


def test_subjects_are_held_out_and_picked(folder: Path) -> None:
    rest = select(folder, "train", without=[1, 3])
    picked = select(folder, "train", subjects=[1, 3])
    assert set(rest["subject"].to_pylist()) == {2, 4}
    assert set(picked["subject"].to_pylist()) == {1, 3}
    assert sorted(rest["key"].to_pylist() + picked["key"].to_pylist()) == (
        select(folder, "train")["key"].to_pylist()
    )


def test_an_unknown_subject_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="subject 99 is not in the train part"):
        select(folder, "train", without=[99])
    with pytest.raises(UserError, match="no sample is left"):
        select(folder, "train", without=[1, 2, 3, 4])


def test_descriptions_are_json(folder: Path) -> None:
    table = read_index(folder)
    data = (folder / table["shard"][0].as_py()).read_bytes()
    begin = table["offset"][0].as_py() + table["size"][0].as_py()
    begin += -begin % 512 + 512
    assert json.loads(data[begin : data.index(b"}", begin) + 1]) == {"key": table["key"][0].as_py()}
