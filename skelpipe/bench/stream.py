"""Shards -> samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import torch
from isal.isal_zlib import crc32
from torch import Tensor

from skelpipe.stream.loader import Loader
from skelpipe.stream.source import Mapped, Resident, Source, select

from .measure import Row, interleave, rate, rows, with_megabytes
from .recordings import PREFIX, prepared_set

_CPU = torch.device("cpu")


def stream(
    recordings: int = 240,
    *,
    copies: int = 8,
    batch: int = 256,
    threads: int = 1,
    rounds: int = 3,
    least: float = 0.3,
) -> list[Row]:
    """Shards -> samples, against plain webdataset with its own decoding.

    Ours come in the epoch's random order, webdataset's in the order of the files. A mapped sample
    is checked at every read, a resident one when it is loaded; webdataset checks nothing. The floor
    is what a mapped batch cannot do without: each payload's crc32 and one copy of it.

    Args:
        recordings: Different recordings.
        copies: Names for each; half of them are training samples, which are read.
        batch: Samples in a batch of ours, at most all there are.
        threads: Of torch.
        rounds: Measurements of each way.
        least: Seconds a measurement takes at least.
    """
    import webdataset

    with TemporaryDirectory(prefix=PREFIX) as name, threads_of(threads):
        prepared = prepared_set(Path(name), recordings, copies)
        table = select(prepared, "train")
        tars = [str(tar) for tar in sorted(prepared.glob("train-*.tar"))]
        batch = min(batch, len(table))

        def plain() -> int:
            samples = webdataset.WebDataset(tars, shardshuffle=False).decode()
            return sum(1 for sample in samples if sample["x.npy"].size)

        def batches(source: Source) -> float:
            loader = Loader(source, batch, seed=0)
            return rate(lambda: len(next(loader)), least)

        def floor() -> float:
            loader = Loader(resident, batch, seed=0)  # for its order
            steps = [_spans(table, next(loader).row_N) for _ in range(loader.steps)]
            shards = {tar.rpartition("/")[2]: memoryview(Path(tar).read_bytes()) for tar in tars}
            target = memoryview(bytearray(sum(table["size"].to_pylist())))
            turns = cycle(steps)

            def touch() -> int:
                at, spans = 0, next(turns)
                for shard, begin, end in spans:
                    payload = shards[shard][begin:end]
                    crc32(payload)
                    target[at : at + end - begin] = payload
                    at += end - begin
                return len(spans)

            return rate(touch, least)

        mapped, resident = Mapped(prepared, table, _CPU), Resident(prepared, table, _CPU)
        rates = interleave(
            {
                "webdataset, decoded": lambda: rate(plain, least),
                f"mapped, random batches of {batch}": lambda: batches(mapped),
                f"resident, random batches of {batch}": lambda: batches(resident),
                "loading the resident source": lambda: rate(
                    lambda: len(Resident(prepared, table, _CPU)), least
                ),
                "floor of mapped: crc32 and one copy": floor,
            },
            rounds,
        )
    size = sum(table["size"].to_pylist()) / len(table)
    plain_row, mapped_row, resident_row, loading_row, floor_row = rows(rates, "samples/s")
    return [
        with_megabytes(plain_row, size),
        with_megabytes(mapped_row, size),
        # No coordinates are moved, the views gather them: that is no ratio to decoding.
        replace(resident_row, ratio=None),
        with_megabytes(loading_row, size),
        with_megabytes(floor_row, size),
    ]


def _spans(table: pa.Table, row_N: Tensor) -> list[tuple[str, int, int]]:
    """Shard, first byte and the one after the last, of the samples with these numbers."""
    place_of = {row: place for place, row in enumerate(table["row"].to_pylist())}
    some = table.take([place_of[row] for row in row_N.tolist()]).to_pylist()
    return [(row["shard"], row["offset"], row["offset"] + row["size"]) for row in some]


@contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """Torch on so many threads, and then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
