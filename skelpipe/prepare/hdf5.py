"""Samples in HDF5 files. What is here runs in a child process: see `child`.

Nothing outside the file is read: no link but the plain kind is followed, and neither virtual data
sets nor such as keep their values in other files are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from skelpipe.manifest import ArraySource

from .archive import LARGEST
from .array_samples import TEXTS, Found, stacked, text_of
from .recording import RejectedError


def scan(file: Path, source: ArraySource, columns: Sequence[str]) -> list[Found]:
    """The samples of a file, sorted by name.

    Args:
        file: The file.
        source: Where samples lie in it.
        columns: Attributes or data sets to be told of each.

    Raises:
        RejectedError: the file is damaged, or is not what the manifest says.
    """
    try:
        with h5py.File(file, "r", locking=False) as opened:
            if source.stacked:
                return _scan_stacked(opened, source, columns)
            return list(_scan_each(opened, source, columns))
    except RejectedError:
        raise
    except Exception as error:  # whatever a damaged file makes the library raise
        raise _damaged(error) from error


def read(file: Path, path: str, rows: tuple[int, int] | None) -> npt.NDArray[Any]:
    """The values of a data set, or some rows of them.

    Raises:
        RejectedError: it is damaged, a link, or too large.
    """
    try:
        with h5py.File(file, "r", locking=False) as opened:
            dataset = _plain(_follow(opened, path), LARGEST if rows is None else None)
            if rows is None:
                return np.asarray(dataset[()])
            if (rows[1] - rows[0]) * _row(dataset) > LARGEST:
                raise _too_large((rows[1] - rows[0]) * _row(dataset))
            return np.asarray(dataset[slice(*rows)])
    except RejectedError:
        raise
    except Exception as error:
        raise _damaged(error) from error


def _scan_stacked(opened: h5py.File, source: ArraySource, columns: Sequence[str]) -> list[Found]:
    dataset = _plain(_follow(opened, source.data), None)
    texts = {
        name: [text_of(value) for value in _values(_follow(opened, name), name)]
        for name in dict.fromkeys([source.lengths, source.names, *columns])
        if name
    }
    return list(stacked(source, dataset.shape, _row(dataset), texts, columns))


def _scan_each(opened: h5py.File, source: ArraySource, columns: Sequence[str]) -> Iterator[Found]:
    for path, name in _matches(opened, source.data.strip("/").split("/")):
        try:
            dataset = _plain(_follow(opened, path), LARGEST)
            values = {column: _beside(dataset, column) for column in columns}
            size = math.prod(dataset.shape) * dataset.dtype.itemsize
            yield Found(name, path.strip("/"), values, size)
        except RejectedError as error:
            yield Found(name, path.strip("/"), fault=error.reason)
        except Exception as error:
            yield Found(name, path.strip("/"), fault=_damaged(error).reason)


def _matches(
    group: h5py.Group, pattern: Sequence[str], path: str = "", wild: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Paths that fit a pattern, and what its wild cards stand for in them: a sample's name.

    A part without wild card fits whether it is there or not, so that what lacks it is told.
    """
    first, rest = pattern[0], pattern[1:]
    is_wild = any(mark in first for mark in "*?[")
    names = [name for name in group if fnmatchcase(name, first)] if is_wild else [first]
    for name in sorted(names):
        here, stands_for = f"{path}/{name}", (*wild, name) if is_wild else wild
        link = group.get(name, getlink=True)
        inner = group[name] if isinstance(link, h5py.HardLink) else None
        if rest and isinstance(inner, h5py.Group):
            yield from _matches(inner, rest, here, stands_for)
        elif not rest or inner is None:
            yield "/".join([here, *rest]), "/".join(stands_for) or name


def _follow(opened: h5py.File, path: str) -> Any:
    """What stands at a path, by plain links alone."""
    place: Any = opened
    for name in path.strip("/").split("/"):
        link = place.get(name, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise RejectedError("missing data set", found=f"no '{name}'", expected=path)
        if not isinstance(link, h5py.HardLink):
            raise RejectedError("a link to elsewhere", found=f"{path}: {type(link).__name__}")
        place = place[name]
    return place


def _plain(dataset: Any, largest: int | None) -> h5py.Dataset:
    """A data set of numbers that lie in the file itself."""
    if not isinstance(dataset, h5py.Dataset):
        raise RejectedError("missing data set", found=f"a {type(dataset).__name__}")
    if dataset.is_virtual or dataset.external:
        raise RejectedError("a link to elsewhere", found="values that lie in other files")
    if dataset.shape is None or dataset.dtype.kind not in "fiu":
        raise RejectedError("no numbers", found=f"type {dataset.dtype}, shape {dataset.shape}")
    if (
        largest is not None
        and (size := math.prod(dataset.shape) * dataset.dtype.itemsize) > largest
    ):
        raise _too_large(size)
    properties = dataset.id.get_create_plist()
    for at in range(properties.get_nfilters()):
        number, _, _, name = properties.get_filter(at)
        if not h5py.h5z.filter_avail(number):
            raise RejectedError(
                "compressed by a filter that is not there",
                found=f"{name.decode('utf-8', 'replace')!r}, number {number}",
            )
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > 4 * LARGEST:
        raise _too_large(math.prod(dataset.chunks) * dataset.dtype.itemsize)
    return dataset


def _beside(dataset: h5py.Dataset, column: str) -> str:
    """What an attribute of a data set or of its group says, or a data set beside it."""
    for holder in (dataset, dataset.parent):
        if column in holder.attrs:
            return text_of(holder.attrs[column])
    if column not in dataset.parent:
        return ""
    values = _values(_follow(dataset.parent, column), column)
    return text_of(values[0]) if len(values) == 1 else ""


def _values(dataset: Any, name: str) -> Sequence[Any]:
    """The values of a column."""
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise RejectedError(f"'{name}' is no data set of values")
    if dataset.is_virtual or dataset.external:
        raise RejectedError("a link to elsewhere", found="values that lie in other files")
    if math.prod(dataset.shape) * dataset.dtype.itemsize > TEXTS:
        raise RejectedError("too large", found=f"'{name}' of shape {dataset.shape}")
    return list(np.asarray(dataset[()]).ravel())


def _row(dataset: h5py.Dataset) -> int:
    row: int = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    return row


def _too_large(size: int) -> RejectedError:
    return RejectedError("too large", found=f"{size} bytes", expected=f"≤ {LARGEST}")


def _damaged(error: Exception) -> RejectedError:
    return RejectedError("damaged HDF5", found=f"{type(error).__name__}: {error}"[:300])
