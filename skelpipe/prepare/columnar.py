"""Samples in rows of Parquet and Arrow files. What is here runs in a child process: see `child`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from skelpipe.manifest import ArraySource

from .archive import LARGEST
from .array_samples import Found, check_known, text_of
from .recording import RejectedError

Layout = Literal["parquet", "arrow"]
_BLOCK = 1 << 30  # bytes of positions in a block of rows (row group, record batch)
_KEPT = 2  # blocks that are kept decoded: samples are read in the order of their names


def scan(file: Path, source: ArraySource, columns: Sequence[str]) -> list[Found]:
    """The samples of a file, one a row.

    Args:
        file: The file.
        source: What its columns are called.
        columns: Columns to be told of each sample.

    Raises:
        RejectedError: the file is damaged, or is not what the manifest says.
    """
    wanted = list(dict.fromkeys(name for name in (source.names, *columns) if name))
    rows: list[tuple[int, int, dict[str, str]]] = []  # block, row in it, what its columns say
    try:
        _check(file, source, wanted)
        for number, block in enumerate(_blocks(file, source.layout, wanted)):
            texts = {
                name: [text_of(value) for value in block.column(name).to_pylist()]
                for name in wanted
            }
            rows += [
                (number, row, {name: texts[name][row] for name in wanted})
                for row in range(block.num_rows)
            ]
    except RejectedError:
        raise
    except Exception as error:  # whatever a damaged file makes the library raise
        raise _damaged(error) from error
    size = file.stat().st_size // max(len(rows), 1)
    return [
        Found(
            name=values.get(source.names, str(at)),
            record=str(at),
            values=values,
            size=size,
            block=number,
            rows=(row, row + 1),
        )
        for at, (number, row, values) in enumerate(rows)
    ]


def read(file: Path, layout: Layout, column: str, block: int, row: int) -> npt.NDArray[Any]:
    """The lists in one cell as an array.

    Raises:
        RejectedError: the file is damaged, the cell empty, or its lists are ragged or too large.
    """
    try:
        status = file.stat()
        decoded = _decoded(file, layout, column, block, status.st_mtime_ns, status.st_size)
        if row >= len(decoded):
            raise RejectedError("damaged file", found=f"{len(decoded)} rows in block {block}")
        return _array(decoded.slice(row, 1))
    except RejectedError:
        raise
    except Exception as error:
        raise _damaged(error) from error


def _check(file: Path, source: ArraySource, wanted: Sequence[str]) -> None:
    """Raise where a file lacks a column, or claims more than it can hold."""
    if source.layout == "arrow":
        with pa.OSFile(str(file)) as raw:
            check_known([source.data, *wanted], pa.ipc.open_file(raw).schema.names, "column")
        return
    with pq.ParquetFile(file) as opened:
        check_known([source.data, *wanted], opened.schema_arrow.names, "column")
        about = opened.metadata
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            size = sum(
                group.column(at).total_uncompressed_size
                for at in range(about.num_columns)
                if group.column(at).path_in_schema.split(".")[0] == source.data
            )
            # A row takes a bit at least: columns that repeat one value are packed, positions not.
            if size > _BLOCK or not 0 <= group.num_rows <= 64 * file.stat().st_size:
                raise RejectedError(
                    "too large a row group",
                    found=f"{group.num_rows:,} rows of {size:,} bytes in all",
                    expected=f"at most {_BLOCK:,} bytes; write it with a row_group_size of 1000",
                )


def _blocks(file: Path, layout: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a file, block by block."""
    if layout == "parquet":
        with pq.ParquetFile(file) as opened:
            for number in range(opened.num_row_groups):
                yield _whole(opened.read_row_group(number, list(columns), use_threads=False))
        return
    for number in range(_batches(file)):
        yield _batch(file, columns, number)


def _batches(file: Path) -> int:
    with pa.OSFile(str(file)) as raw:
        return int(pa.ipc.open_file(raw).num_record_batches)


def _batch(file: Path, columns: Sequence[str], number: int) -> pa.Table:
    with pa.OSFile(str(file)) as raw:
        names = pa.ipc.open_file(raw).schema.names
        options = pa.ipc.IpcReadOptions(
            use_threads=False, included_fields=[names.index(column) for column in columns]
        )
        batch = pa.ipc.open_file(raw, options=options).get_batch(number)
        return _whole(pa.Table.from_batches([batch]))


def _whole(table: pa.Table) -> pa.Table:
    table.validate(full=True)  # before any offset in it is believed
    return table


@lru_cache(maxsize=_KEPT)
def _decoded(
    file: Path, layout: Layout, column: str, number: int, changed: int, size: int
) -> pa.ChunkedArray:
    """A column's part in one block; ``changed`` and ``size`` tell a file from its successor."""
    if layout == "arrow":
        return _batch(file, [column], number)[column]
    with pq.ParquetFile(file) as opened:
        return _whole(opened.read_row_group(number, [column], use_threads=False))[column]


def _array(cell: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A cell of nested lists, whose lists of one level are of one length."""
    values = cell.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0)
    shape = [len(values)]
    if isinstance(values, pa.FixedShapeTensorArray):
        shape += values.type.shape
        values = values.storage.flatten()
    while pa.types.is_nested(values.type):
        if not _is_list(values.type) or values.null_count:
            raise RejectedError("no numbers", found=f"an empty cell of type {values.type}"[:200])
        lengths = _lengths(values)
        if len(lengths) > 1:
            found = f"lists of {min(lengths)} to {max(lengths)}"
            raise RejectedError("ragged lists", found=found, expected="equal lengths")
        shape.append(lengths.pop() if lengths else 0)
        values = values.flatten()
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise RejectedError("no numbers", found=f"type {values.type}"[:200])
    if values.nbytes > LARGEST:
        raise RejectedError("too large", found=f"{values.nbytes} bytes", expected=f"≤ {LARGEST}")
    array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(shape)[0]
    return np.asarray(array)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _lengths(values: pa.Array) -> set[int]:
    if pa.types.is_fixed_size_list(values.type):
        return {values.type.list_size}
    return {int(length) for length in np.unique(np.diff(values.offsets.to_numpy()))}


def _damaged(error: Exception) -> RejectedError:
    return RejectedError("damaged file", found=f"{type(error).__name__}: {error}"[:300])
