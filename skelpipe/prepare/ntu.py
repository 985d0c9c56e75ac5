"""NTU RGB+D's `.skeleton` text -> Recording."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as csv

from .recording import Recording, RejectedError

NAME = re.compile(r"(S\d{3}C\d{3}P\d{3}R\d{3}A\d{3})\.skeleton", re.ASCII)
KEY = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.ASCII)

_JOINTS = 25
_HEADER = 10  # fields of a body's header: its id, eight flags and leanings, its tracking state
_COLUMNS = [str(column) for column in range(12)]
_ID = re.compile(rb"-?\d{1,19}")
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

    Line ends of either kind, a blank tail, empty frames, any number of bodies, any integer of 64
    bits as id and any text in the columns other than x, y, z are read. Nothing is allocated on the
    word of a count in the file.

    Raises:
        RejectedError: the file is damaged: cut short, another joint count, something other than a
            finite number in x, y or z, anything after the last frame.
    """
    if not data.isascii():
        raise RejectedError("not a text file", found="a byte above 127", expected="ASCII")
    text = _Lines(data)
    frames = text.count(0, "frame count")
    at = 1
    frame_R: list[int] = []
    id_R: list[int] = []
    first_rows: list[int] = []
    blocks: list[bytes] = []
    for frame in range(frames):
        bodies = text.count(at, "body count")
        at += 1
        for _ in range(bodies):
            id_R.append(_body_id(text, at))
            if text.count(at + 1, "joint count") != _JOINTS:
                raise RejectedError(
                    "wrong joint count", line=at + 2, found=_shown(text[at + 1]), expected="25"
                )
            first_rows.append(at + 2)
            frame_R.append(frame)
            at += 2 + _JOINTS
            if at > len(text):
                raise _truncated(len(text), f"a whole body in frame {frame + 1} of {frames}")
            blocks.append(text.block(at - _JOINTS, at))
    if not text.blank_from(at):
        raise RejectedError(
            "text after the last frame",
            line=at + 1,
            found=_shown(text[at]),
            expected=f"the end after {frames} frames",
        )
    xyz_RJC = _positions(blocks)
    if xyz_RJC is None:
        xyz_RJC = _positions_by_line(blocks, first_rows, len(text))
    return Recording(
        frames=frames,
        frame_R=np.array(frame_R, dtype=np.int64),
        id_R=np.array(id_R, dtype=np.int64),
        xyz_RJC=xyz_RJC,
    )


class _Lines:
    """The lines of a file, from 0, found once and cut out only where they are asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")).tolist()
        unended = [] if data.endswith(b"\n") else [len(data)]
        self._marks = [-1, *ends, *unended]

    def __len__(self) -> int:
        return len(self._marks) - 1

    def __getitem__(self, line: int) -> bytes:
        return self._data[self._marks[line] + 1 : self._marks[line + 1]].strip()

    def block(self, start: int, stop: int) -> bytes:
        """Lines from start on to before stop, with their ends."""
        return self._data[self._marks[start] + 1 : self._marks[stop] + 1]

    def blank_from(self, line: int) -> bool:
        """Whether nothing but white space stands from a line on."""
        return line >= len(self) or not self._data[self._marks[line] + 1 :].strip()

    def count(self, line: int, what: str) -> int:
        """The number that a line consists of."""
        field = self[line] if line < len(self) else b""
        if field.isdigit() and len(field) <= 18:
            return int(field)
        if self.blank_from(line):
            raise _truncated(len(self), f"a {what}")
        raise RejectedError(
            f"wrong {what}", line=line + 1, found=_shown(field), expected="a whole number from 0"
        )


def _truncated(lines: int, expected: str) -> RejectedError:
    return RejectedError("truncated file", line=lines, found="the end", expected=expected)


def _body_id(text: _Lines, line: int) -> int:
    fields = text[line].split() if line < len(text) else []
    if not fields and text.blank_from(line):
        raise _truncated(len(text), "a body")
    if len(fields) == _HEADER and _ID.fullmatch(fields[0]) and abs(int(fields[0])) < 2**63:
        return int(fields[0])
    raise RejectedError(
        "wrong body header",
        line=line + 1,
        found=f"{len(fields)} fields, the first of them {_shown(fields[0] if fields else b'')}",
        expected="10, the first of them an id of 64 bits",
    )


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
    blocks: list[bytes], first_rows: list[int], lines: int
) -> npt.NDArray[np.float64]:
    """The same line by line: reads other white space too, and names the line that is at fault."""
    xyz = []
    for first, block in zip(first_rows, blocks, strict=True):
        for line, row in enumerate(block.split(b"\n")[:_JOINTS], first + 1):
            fields = row.split()
            if len(fields) < len(_COLUMNS) and line == lines:
                raise _truncated(lines, "a row of 12 fields")
            if len(fields) != len(_COLUMNS):
                raise RejectedError(
                    "wrong joint row", line=line, found=f"{len(fields)} fields", expected="12"
                )
            for field in fields[:3]:
                if not _NUMBER.fullmatch(field) or abs(float(field)) > _FARTHEST:
                    raise RejectedError(
                        "no number in x, y, z", line=line, found=_shown(field), expected="metres"
                    )
            xyz.append([float(field) for field in fields[:3]])
    return np.array(xyz).reshape(-1, _JOINTS, 3)


def _shown(field: bytes) -> str:
    text = field.decode("ascii")
    return repr(text if len(text) <= 40 else text[:40] + "…")
