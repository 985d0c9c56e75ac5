"""NTU RGB+D's `.skeleton` text -> Recording."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .recording import Recording, RejectedError
from .text import metres, numbers_at, shown

NAME = re.compile(r"(S\d{3}C\d{3}P\d{3}R\d{3}A\d{3})\.skeleton", re.ASCII)
KEY = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.ASCII)

_JOINTS = 25
_BODY = 2 + _JOINTS  # lines of a body in a frame: its header, its joint count, its joints
_HEADER = 10  # fields of a body's header: its id, eight flags and leanings, its tracking state
_FIELDS = 12  # of a joint: x, y, z, and nine that are not used
_ID = re.compile(rb"-?\d{1,19}")
_LINES = 1 << 20  # in a file at most: 20 minutes of one body, and no memory filled by empty frames
_LONG = 16 << 20  # bytes; a longer file is read line by line, which takes less memory


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
            finite number in x, y or z, anything after the last frame, more than a million lines.
    """
    if not data.isascii():
        raise RejectedError("not a text file", found="a byte above 127", expected="ASCII")
    usual = _by_columns(data)
    return usual if usual is not None else _by_line(data)


def _by_columns(data: bytes) -> Recording | None:
    """Read a file as the sensor's software writes it; None for any that differs in any way.

    Fields stand apart by one space and lines end where their last field does. So the places of the
    white space say where all fields are, and only those that are needed are looked at.

    What takes time here is memory, which is why places are kept in 32 bits.
    """
    if len(data) > _LONG:
        return None
    # A line's end is looked for in its first line only: a file of mixed ends goes the slow way.
    text = data.replace(b"\r\n", b"\n") if b"\r" in data[:32] else data
    if not text.endswith(b"\n") or text[-2:].isspace():
        text = text.rstrip() + b"\n"
    bytes_ = np.frombuffer(text, dtype=np.uint8)
    places = np.flatnonzero(bytes_ <= ord(" "))
    after = bytes_[places]
    ends = places.astype(np.int32)  # of the fields
    if ends[0] == 0 or (ends[1:] - ends[:-1]).min(initial=2) == 1:
        return None  # an empty field
    last_L = np.flatnonzero(after == ord("\n"))  # field of each line
    lines = len(last_L)
    if lines > _LINES or np.count_nonzero(after == ord(" ")) + lines < len(ends):
        return None  # too many lines; other white space, or another control character
    stop_L = ends[last_L]
    start_L = np.append(np.int32(0), stop_L[:-1] + 1)
    fields_L = last_L - np.concatenate([[-1], last_L[:-1]])

    def cut(starts: npt.NDArray[np.int32], stops: npt.NDArray[np.int32]) -> list[bytes]:
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        return [text[start:stop] for start, stop in pairs]

    # A line of as many fields as a header has starts a body. What is in no body counts the bodies
    # of a frame, apart from the first line: it counts the frames.
    header_R = np.flatnonzero(fields_L == _HEADER)
    if len(header_R) and header_R[-1] + _BODY > lines:
        return None
    row_RJ = header_R[:, None] + np.arange(2, _BODY)
    if (fields_L[row_RJ] != _FIELDS).any():
        return None
    counts = cut(start_L[header_R + 1], stop_L[header_R + 1])
    if counts.count(b"%d" % _JOINTS) != len(header_R):
        return None
    outside_L = np.ones(lines, dtype=np.bool_)
    outside_L[0] = False
    outside_L[header_R[:, None] + np.arange(_BODY)] = False
    line_F = np.flatnonzero(outside_L)
    bodies_F = np.diff(line_F, append=lines) // _BODY
    frame_R = np.repeat(np.arange(len(line_F)), bodies_F)
    if len(frame_R) != len(header_R):
        return None  # bodies before the first frame
    if cut(start_L[line_F], stop_L[line_F]) != [b"%d" % bodies for bodies in bodies_F.tolist()]:
        return None
    if text[: stop_L[0]] != b"%d" % len(line_F):
        return None

    names = cut(start_L[header_R], ends[last_L[header_R] - (_HEADER - 1)])
    id_of = {name: _integer(name) for name in set(names)}
    if None in id_of.values():
        return None
    before = last_L[row_RJ.ravel()] - _FIELDS  # the last field of the line before
    line, x, y, z = (ends[before + field] for field in range(4))
    xyz = numbers_at(text, np.stack([line + 1, x, x + 1, y, y + 1, z], axis=-1))
    if xyz is None:
        return None
    return Recording(
        frames=len(line_F),
        frame_R=frame_R,
        id_R=np.array([id_of[name] for name in names], dtype=np.int64),
        xyz_RJC=xyz.reshape(-1, _JOINTS, 3),
    )


def _by_line(data: bytes) -> Recording:
    """Read any file, line by line, and name the line that is at fault."""
    if (lines := data.count(b"\n")) > _LINES:
        raise RejectedError("too many lines", found=f"{lines:,}", expected=f"at most {_LINES:,}")
    text = _Lines(data)
    frames = text.count(0, "frame count")
    at = 1
    frame_R: list[int] = []
    id_R: list[int] = []
    first_R: list[int] = []  # line of the first joint
    for frame in range(frames):
        bodies = text.count(at, "body count")
        at += 1
        for _ in range(bodies):
            id_R.append(_body_id(text, at))
            if text.count(at + 1, "joint count") != _JOINTS:
                raise RejectedError(
                    "wrong joint count", line=at + 2, found=shown(text[at + 1]), expected="25"
                )
            first_R.append(at + 2)
            frame_R.append(frame)
            at += _BODY
            if at > len(text):
                raise _truncated(len(text), f"a whole body in frame {frame + 1} of {frames}")
    if not text.blank_from(at):
        raise RejectedError(
            "text after the last frame",
            line=at + 1,
            found=shown(text[at]),
            expected=f"the end after {frames} frames",
        )
    rows = (line for first in first_R for line in range(first, first + _JOINTS))
    xyz = np.array([_position(text, line) for line in rows])
    return Recording(
        frames=frames,
        frame_R=np.array(frame_R, dtype=np.int64),
        id_R=np.array(id_R, dtype=np.int64),
        xyz_RJC=xyz.reshape(-1, _JOINTS, 3),
    )


class _Lines:
    """The lines of a file, from 0, found once and cut out only where they are asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n"))
        unended = [] if data.endswith(b"\n") else [len(data)]
        self._marks = np.concatenate([[-1], ends, unended]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._marks) - 1

    def __getitem__(self, line: int) -> bytes:
        return self._data[self._marks[line] + 1 : self._marks[line + 1]].strip()

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
            f"wrong {what}", line=line + 1, found=shown(field), expected="a whole number from 0"
        )


def _truncated(lines: int, expected: str) -> RejectedError:
    return RejectedError("truncated file", line=lines, found="the end", expected=expected)


def _body_id(text: _Lines, line: int) -> int:
    fields = text[line].split() if line < len(text) else []
    if not fields and text.blank_from(line):
        raise _truncated(len(text), "a body")
    number = _integer(fields[0]) if len(fields) == _HEADER else None
    if number is None:
        raise RejectedError(
            "wrong body header",
            line=line + 1,
            found=f"{len(fields)} fields, the first of them {shown(fields[0] if fields else b'')}",
            expected="10, the first of them an id of 64 bits",
        )
    return number


def _integer(field: bytes) -> int | None:
    """An id; None where it is none."""
    if _ID.fullmatch(field) and abs(number := int(field)) < 2**63:
        return number
    return None


def _position(text: _Lines, line: int) -> list[float]:
    fields = text[line].split()
    if len(fields) < _FIELDS and line + 1 == len(text):
        raise _truncated(len(text), f"a row of {_FIELDS} fields")
    if len(fields) != _FIELDS:
        raise RejectedError(
            "wrong joint row", line=line + 1, found=f"{len(fields)} fields", expected=str(_FIELDS)
        )
    return [metres(field, line + 1) for field in fields[:3]]
