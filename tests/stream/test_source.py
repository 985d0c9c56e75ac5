from __future__ import annotations

import gc
import json
import tracemalloc
import warnings
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sets
import torch
import webdataset
from builders import CPU, recording, write_set
from sets import Sample, walk

from skelpipe.bench import damage
from skelpipe.errors import UserError
from skelpipe.shards.card import STEP, Precision, read_card
from skelpipe.shards.index import read_index
from skelpipe.stream.source import Batch, Mapped, Resident, _present, open_source, select


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


@pytest.mark.parametrize("kind", ["resident", "mapped"])
def test_some_joints_are_handed_out_in_their_order(tmp_path: Path, kind: str) -> None:
    poses = [walk(1, 9, 6, 2), walk(2, 5, 6)]
    poses[0][1, 3:5, [4, 2]] = 0  # of body 1, only these two joints are seen by the selection
    samples = [Sample(f"k{number}", each) for number, each in enumerate(poses)]
    samples.append(Sample("k9", poses[0], part="test"))
    folder = sets.write_set(tmp_path / "own", sets.tree(6), samples)
    chosen = [4, 2]
    source = open_source(folder, select(folder, "train"), CPU, kind, chosen)  # type: ignore[arg-type]
    batch = source.take(torch.tensor([1, 0]))
    for number, each in enumerate((poses[1], poses[0])):
        start, rows = int(batch.start_N[number]), each.shape[0] * each.shape[1]
        found = batch.flat_RJC[start : start + rows].numpy().reshape(*each.shape[:2], 2, 3)
        assert np.array_equal(found, each[:, :, chosen])
        present = batch.present_R[start : start + rows].view(each.shape[:2])
        absent = [] if number == 0 else [[1, 3], [1, 4]]
        assert (~present).nonzero().tolist() == absent


def test_int16_comes_back_as_metres(tmp_path: Path) -> None:
    exact, stored = (damage.write_set(tmp_path / p, precision=p) for p in ("float32", "int16"))
    sources = {}
    for folder in (exact, stored):
        table = select(folder, "train")
        for kind in (Resident, Mapped):
            sources[folder.name, kind] = kind(folder, table, CPU).take(torch.arange(12))
    resident, mapped = (sources["int16", kind] for kind in (Resident, Mapped))
    assert resident.flat_RJC.dtype == mapped.flat_RJC.dtype == torch.float32
    assert torch.equal(resident.present_R[: len(mapped.present_R)], mapped.present_R)
    for number in range(12):
        assert torch.equal(sample(resident, number), sample(mapped, number))
        off = sample(resident, number) - sample(sources["float32", Resident], number)
        assert 0 < float(off.abs().max()) <= STEP / 2 + 1e-6


def test_rows_of_zeros_are_absent() -> None:
    flat = torch.ones(7, 25, 3)
    flat[3] = 0
    flat[4] = -0.0
    flat[5, :, 0] = 0  # a coordinate that is zero says nothing yet
    flat[6] = 0
    flat[6, 24, 2] = 1e-40
    expected = (flat != 0).flatten(1).any(1)
    assert torch.equal(_present(flat), expected)
    assert expected.tolist() == [True, True, True, False, False, True, True]


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


@pytest.mark.parametrize("precision", ["float32", "int16"])
@pytest.mark.parametrize("kind", ["resident", "mapped"])
def test_a_damaged_payload_is_named(tmp_path: Path, kind: str, precision: Precision) -> None:
    folder = damage.write_set(tmp_path / "toy", precision=precision)
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


ODD_NUMBERS = (0, 1, -1, 127, 128, 2**31 - 1, -(2**31), 10**12, 2**62, -(2**62))


def fuzz(folder: Path, count: int) -> tuple[int, int]:
    """Load damaged shards by damaged rows, often with the crc32 that fits.

    Returns how many were refused, and the most memory that one took; every fourth is traced.
    """
    table = select(folder, "test")
    (shard,) = set(table["shard"].to_pylist())
    good, rows = (folder / shard).read_bytes(), table.to_pylist()
    rng = np.random.default_rng(0)
    refused = most = 0
    for number in range(count):
        data, others = bytearray(good), [dict(row) for row in rows]
        row = others[rng.integers(len(others))]
        place = row["offset"] + int(rng.integers(-9, 300))
        match rng.integers(5):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                del data[rng.integers(len(data)) :]
            case 2:
                data[place : place + 12] = b"999999999999"
            case _:
                column = rng.choice(["offset", "size", "bodies", "frames"])
                value = int(rng.choice(ODD_NUMBERS)) + int(rng.choice([0, row[column]]))
                limit = 2**31 if column in ("bodies", "frames") else 2**63
                row[column] = min(max(value, -limit), limit - 1)
        if rng.random() < 0.7:
            begin = max(row["offset"], 0)
            row["crc32"] = zlib.crc32(data[begin : begin + max(row["size"], 0)])
        (folder / shard).unlink()  # writing over a file makes some file systems flush it
        (folder / shard).write_bytes(data)
        if number % 4 == 0:
            tracemalloc.start()
        try:
            Resident(folder, pa.Table.from_pylist(others, table.schema), CPU)
        except UserError:
            refused += 1
        finally:
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    (folder / shard).write_bytes(good)
    return refused, most


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_the_reader_bears_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    folder = damage.write_set(tmp_path / "toy", train=2, test=3)
    card = read_card(folder)  # a third of the time, were it read for each
    monkeypatch.setattr("skelpipe.stream.source.read_card", lambda _: card)
    refused, most = fuzz(folder, count)
    # The others are flips of positions with their crc32, or beside the payload.
    assert 0.6 * count < refused < count
    assert 0 < most < 16e6


def test_nothing_is_allocated_on_the_word_of_a_header_or_the_index(tmp_path: Path) -> None:
    folder = damage.write_set(tmp_path / "toy", train=4, test=2)
    table = select(folder, "train")
    row, *_ = rows = table.to_pylist()
    shard = folder / row["shard"]
    data = bytearray(shard.read_bytes())
    shape = f"({row['bodies']}, {row['frames']}, 25, 3), }}".encode()
    huge = b"(1000000000000, 1, 1, 1), }"
    begin = data.index(shape, row["offset"])
    data[begin : begin + len(huge)] = huge
    shard.write_bytes(data)
    row["crc32"] = zlib.crc32(data[row["offset"] : row["offset"] + row["size"]])
    giant = [row | {"frames": 2**31 - 1, "bodies": 400}]
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="is damaged"):
            Resident(folder, pa.Table.from_pylist(rows, table.schema), CPU)
        with pytest.raises(UserError, match="is damaged"):
            Resident(folder, pa.Table.from_pylist(giant, table.schema), CPU)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    with pytest.raises(UserError, match="overlap"):
        Resident(folder, pa.Table.from_pylist(rows[1:2] * 50, table.schema), CPU)
