"""The index of a prepared set: one row a sample, with the place of its payload in a shard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from skelpipe.errors import UserError

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
_SHARD = re.compile(r"(train|test)-\d{6}\.tar")


def write_index(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write the rows, sorted by (part, shard, offset), in the columns of `SCHEMA`."""
    table = pa.Table.from_pylist([{name: row[name] for name in SCHEMA.names} for row in rows])
    table = table.cast(SCHEMA) if table.num_rows else SCHEMA.empty_table()
    order = [("part", "ascending"), ("shard", "ascending"), ("offset", "ascending")]
    pq.write_table(table.sort_by(order), file, compression="zstd")


def read_index(folder: Path) -> pa.Table:
    """The index of a prepared set, sorted by (part, shard, offset).

    Columns: key, part ("train" or "test"), shard (a file name in the folder), offset and size of
    the .npy payload in it (header included), bodies, frames, label (from 0), subject, camera,
    setup, crc32 of the payload.

    Raises:
        UserError: the folder holds no index, or one that is damaged.
    """
    file = Path(folder) / INDEX
    remedy = "prepare the set again: skelpipe prepare DATASET --split SPLIT --force"
    if not file.is_file():
        raise UserError(
            "this folder holds no prepared set: its index is missing", file=file, remedy=remedy
        )
    try:
        table = pq.read_table(file, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "the index cannot be read", file=file, found=error, remedy=remedy
        ) from error
    if not table.schema.equals(SCHEMA):
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        expected = ", ".join(f"{field.name} {field.type}" for field in SCHEMA)
        raise UserError(
            "the index has other columns", file=file, found=found, expected=expected, remedy=remedy
        )
    for shard in table["shard"].unique().to_pylist():
        if not _SHARD.fullmatch(shard or ""):
            raise UserError(
                "the index names a file that is no shard",
                file=file,
                found=repr(shard),
                expected="train-000000.tar, test-000000.tar, …",
                remedy=remedy,
            )
    return table
