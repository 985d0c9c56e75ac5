"""Mutated files of arrays are read or rejected: nothing else is raised, nothing hangs."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_arrays import SAMPLES, manifest, poses

from skelpipe.errors import UserError
from skelpipe.manifest import ArrayDataset
from skelpipe.prepare.archive import Reader
from skelpipe.prepare.array_texts import as_array, parse_csv, parse_json
from skelpipe.prepare.arrays import arrange, read
from skelpipe.prepare.arrays_listing import list_arrays
from skelpipe.prepare.npy import parse_npy
from skelpipe.prepare.recording import RejectedError

PIECES = [
    b"", b"\n", b"\r\n", b",", b";", b" ", b"\x00", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7,
    b"[", b"]", b"[" * 500, b"{", b'"a":', b"null", b"NaN", b"Infinity", b"1e400", b"9" * 400,
    b"(", b")", b"'|O'", b"'<U99'", b"True", b"1000000000000", b"-1", b"_", "é".encode(), b"\x80",
]  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(data) + 1))
        if rng.random() < 0.3:  # the front, where headers are
            start = int(rng.integers(min(len(data), 200) + 1))
        piece = PIECES[rng.integers(len(PIECES))]
        length = int(rng.integers(1, 64))
        match rng.integers(7):
            case 0:
                data = data[:start] + bytes([rng.integers(256)]) + data[start + 1 :]
            case 1:
                flipped = bytes(byte ^ 1 << int(rng.integers(8)) for byte in data[start:][:1])
                data = data[:start] + flipped + data[start + 1 :]
            case 2:
                data = data[:start] + data[start + length :]
            case 3:
                data = data[:start] + piece + data[start:]
            case 4:
                data = data[:start] + piece + data[start + len(piece) :]
            case 5:
                other = int(rng.integers(len(data) + 1))
                data = data[:start] + data[other : other + length] + data[start + length :]
            case 6:
                data = data[: max(start, len(data) // 2)] if rng.random() < 0.2 else data
    return data


def saved(write: Callable[..., object], *what: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    write(stream, *what, **named)
    return stream.getvalue()


# --- parsers of ours, in this process ---

TWO = manifest(Path())
ROWS = poses(1, 9, 1)[0].reshape(9, 12)


def parse_array(data: bytes) -> None:
    arrange(parse_npy(data), TWO)


def parse_table(data: bytes) -> None:
    arrange(parse_csv(data, 0), manifest(Path(), path="*.csv", axes="T(JC)"))


def parse_document(data: bytes) -> None:
    arrange(as_array(parse_json(data)), TWO)


PARSERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "npy": (parse_array, [saved(np.save, poses(1)), saved(np.save, poses(2).astype("f4"))]),
    "csv": (
        parse_table,
        [saved(np.savetxt, ROWS, delimiter=mark, header="a" * bool(mark == ";"))
         for mark in ",; "],
    ),
    "json": (parse_document, [json.dumps(poses(1).tolist()).encode()]),
}  # fmt: skip


def inputs(name: str, count: int) -> Iterator[bytes]:
    rng = np.random.default_rng([count, len(name)])
    given = PARSERS[name][1]
    for number in range(count):
        yield mutated(given[number % len(given)], rng)


def rejected(parse: Callable[[bytes], None], data: bytes) -> bool:
    try:
        parse(data)
    except RejectedError:
        return True
    return False


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_arrays_are_read_or_rejected(name: str) -> None:
    for data in PARSERS[name][1]:
        assert not rejected(PARSERS[name][0], data)
    count = sum(rejected(PARSERS[name][0], data) for data in inputs(name, 2000))
    assert 300 < count < 2000


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_no_mutated_array_takes_long_or_much(name: str) -> None:
    parse, count, seconds, peak = PARSERS[name][0], 0, 0.0, 0
    for number, data in enumerate(inputs(name, 100_000)):
        began = time.process_time()
        count += rejected(parse, data)
        took = time.process_time() - began
        if took > seconds:  # measured again: a machine has pauses of its own
            began = time.process_time()
            rejected(parse, data)
            seconds = max(seconds, min(took, time.process_time() - began))
        if number % 50 == 0:
            tracemalloc.start()
            rejected(parse, data)
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    print(f"{name}: {count:,} rejected; {1e3 * seconds:.1f} ms, {peak / 2**20:.1f} MB at most")
    assert seconds < 1  # nothing explodes; how fast it is, the benchmarks tell
    assert peak < 64 << 20


# --- whole files, listed and read ---


def hdf5_of(**options: Any) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in SAMPLES.items():
            group = file.create_group(name)
            group.attrs["action"] = name.partition("-")[0]
            group.create_dataset("joints", data=values, **options)
    return stream.getvalue()


TABLE = pa.table({"id": list(SAMPLES), "action": [name.partition("-")[0] for name in SAMPLES],
                  "poses": [values.tolist() for values in SAMPLES.values()]})  # fmt: skip


def arrow_of() -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=3)
    return stream.getvalue()


def parquet_of(**options: Any) -> bytes:
    return saved(lambda stream: pq.write_table(TABLE, stream, row_group_size=3, **options))


LABELS = {"labels": {"column": "action"}, "splits": {"a": {"by": {"column": "action"}}}}
FILES: dict[str, tuple[list[bytes], dict[str, Any], dict[str, Any]]] = {
    "hdf5": (
        [hdf5_of(), hdf5_of(chunks=True, compression="gzip", shuffle=True, fletcher32=True)],
        LABELS,
        {"data": "*/joints"},
    ),
    "parquet": (
        [parquet_of(), parquet_of(compression="none", use_dictionary=False), parquet_of(
            compression="zstd", data_page_version="2.0")],
        LABELS,
        {"data": "poses", "names": "id"},
    ),
    "arrow": ([arrow_of()], LABELS, {"data": "poses", "names": "id"}),
    "npz": (
        [saved(np.savez, **SAMPLES), saved(np.savez_compressed, **SAMPLES)],
        {},
        {},
    ),
    "stack": (
        [saved(write, x=np.stack(list(SAMPLES.values())), names=list(SAMPLES), n=[1, 2, 3, 4] * 2)
         for write in (np.savez, np.savez_compressed)],
        {},
        {"format": "npz", "data": "x", "axes": "NMTJC", "names": "names", "lengths": "n"},
    ),
}  # fmt: skip


def outcome(dataset: ArrayDataset) -> Iterator[str]:
    """What becomes of a file and of its samples."""
    try:
        listing = list_arrays(dataset, [])
    except UserError:
        yield "refused"
        return
    with Reader() as reader:
        for unit in listing.units[:4]:
            try:
                read(unit.member, dataset, reader)
                yield "read"
            except (RejectedError, UserError) as error:
                yield "died" if "ended the process" in str(error) else "rejected"


def run(folder: Path, name: str, count: int) -> Counter[str]:
    seeds, changes, source = FILES[name]
    rng = np.random.default_rng([7, len(name)])
    dataset = manifest(folder, changes, path=f"all.{name}", **{"format": name, **source})
    found: Counter[str] = Counter()
    for number in range(count + len(seeds)):
        seed = seeds[number % len(seeds)]
        data = seed if number < len(seeds) else mutated(seed, rng)
        (folder / f"all.{name}").write_bytes(data)
        found.update(outcome(dataset))
        if number < len(seeds):
            assert found == {"read": 4 * (number + 1)}
    return found


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    found = run(tmp_path, name, 60)
    assert found["read"] > 8
    assert found["refused"] + found["rejected"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    count = 1000 if name in ("hdf5", "parquet", "arrow") else 10_000
    began = time.monotonic()
    found = run(tmp_path, name, count)
    print(f"{name}: {count:,} inputs in {time.monotonic() - began:.0f} s: {dict(found)}")
    assert found["refused"] + found["rejected"] > count // 10
