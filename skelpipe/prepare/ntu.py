"""NTU RGB+D's `.skeleton` text -> Recording."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as csv

from .recording import RejectedError, Recording

NAME = re.compile(r"(S\d{3}C\d{3}P\d{3}R\d{3}A\d{3})\.skeleton", re.ASCII)
KEY = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.ASCII)

_JOINTS = 25
_HEADER = 10  # fields of a body's header: its id, eight flags and leanings, its tracking state
_COLUMNS = [str(column) for column in range(12)]
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FARTHEST = 1e6  # metres; beyond it sums of squares would overflow, and no sensor sees so far

_PARSE = csv.ParseOptions(
    delimiter=" ", quote_char=False, double_quote=False, escape_char=False, ignore_empty_lines=False
)
_CONVERT = csv.ConvertOptions(
    column_types=dict.fromkeys(_COLUMNS[:3], pa.float64()),
    include_columns=_COLUMNS[:3],
    null_values=[],
    check_utf8=False,
)


@dataclass(frozen=True)
class Name:
    """The fields of a recording's name, each counted from 1."""

    setup: int
    camera: int
    subject: int
    replication: int
    action: int


def parse_name(key: str) -> Name:
    """The fields of a name such as "S001C002P003R002A013", read by width, whatever their range."""
    match = KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is no name of an NTU recording")
    return Name(*map(int, match.groups()))


def parse(data: bytes) -> Recording:
    """Read a `.skeleton` file.

    Line ends of either kind, a blank tail, empty frames, any number of bodies, any integer as id
    and any text in the columns other than x, y, z are read. Nothing is allocated on the word of a
    count in the file.

    Raises:
        RejectedError: the file is damaged: cut short, another joint count, something other than a
            finite number in x, y or z, anything after the last frame.
    """
    if not data.isascii():
        line = data[: next(i for i, byte in enumerate(data) if byte > 127)].count(b"\n") + 1
        raise RejectedError(
            "not a text file", line=line, found="a byte above 127", expected="ASCII"
        )
    marks = [-1, *np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")).tolist()]
    if not data.endswith(b"\n"):
        marks.append(len(data))
    lines = len(marks) - 1

    def text(line: int) -> bytes:
        return data[marks[line] + 1 : marks[line + 1]]

    def count(line: int, what: str) -> int:
        if line >= lines or not data[marks[line] + 1 :].strip():
            raise RejectedError("truncated file", line=line + 1, found="the end", expected=what)
        field = text(line).strip()
        if not field.isdigit() or len(field) > 18:
            raise RejectedError(f"wrong {what}", line=line + 1, found=_shown(field),
                                expected="a whole number from 0")  # fmt: skip
        return int(field)

    frames = count(0, "frame count")
    line = 1
    frame_R: list[int] = []
    id_R: list[int] = []
    blocks: list[bytes] = []
    first_lines: list[int] = []
    for frame in range(frames):
        bodies = count(line, "body count")
        line += 1
        for _ in range(bodies):
            if line + 1 + _JOINTS >= lines:
                # An earlier wrong count is the likelier fault where the joint count is wrong too.
                if line + 1 < lines and count(line + 1, "joint count") != _JOINTS:
                    raise RejectedError("wrong joint count", line=line + 2,
                                        found=_shown(text(line + 1)),
                                        expected=str(_JOINTS))  # fmt: skip
                raise RejectedError("truncated file", line=lines, found="the end",
                                    expected=f"a body of frame {frame + 1} of {frames}")  # fmt: skip
            id_R.append(_body_id(text(line), line))
            if text(line + 1).strip() != b"25" and count(line + 1, "joint count") != _JOINTS:
                raise RejectedError("wrong joint count", line=line + 2,
                                    found=_shown(text(line + 1)), expected=str(_JOINTS))  # fmt: skip
            frame_R.append(frame)
            first_lines.append(line + 2)
            blocks.append(data[marks[line + 2] + 1 : marks[line + 2 + _JOINTS] + 1])
            line += 2 + _JOINTS
    if line < lines and data[marks[line] + 1 :].strip():
        raise RejectedError(
            "text after the last frame",
            line=line + 1,
            found=_shown(text(line)),
            expected=f"the end, after {frames} frames",
        )
    xyz_RJC = _positions(blocks)
    if xyz_RJC is None:
        xyz_RJC = _positions_by_line(blocks, first_lines, lines)
    return Recording(
        frames=frames,
        frame_R=np.array(frame_R, dtype=np.int64),
        id_R=np.array(id_R, dtype=np.int64),
        xyz_RJC=xyz_RJC,
    )


def _body_id(header: bytes, line: int) -> int:
    fields = header.split()
    if len(fields) != _HEADER:
        raise RejectedError("wrong body header", line=line + 1, found=f"{len(fields)} fields",
                            expected=str(_HEADER))  # fmt: skip
    if not fields[0].removeprefix(b"-").isdigit() or len(fields[0]) > 20:
        raise RejectedError("wrong body header", line=line + 1, found=_shown(fields[0]),
                            expected="a whole number as id")  # fmt: skip
    number = int(fields[0])
    if not -(2**63) <= number < 2**63:
        raise RejectedError("wrong body header", line=line + 1, found=_shown(fields[0]),
                            expected="an id of 64 bits")  # fmt: skip
    return number


def _positions(blocks: list[bytes]) -> npt.NDArray[np.float64] | None:
    """All joint rows in one columnar read; None where a row is not twelve plain fields."""
    if not blocks:
        return np.zeros((0, _JOINTS, 3))
    table = b"".join(blocks)
    read = csv.ReadOptions(use_threads=False, column_names=_COLUMNS, block_size=len(table))
    try:
        columns = csv.read_csv(pa.BufferReader(table), read, _PARSE, _CONVERT)
    except pa.ArrowInvalid:
        return None
    if columns.num_rows != len(blocks) * _JOINTS:
        return None
    xyz = np.stack([column.to_numpy() for column in columns.columns], axis=-1)
    if not (np.abs(xyz) <= _FARTHEST).all():  # false for NaN as well
        return None
    return xyz.reshape(-1, _JOINTS, 3)


def _positions_by_line(
    blocks: list[bytes], first_lines: list[int], lines: int
) -> npt.NDArray[np.float64]:
    """The same line by line: reads other white space too, and names the line that is at fault."""
    xyz = []
    for first, block in zip(first_lines, blocks, strict=True):
        for line, row in enumerate(block.split(b"\n")[:_JOINTS], first):
            fields = row.split()
            if len(fields) != len(_COLUMNS):
                last = line + 1 == lines and len(fields) < len(_COLUMNS)
                raise RejectedError("truncated file" if last else "wrong joint row", line=line + 1,
                                    found=f"{len(fields)} fields",
                                    expected=str(len(_COLUMNS)))  # fmt: skip
            for field in fields[:3]:
                if not _NUMBER.fullmatch(field) or abs(float(field)) > _FARTHEST:
                    raise RejectedError("no number in x, y, z", line=line + 1, found=_shown(field),
                                        expected="metres")  # fmt: skip
            xyz.append([float(field) for field in fields[:3]])
    return np.array(xyz).reshape(-1, _JOINTS, 3)


def _shown(field: bytes) -> str:
    text = field.decode("ascii")
    return repr(text if len(text) <= 40 else text[:40] + "…")
