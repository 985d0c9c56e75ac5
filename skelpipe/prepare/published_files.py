"""The files in which others share prepared arrays (see `published`): found by content, and opened.

In a folder that holds nothing but such files, those named .npz, .npy, .pkl or .pickle are looked
at. What is named file by file may be called anything, except that the parts of 2s-AGCN's arrays are
told by their names.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from skelpipe.errors import UserError
from skelpipe.manifest import NtuDataset, Part, PkuDataset

from .agcn import LONGEST
from .archive import Member, Reader, loose
from .child import run_limited
from .npy import HEAD, Header, parse_header, parse_npy
from .published import BODIES, JOINTS, Block, Layout
from .recording import RejectedError
from .unpickle import Array, Span, load

Dataset = NtuDataset | PkuDataset

_SUFFIXES = (".npz", ".npy", ".pkl", ".pickle")
_ARCHIVES = (".zip", ".tar", ".tgz", ".skeleton")
_MEMBERS = ("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy")
_JOINT_FILE = re.compile(r"(.*(train|val|test).*)_data_joint\.npy")
_PARTS: dict[str, Part] = {"train": "train", "val": "test", "test": "test"}
_ZIP = b"PK\x03\x04"
_SECONDS = 900.0  # for a pickle of some gigabytes on a slow disk


@dataclass(frozen=True)
class Published:
    """The files of one layout, as `find_published` found them."""

    layout: Layout
    files: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as its file tells it.

    Attributes:
        name: What its authors call it, or part and number.
        label: From 0.
        parts: Split -> part, as the file divides; under "" where it does not name the split.
        place: Where it stands in the file.
        block: Where its numbers lie; None where they do not fit.
        fault: Why it cannot be used; empty where it can.
    """

    name: str
    label: int
    parts: Mapping[str, Part]
    place: str
    block: Block | None
    fault: str = ""


def find_published(raw: Sequence[Path]) -> Published | None:
    """Arrays of others among raw data; None where there are none.

    Raises:
        UserError: they stand beside other raw data, or are of several layouts.
    """
    found: dict[Path, Layout] = {}
    others: list[Path] = []
    passed_over: list[Path] = []
    for path in raw:
        layouts = {file: layout for file in _files(path) if (layout := _layout(file))}
        if layouts and path.is_dir():
            passed_over += [file for file in _files(path) if file not in layouts]
        elif not layouts:
            others.append(path)
        found |= layouts
    if not found:
        return None
    labels = {other for file in found if found[file] == "2s-agcn-npy" for other in _beside(file)}
    passed_over = [file for file in passed_over if file not in labels]
    files = [file for file in found if file not in labels]
    others = [path for path in others if path not in labels]
    if others or len({found[file] for file in files}) > 1:
        raise UserError(
            "prepared arrays and other raw data cannot be mixed",
            file=", ".join(map(str, raw)),
            found=", ".join([*(f"{f.name} ({found[f]})" for f in files), *map(str, others)][:5]),
            expected="the files of one layout and nothing else",
            remedy="name with --raw only the files that are meant",
        )
    notes = [f"passed over {', '.join(file.name for file in passed_over)}"] if passed_over else []
    return Published(found[files[0]], tuple(files), tuple(notes))


def find_samples(found: Published, dataset: Dataset, reader: Reader) -> list[Sample]:
    """All samples in the files, those that cannot be used among them.

    Raises:
        UserError: a file is damaged, of another shape, or lacks what belongs to it.
    """
    match found.layout:
        case "ctrgcn-npz":
            return list(_ctrgcn(found.files, dataset, reader))
        case "2s-agcn-npy":
            return [sample for file in found.files for sample in _agcn(file, reader)]
        case "pyskl-pickle":
            return list(_pyskl(found.files))


def identity(files: Sequence[Path]) -> Iterator[tuple[object, ...]]:
    """Rows that tell these files from others: names and sizes, of an npz checksums as well."""
    for file in sorted(files):
        yield file.name, file.stat().st_size
        if _is_zip(file):
            yield from sorted((m.source, m.size, m.crc) for m in _arrays([file]).values())


def _ctrgcn(files: Sequence[Path], dataset: Dataset, reader: Reader) -> Iterator[Sample]:
    arrays = _arrays(files)
    parts: tuple[Part, ...] = ("train", "test")
    for part in parts:
        x, y = arrays.get(f"x_{part}.npy"), arrays.get(f"y_{part}.npy")
        if x is None or y is None:
            raise UserError(
                f"there is no {'x' if x is None else 'y'}_{part}",
                file=", ".join(map(str, files)),
                found=", ".join(sorted(arrays)),
                expected=", ".join(_MEMBERS),
            )
        x = _plain(x)
        header = _header(x)
        expected = f"(samples, frames, {BODIES * JOINTS * 3}) of floats"
        _check_axes(x, header, (None, None, BODIES * JOINTS * 3), expected)
        marks = _small(y, reader)
        classes = len(dataset.classes)
        if marks.shape != (header.shape[0], classes):
            raise UserError(
                f"these labels do not fit {dataset.title}",
                file=y.file,
                place=y.source,
                found=f"shape {marks.shape}",
                expected=f"a row of {classes} for each of {header.shape[0]:,} samples",
                remedy="name the data set that it is",
            )
        marked_N = (marks != 0).sum(axis=1)
        single_N = (marked_N == 1) & ((marks == 1).sum(axis=1) == 1)
        labels_N = marks.argmax(axis=1)
        for number, piece in enumerate(_pieces(x, header, "ctrgcn-npz")):
            fault = "" if single_N[number] else f"no single class: found {marked_N[number]} marked"
            yield Sample(
                name=f"{part}-{number:06d}",
                label=int(labels_N[number]),
                parts={"": part},
                place=f"x_{part}[{number}]",
                block=piece,
                fault=fault,
            )


def _agcn(joints: Path, reader: Reader) -> Iterator[Sample]:
    match = _JOINT_FILE.fullmatch(joints.name)
    assert match is not None
    member = loose(joints)
    header = _header(member)
    expected = f"(samples, 3, frames, {JOINTS}, {BODIES}) of floats"
    _check_axes(member, header, (None, 3, None, JOINTS, BODIES), expected)
    label_file, *count_files = _beside(joints)
    if not label_file.is_file():
        raise UserError(
            "the labels of these arrays are missing",
            file=label_file,
            found="no such file",
            expected=f"(names, labels) of {joints.name}, as 2s-AGCN writes them beside it",
        )
    names, labels = run_limited(_names_and_labels, label_file, file=label_file)
    lengths: list[int] | None = None
    for file in count_files:
        if file.is_file():
            lengths = _lengths(file, reader)
            break
    for what, values in (("names", names), ("labels", labels), ("frame counts", lengths)):
        if values is not None and len(values) != header.shape[0]:
            raise UserError(
                f"the {what} do not fit the arrays",
                file=joints,
                found=f"{len(values):,} {what}",
                expected=f"{header.shape[0]:,}",
            )
    for number, piece in enumerate(_pieces(member, header, "2s-agcn-npy", lengths)):
        no_length = piece.length is not None and piece.length < 1
        yield Sample(
            name=names[number].removesuffix(".skeleton"),
            label=labels[number],
            parts={"": _PARTS[match[2]]},
            place=str(number),
            block=piece,
            fault=f"wrong frame count: found {piece.length}" if no_length else "",
        )


def _pyskl(files: Sequence[Path]) -> Iterator[Sample]:
    (file,) = _only(files)
    lists, annotations = run_limited(_annotations, file, file=file, seconds=_SECONDS)
    for number, (name, label, array) in enumerate(annotations):
        place = f"annotations[{number}]"
        parts = {split: part for (split, part), names in lists.items() if name in names}
        if isinstance(array, str):
            yield Sample(name, label, parts, place, None, fault=array)
        else:
            assert isinstance(array.data, Span)
            span = array.data
            yield Sample(
                name,
                label,
                parts,
                place,
                _block(file, span.offset, span.size, "pyskl-pickle", array),
            )


def _files(path: Path) -> list[Path]:
    """The files that may hold arrays of others: those of a folder only if it has nothing else."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    inside = sorted(path.iterdir())
    if any(file.is_dir() or file.suffix.lower() in _ARCHIVES for file in inside):
        return []
    return [file for file in inside if file.suffix.lower() in _SUFFIXES]


def _layout(file: Path) -> Layout | None:
    """Whose layout a file is of, by its content; a pickle is pyskl's until it is read."""
    try:
        with file.open("rb") as opened:
            head = opened.read(256)
    except OSError as error:
        raise UserError("the raw data cannot be read", file=file, found=error) from error
    if head[:4] == _ZIP:  # its first member tells, and nothing else is looked at
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")].decode("latin-1")
        return "ctrgcn-npz" if PurePosixPath(name).name in _MEMBERS else None
    if head[:6] == b"\x93NUMPY":
        if file.name in _MEMBERS:
            return "ctrgcn-npz"
        return "2s-agcn-npy" if _JOINT_FILE.fullmatch(file.name) else None
    if file.suffix.lower() in _SUFFIXES[2:] or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5"):
        return "pyskl-pickle"
    return None


def _beside(joints: Path) -> list[Path]:
    """What belongs to a file of 2s-AGCN's: labels, and frame counts in either form."""
    stem = joints.name.removesuffix("_data_joint.npy")
    ends = ("_label.pkl", "_num_frame.npy", "_num_frame.pkl")
    return [joints.with_name(stem + end) for end in ends]


def _arrays(files: Sequence[Path]) -> dict[str, Member]:
    """The members of an npz, or loose files, by name."""
    if not any(_is_zip(file) for file in files):
        return {file.name: loose(file) for file in files}
    (file,) = _only(files)
    found = {}
    try:
        with zipfile.ZipFile(file) as opened:
            infos = opened.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(file, "", error) from error
    for info in infos:
        name = PurePosixPath(info.filename).name
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise _damaged(file, name, "packed in a way that NumPy does not use")
        if name in found or info.header_offset < 0:
            raise _damaged(file, name, "twice the same name" if name in found else "no place")
        found[name] = Member(
            file,
            info.filename,
            info.header_offset,
            info.compress_size,
            info.file_size,
            "zip-deflated" if info.compress_type else "zip-stored",
            info.CRC,
        )
    return found


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == _ZIP


def _only(files: Sequence[Path]) -> Sequence[Path]:
    if len(files) > 1:
        raise UserError(
            "several sets of prepared arrays",
            file=", ".join(map(str, files)),
            expected="one",
            remedy="name the file that is meant with --raw",
        )
    return files


def _plain(member: Member) -> Member:
    """A stored member of a zip as so many bytes of the file."""
    if member.packing == "plain":
        return member
    if member.packing == "zip-deflated":
        raise UserError(
            "this array is compressed, and cannot be read from the middle",
            file=member.file,
            place=member.source,
            remedy=f"unpack it (mkdir arrays; unzip {member.file.name} -d arrays) and name the "
            "folder with --raw",
        )
    try:
        with Reader() as reader:
            start = reader.start_of(member)
    except RejectedError as error:
        raise _damaged(member.file, member.source, "no zip header") from error
    if member.stored != member.size:
        raise _damaged(member.file, member.source, "no zip header")
    return Member(member.file, member.name, start, member.size, member.size, "plain")


def _header(member: Member) -> Header:
    with member.file.open("rb") as opened:
        opened.seek(member.offset)
        head = opened.read(min(HEAD, member.size))
    if member.offset + member.size > member.file.stat().st_size:
        raise _damaged(member.file, member.source, "the end of the file before that of the array")
    try:
        return parse_header(head, member.size)
    except RejectedError as error:
        raise _damaged(member.file, member.source, error.reason) from error


def _check_axes(
    member: Member, header: Header, axes: tuple[int | None, ...], expected: str
) -> None:
    fits = len(header.shape) == len(axes) and all(
        size in (None, there) for size, there in zip(axes, header.shape, strict=True)
    )
    if not fits or header.fortran or header.dtype.kind != "f" or 0 in header.shape[1:]:
        order = ", its first axis the fastest" if header.fortran else ""
        raise UserError(
            "this array is of another shape",
            file=member.file,
            place=member.source,
            found=f"{header.shape} of {header.dtype}{order}",
            expected=expected,
        )


def _pieces(
    member: Member, header: Header, layout: Layout, lengths: Sequence[int] | None = None
) -> Iterator[Block]:
    """The samples along an array's first axis."""
    array = Array(header.dtype.str, header.shape[1:])
    for number in range(header.shape[0]):
        offset = member.offset + header.start + number * header.row
        length = None if lengths is None else min(lengths[number], LONGEST)
        yield _block(member.file, offset, header.row, layout, array, length)


def _block(
    file: Path, offset: int, size: int, layout: Layout, array: Array, length: int | None = None
) -> Block:
    return Block(
        file, file.name, offset, size, size, "plain", layout=layout, array=array, length=length
    )


def _small(member: Member, reader: Reader) -> npt.NDArray[Any]:
    """An array that is read as a whole: labels, or frame counts."""
    try:
        values = parse_npy(reader.read(member))
    except RejectedError as error:
        raise _damaged(member.file, member.source, error.reason) from error
    if values.dtype.kind not in "biuf":
        raise _damaged(member.file, member.source, f"an array of {values.dtype}")
    return values


def _lengths(file: Path, reader: Reader) -> list[int]:
    if file.suffix == ".npy":
        return _whole(_small(loose(file), reader), file)
    return run_limited(_counts, file, file=file)


def _names_and_labels(file: Path) -> tuple[list[str], list[int]]:
    match load(file):
        case [list() | tuple() as names, list() | tuple() | Array() as labels]:
            if all(isinstance(name, str) for name in names):
                return list(names), _integers(labels, file)
    raise _other(file, "(names, labels), as 2s-AGCN writes them")


def _counts(file: Path) -> list[int]:
    return _integers(load(file), file)


def _annotations(
    file: Path,
) -> tuple[dict[tuple[str, Part], frozenset[str]], list[tuple[str, int, Array | str]]]:
    """Split and part -> names; and of each sample its name, its label, and its array or fault."""
    expected = '{"split": lists of names, "annotations": samples}, as pyskl writes them'
    lists: dict[tuple[str, Part], frozenset[str]] = {}
    match load(file):
        case {"split": dict() as split, "annotations": list() as annotations}:
            for name, names in split.items():
                known = re.fullmatch(r"(?:(\w+)_)?(train|val|test)", str(name))
                if known and isinstance(names, list | tuple):
                    listed = frozenset(name for name in names if isinstance(name, str))
                    lists[known[1] or "", _PARTS[known[2]]] = listed
        case _:
            raise _other(file, expected)
    samples: list[tuple[str, int, Array | str]] = []
    for annotation in annotations:
        match annotation:
            case {"frame_dir": str() as name, "label": int() as label, "keypoint": keypoint}:
                samples.append((name, int(label), _keypoint(keypoint)))
            case _:
                raise _other(file, expected)
    if samples and all(isinstance(array, str) for _, _, array in samples):
        raise UserError(
            "none of these samples can be read",
            file=file,
            found=samples[0][2],
            expected=f"3-D keypoints (M, T, {JOINTS}, 3), pickled with protocol 2 or above",
        )
    return lists, samples


def _keypoint(array: object) -> Array | str:
    if not isinstance(array, Array) or array.dtype[1] != "f":
        return "no array of positions"
    if len(array.shape) != 4 or array.shape[2:] != (JOINTS, 3) or 0 in array.shape:
        return f"wrong shape: found {array.shape}, expected (M, T, {JOINTS}, 3)"
    return array if isinstance(array.data, Span) else "not to be read in place: protocol 0"


def _integers(values: object, file: Path) -> list[int]:
    if isinstance(values, Array):
        data = values.data
        if isinstance(data, Span):
            with file.open("rb") as opened:
                opened.seek(data.offset)
                data = opened.read(data.size)
        try:
            return _whole(values.from_bytes(data), file)
        except ValueError as error:
            raise _damaged(file, "", error) from error
    if isinstance(values, list | tuple) and all(isinstance(value, int) for value in values):
        return [int(value) for value in values]
    raise _other(file, "a row of whole numbers")


def _whole(values: npt.NDArray[Any], file: Path) -> list[int]:
    if values.ndim != 1 or not (np.isfinite(values) & (values == np.floor(values))).all():
        raise _other(file, "a row of whole numbers")
    return [int(value) for value in values.tolist()]


def _other(file: Path, expected: str) -> UserError:
    return UserError("this file holds something else", file=file, expected=expected)


def _damaged(file: Path, place: str, found: object) -> UserError:
    return UserError(
        "these arrays are damaged",
        file=file,
        place=place,
        found=found,
        remedy="fetch them again and compare the size with their authors'",
    )
