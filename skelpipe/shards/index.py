"""The index of a prepared set: one row a sample, with the place of its payload in a shard."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skelpipe.errors import UserError

from .card import Tally, read_card

INDEX = "index.parquet"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("bodies", pa.int32()),
        ("frames", pa.int32()),
        ("label", pa.int32()),
        ("subject", pa.int32()),
        ("camera", pa.int32()),
        ("setup", pa.int32()),
        ("crc32", pa.uint32()),
    ]
)
_AGAIN = "prepare the set again: skelpipe prepare DATASET --split SPLIT --force"
_SOME = 1000
_SHARD = re.compile(r"(train|test)-\d{6}\.tar")


def write_index(file: Path, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Write the rows, sorted by (part, shard, offset), in the columns of `SCHEMA`; return them."""
    left, batches = iter(rows), []
    while some := list(islice(left, _SOME)):  # rows as dictionaries take ten times the memory
        batches.append(pa.RecordBatch.from_pylist(some, SCHEMA))
    table = pa.Table.from_batches(batches, SCHEMA)
    order = [("part", "ascending"), ("shard", "ascending"), ("offset", "ascending")]
    table = table.sort_by(order)
    pq.write_table(table, file, compression="zstd")
    return table


def read_index(folder: Path) -> pa.Table:
    """The index of a prepared set, sorted by (part, shard, offset).

    Columns: key, part ("train" or "test"), shard (a file name in the folder), offset and size of
    the .npy payload in it (header included), bodies, frames, label (from 0), subject, camera,
    setup, crc32 of the payload.

    Raises:
        UserError: the folder holds no index, or one that is damaged or not the card's.
    """
    file = Path(folder) / INDEX
    if not file.is_file():
        raise UserError(
            "this folder holds no prepared set: its index is missing", file=file, remedy=_AGAIN
        )
    # Its labels are believed: no checksum of a sample covers them.
    stamp = read_card(folder).files.get(INDEX)
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if stamp is None or stamp.sha256 != found:
        raise UserError(
            "the index is damaged, or another set's",
            file=file,
            found=f"{len(data)} bytes with sha256 {found}",
            expected=f"{stamp.size} bytes with sha256 {stamp.sha256}, as the card says"
            if stamp
            else "no index, as the card says",
            remedy=_AGAIN,
        )
    return parse_index(data, file)


def parse_index(data: bytes, file: Path) -> pa.Table:
    """The rows in the bytes of an index; see `read_index`.

    Raises:
        UserError: These are no bytes of an index.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "the index cannot be read", file=file, found=error, remedy=_AGAIN
        ) from error
    if not table.schema.equals(SCHEMA):
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        expected = ", ".join(f"{field.name} {field.type}" for field in SCHEMA)
        raise UserError(
            "the index has other columns", file=file, found=found, expected=expected, remedy=_AGAIN
        )
    for name in SCHEMA.names:
        if table[name].null_count:
            raise UserError(
                "the index has empty cells", file=file, place=f"column {name}", remedy=_AGAIN
            )
    for shard in table["shard"].unique().to_pylist():
        if not _SHARD.fullmatch(shard):
            raise UserError(
                "the index names a file that is no shard",
                file=file,
                found=repr(shard),
                expected="train-000000.tar, test-000000.tar, …",
                remedy=_AGAIN,
            )
    return table


def tally(table: pa.Table) -> Tally:
    """What the rows of an index hold, as the card counts it: only what is stated, label from 0."""

    def per(column: str, least: int = 1) -> dict[int, int]:
        counted = pc.value_counts(table[column]).to_pylist()
        return {row["values"]: row["counts"] for row in counted if row["values"] >= least}

    return Tally(
        samples=len(table),
        bodies=pc.sum(table["bodies"]).as_py() or 0,
        frames=pc.sum(table["frames"]).as_py() or 0,
        classes=per("label", 0),
        subjects=per("subject"),
        cameras=per("camera"),
        setups=per("setup"),
    )
