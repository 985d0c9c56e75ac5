from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skelpipe.bench.damage import write_set
from skelpipe.errors import UserError
from skelpipe.shards.card import read_card
from skelpipe.shards.index import INDEX, SCHEMA, parse_index, read_index, tally, write_index

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
    file = tmp_path / INDEX
    written = write_index(file, reversed(ROWS))
    first = file.read_bytes()
    table = parse_index(first, file)
    assert table.equals(written)
    assert table.schema.equals(SCHEMA)
    places = [(row["part"], row["shard"], row["offset"]) for row in table.to_pylist()]
    assert places == sorted(places)
    assert len(places) == 9
    write_index(file, ROWS)
    assert file.read_bytes() == first


def test_what_is_no_index(tmp_path: Path) -> None:
    file = tmp_path / INDEX
    with pytest.raises(UserError, match="holds no prepared set"):
        read_index(tmp_path)
    with pytest.raises(UserError, match="cannot be read") as caught:
        parse_index(b"PAR1 and no more", file)
    assert str(file) in str(caught.value)
    pq.write_table(pa.table({"key": ["a"]}), file)
    with pytest.raises(UserError, match="other columns"):
        parse_index(file.read_bytes(), file)
    rows = [{**ROWS[0], "label": None}]
    write_index(file, rows)
    with pytest.raises(UserError, match="empty cells"):
        parse_index(file.read_bytes(), file)


def test_shards_are_plain_file_names(tmp_path: Path) -> None:
    write_index(tmp_path / INDEX, [{**ROWS[0], "shard": "../../secret"}])
    with pytest.raises(UserError, match="no shard"):
        parse_index((tmp_path / INDEX).read_bytes(), tmp_path / INDEX)


def test_an_index_that_is_not_the_cards(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "toy")
    assert len(read_index(folder)) == 18
    rows = read_index(folder).to_pylist()
    rows[3]["label"] ^= 1
    write_index(folder / INDEX, rows)
    with pytest.raises(UserError, match="the index is damaged, or another set's"):
        read_index(folder)


def test_rows_are_counted_as_the_card_counts_them(tmp_path: Path) -> None:
    table = write_index(tmp_path / INDEX, [{**row, "subject": 0, "label": -1} for row in ROWS])
    counted = tally(table)
    assert (counted.samples, counted.bodies, counted.frames) == (9, 9, 18)
    assert counted.cameras == {2: 9}
    assert counted.classes == counted.subjects == {}
    assert tally(SCHEMA.empty_table()).samples == 0
    folder = write_set(tmp_path / "toy")
    assert tally(read_index(folder)) == read_card(folder).counts.total
