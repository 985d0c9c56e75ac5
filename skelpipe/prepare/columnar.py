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
_KEPT = 4  # blocks of rows (row groups, record batches) that are kept decoded


def scan(file: Path, source: ArraySource, columns: Sequence[str]) -> list[Found]:
    """The samples of a file, one a row.

    Raises:
        RejectedError: the file is damaged, or is not what the manifest says.
    """
    wanted = list(dict.fromkeys([name for name in (source.names, *columns) if name]))
    try:
        schema, rows, size = _shape(file, source.layout, source.data)
        check_known([source.data, *wanted], schema, "column")
        texts: dict[str, list[str]] = {name: [] for name in wanted}
        for batch in _batches(file, source.layout, wanted) if wanted else ():
            batch.validate(full=True)
            for name in wanted:
                texts[name] += [text_of(value) for value in batch.column(name).to_pylist()]
    except RejectedError:
        raise
    except Exception as error:  # whatever a damaged file makes the library raise
        raise _damaged(error) from error
    if any(len(column) != rows for column in texts.values()):
        raise RejectedError("damaged file", found="columns of different lengths")
    return [
        Found(
            name=texts[source.names][row] if source.names else str(row),
            values={column: texts[column][row] for column in columns},
            size=size // rows,
            rows=(row, row + 1),
        )
        for row in range(rows)
    ]


def read(file: Path, layout: Layout, column: str, row: int) -> npt.NDArray[Any]:
    """One row's lists as an array.

    Raises:
        RejectedError: the file is damaged, the row empty, or its lists are ragged or too large.
    """
    try:
        status = file.stat()
        first, block = _block(file, layout, column, row, (status.st_mtime_ns, status.st_size))
        return _array(block.slice(row - first, 1))
    except RejectedError:
        raise
    except Exception as error:
        raise _damaged(error) from error


def _shape(file: Path, layout: str, column: str) -> tuple[list[str], int, int]:
    """Names of a file's columns, its rows, and the bytes of one column."""
    if layout == "parquet":
        with pq.ParquetFile(file) as opened:
            about = opened.metadata
            size = sum(
                about.row_group(group).column(at).total_uncompressed_size
                for group in range(about.num_row_groups)
                for at in range(about.num_columns)
                if about.row_group(group).column(at).path_in_schema.split(".")[0] == column
            )
            return opened.schema_arrow.names, _sane(about.num_rows, file), size
    with pa.OSFile(str(file)) as raw:
        opened = pa.ipc.open_file(raw)
        rows = sum(opened.get_batch(at).num_rows for at in range(opened.num_record_batches))
        return opened.schema.names, _sane(rows, file), file.stat().st_size


def _sane(rows: int, file: Path) -> int:
    # A row takes a bit at least: columns that repeat one value are packed, positions are not.
    if not 0 <= rows <= 64 * file.stat().st_size:
        raise RejectedError("damaged file", found=f"{rows:,} rows", expected="as its size allows")
    return rows


def _batches(file: Path, layout: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if layout == "parquet":
        with pq.ParquetFile(file) as opened:
            yield from opened.iter_batches(batch_size=4096, columns=columns)
    else:
        with pa.OSFile(str(file)) as raw:
            opened = pa.ipc.open_file(raw)
            for at in range(opened.num_record_batches):
                yield opened.get_batch(at).select(columns)


def _block(
    file: Path, layout: Layout, column: str, row: int, state: tuple[int, int]
) -> tuple[int, pa.ChunkedArray]:
    """The block of rows that holds one: its first row, and its part of the column."""
    first = 0
    for number, rows in enumerate(_block_sizes(file, layout, state)):
        if row < first + rows:
            return first, _decoded(file, layout, column, number, state)
        first += rows
    raise RejectedError("damaged file", found=f"{first} rows", expected=f"more than {row}")


@lru_cache(maxsize=_KEPT)
def _block_sizes(file: Path, layout: Layout, state: tuple[int, int]) -> list[int]:
    if layout == "parquet":
        with pq.ParquetFile(file) as opened:
            about = opened.metadata
            return [about.row_group(at).num_rows for at in range(about.num_row_groups)]
    with pa.OSFile(str(file)) as raw:
        opened = pa.ipc.open_file(raw)
        return [opened.get_batch(at).num_rows for at in range(opened.num_record_batches)]


@lru_cache(maxsize=_KEPT)
def _decoded(
    file: Path, layout: Layout, column: str, number: int, state: tuple[int, int]
) -> pa.ChunkedArray:
    if layout == "parquet":
        with pq.ParquetFile(file) as opened:
            block = opened.read_row_group(number, columns=[column], use_threads=False)[column]
    else:
        with pa.OSFile(str(file)) as raw:
            block = pa.chunked_array([pa.ipc.open_file(raw).get_batch(number).column(column)])
    block.validate(full=True)
    return block


def _array(cell: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A cell of nested lists, whose lists of one level are of one length."""
    values = cell.combine_chunks() if cell.num_chunks != 1 else cell.chunk(0)
    if isinstance(values, pa.ExtensionArray):
        kind = values.type
        shape = [len(values), *kind.shape] if hasattr(kind, "shape") else None
        values = values.storage
        if shape is not None:
            tensor: npt.NDArray[Any] = _numbers(values.flatten()).reshape(shape)[0]
            return tensor
    shape = [len(values)]
    while pa.types.is_nested(values.type):
        if not _is_list(values.type) or values.null_count:
            raise RejectedError("no numbers", found=f"an empty cell of type {values.type}"[:200])
        lengths = _lengths(values)
        if len(lengths) > 1:
            found = f"lists of {min(lengths)} to {max(lengths)}"
            raise RejectedError("ragged lists", found=found, expected="equal lengths")
        values, shape = values.flatten(), [*shape, lengths.pop() if lengths else 0]
    array: npt.NDArray[Any] = _numbers(values).reshape(shape)[0]
    return array


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _lengths(values: pa.Array) -> set[int]:
    if pa.types.is_fixed_size_list(values.type):
        return {values.type.list_size}
    return {int(length) for length in np.unique(np.diff(values.offsets.to_numpy()))}


def _numbers(values: pa.Array) -> npt.NDArray[Any]:
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise RejectedError("no numbers", found=f"type {values.type}"[:200])
    if values.nbytes > LARGEST:
        raise RejectedError("too large", found=f"{values.nbytes} bytes", expected=f"≤ {LARGEST}")
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _damaged(error: Exception) -> RejectedError:
    return RejectedError("damaged file", found=f"{type(error).__name__}: {error}"[:300])
