"""Where a user's own samples lie: the files of a manifest's source, and the samples in each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skelpipe.errors import UserError
from skelpipe.manifest import ArrayDataset

from . import array_texts, columnar, hdf5
from .archive import LARGEST, Member, Reader, find_recordings, loose
from .array_samples import TEXTS, Found, check_known, stacked, text_of
from .array_texts import parse_json, under
from .arrays import Piece, apart, start_of, unpacked
from .listing import Row
from .npy import HEAD, Header, parse_header, parse_npy
from .recording import RejectedError

_SECONDS = 10.0  # that listing one file may take, and one more for each
_RATE = 1 << 20  # bytes of it
_ARRAY = re.compile(r"(.+)\.npy", re.DOTALL)
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample.

    Attributes:
        name: Its name in the data set.
        piece: Where its positions lie.
        found: What its file says of it.
    """

    name: str
    piece: Piece
    found: Found

    @property
    def source(self) -> str:
        """Where it comes from, in words that say nothing about this machine."""
        place = self.found.record
        return f"{self.piece.source}:{place}" if place else self.piece.source


def find_samples(
    dataset: ArrayDataset, raw: Sequence[Path], columns: Sequence[str]
) -> tuple[list[Sample], list[Row]]:
    """All samples of the source, and the files that cannot be used: (name, file, reason).

    HDF5, Parquet and Arrow are listed in a child process: a file that ends it is one of these.

    Args:
        dataset: The manifest.
        raw: Folders in which its path is looked for, or files; none: the manifest's own folder.
        columns: Columns of the source to be told of each sample.

    Raises:
        UserError: there is no such file.
    """
    samples: list[Sample] = []
    faults: list[Row] = []
    for file, name in _files(dataset, raw):
        try:
            samples += _samples(dataset, file, name, columns)
        except RejectedError as error:
            faults.append((name or file.stem, _origin(name, file), error.reason))
    return samples, faults


def _files(dataset: ArrayDataset, raw: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The files of the source, with what is put before the names of their samples."""
    remedy = "correct source.path in the manifest, or name the folder it starts from with --raw"
    for base in raw or [dataset.file.parent]:
        whole = base / dataset.source.path if base.is_dir() else base
        steps = whole.parts if base.is_dir() else ()
        wild = next((at for at, step in enumerate(steps) if _WILD.search(step)), None)
        if wild is None:
            if not whole.is_file():
                raise UserError("there are no raw data", file=whole, found="no such file or folder",
                                remedy=remedy)  # fmt: skip
            yield whole, ""
            continue
        home = Path(*steps[:wild])
        files = sorted(file for file in home.glob("/".join(steps[wild:])) if file.is_file())
        if not files:
            found = "no such file" if home.is_dir() else f"no folder {home}"
            raise UserError("no file fits the pattern", file=whole, found=found, remedy=remedy)
        for file in files:
            yield file, file.relative_to(home).with_suffix("").as_posix()


def _samples(
    dataset: ArrayDataset, file: Path, name: str, columns: Sequence[str]
) -> Iterator[Sample]:
    """The samples of a file.

    Raises:
        RejectedError: it is damaged, or not what the manifest says.
    """
    source = dataset.source
    size = file.stat().st_size
    seconds = _SECONDS + size / _RATE
    whole = loose(file)
    match source.layout:
        case "hdf5":
            for found in apart(seconds, hdf5.scan, file, source, columns):
                yield _sample(name, whole, found)
        case "parquet" | "arrow":
            for found in apart(seconds, columnar.scan, file, source, columns):
                yield _sample(name, whole, found)
        case "npz":
            yield from _of_npz(dataset, file, name, columns)
        case "npy" if source.stacked:
            yield from _rows_of(dataset, whole, name, {}, columns)
        case _:
            stem = "" if name else file.stem
            largest = LARGEST if source.layout == "npy" else array_texts.LARGEST
            if size > largest:
                fault = f"too large: found {size} bytes, expected ≤ {largest}"
                yield _sample(name, whole, Found(stem, fault=fault))
            else:
                keys = _keys(whole, columns) if columns else {}
                yield _sample(name, whole, Found(stem, values=keys, size=size))


def _sample(name: str, member: Member, found: Found, header: Header | None = None) -> Sample:
    piece = Piece(
        member.file,
        member.name,
        member.offset,
        member.stored,
        member.size,
        member.packing,
        member.crc,
        place=found.record,
        block=found.block,
        rows=found.rows,
        frames=found.frames,
        header=header,
        origin=_origin(name, member.file),
    )
    return Sample("/".join(filter(None, (name, found.name))), piece, found)


def _origin(name: str, file: Path) -> str:
    return f"{name}{file.suffix}" if name else file.name


def _keys(member: Member, columns: Sequence[str]) -> dict[str, str]:
    """What the keys of a JSON file say."""
    with Reader() as reader:
        document = parse_json(reader.read(member))
    return {column: text_of(under(document, column)) for column in columns}


def _of_npz(
    dataset: ArrayDataset, file: Path, name: str, columns: Sequence[str]
) -> Iterator[Sample]:
    source = dataset.source
    try:
        arrays = find_recordings([file], _ARRAY, "arrays")
    except UserError as error:  # of one file among many
        raise RejectedError("no .npz of arrays", found=error.what) from error
    if not source.stacked:
        for array, member in arrays.recordings.items():
            if Path(array).match(source.data or "*"):
                yield _sample(name, member, Found(array, array, size=member.size))
        for array, _, reason in arrays.refused:
            unread = Member(file, file.name, 0, 0, 0, "plain")
            yield _sample(name, unread, Found(array, array, fault=reason))
        return
    wanted = [wish for wish in dict.fromkeys([source.lengths, source.names, *columns]) if wish]
    check_known([source.data, *wanted], list(arrays.recordings), "array")
    texts: dict[str, list[str]] = {}
    with Reader() as reader:
        for wish in wanted:
            member = arrays.recordings[wish]
            if member.size > TEXTS:
                raise RejectedError("too large", found=f"'{wish}' of {member.size} bytes")
            texts[wish] = [text_of(value) for value in parse_npy(reader.read(member)).ravel()]
    yield from _rows_of(dataset, arrays.recordings[source.data], name, texts, columns)


def _rows_of(
    dataset: ArrayDataset,
    member: Member,
    name: str,
    texts: Mapping[str, Sequence[str]],
    columns: Sequence[str],
) -> Iterator[Sample]:
    """The samples of an .npy array that holds them all: of an uncompressed one, its very bytes."""
    header = parse_header(unpacked(member, HEAD), member.size)
    if header.fortran:
        raise RejectedError(
            "wrong order of values", found="Fortran order", expected="np.ascontiguousarray(…)"
        )
    for found in stacked(dataset.source, header.shape, header.row, texts, columns):
        if member.packing == "zip-deflated":
            yield _sample(name, member, found)
            continue
        assert found.rows is not None
        offset = start_of(member) + header.start + found.rows[0] * header.row
        rows = Member(member.file, member.name, offset, found.size, found.size, "plain")
        yield _sample(name, rows, found, header)
