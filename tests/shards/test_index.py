from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skelpipe.errors import UserError
from skelpipe.shards.index import INDEX, SCHEMA, read_index, write_index

ROWS = [
    {
        "key": f"k{number}",
        "part": "train" if number % 2 else "test",
        "shard": f"{'train' if number % 2 else 'test'}-00000{number // 4}.tar",
        "offset": 512 * number,
        "size": 7,
        "bodies": 1,
        "frames": 2,
        "label": 0,
        "subject": 1,
        "camera": 2,
        "setup": 3,
        "crc32": 2**32 - 1,
        "sha256": "not a column",
    }
    for number in range(9)
]


def test_rows_come_back_sorted(tmp_path: Path) -> None:
    write_index(tmp_path / INDEX, reversed(ROWS))
    first = (tmp_path / INDEX).read_bytes()
    table = read_index(tmp_path)
    assert table.schema.equals(SCHEMA)
    places = [(row["part"], row["shard"], row["offset"]) for row in table.to_pylist()]
    assert places == sorted(places)
    assert len(places) == 9
    write_index(tmp_path / INDEX, ROWS)
    assert (tmp_path / INDEX).read_bytes() == first


def test_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prepared set"):
        read_index(tmp_path)
    (tmp_path / INDEX).write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_index(tmp_path)
    assert str(tmp_path / INDEX) in str(caught.value)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / INDEX)
    with pytest.raises(UserError, match="other columns"):
        read_index(tmp_path)


def test_shards_are_plain_file_names(tmp_path: Path) -> None:
    write_index(tmp_path / INDEX, [{**ROWS[0], "shard": "../../secret"}])
    with pytest.raises(UserError, match="no shard"):
        read_index(tmp_path)
