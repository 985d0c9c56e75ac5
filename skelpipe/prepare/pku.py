"""PKU-MMD's three texts: skeletons -> Recording, labels -> actions, lists -> who is in which part.

A recording of minutes is two files of one name in two folders: its skeletons and its labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .listing import Action
from .recording import Recording, RejectedError
from .text import metres, numbers_at, shown

RECORDING = r"\d{4}-[LMR]|A\d\dN\d\d-[LMR]"
"""What recordings are called: by number and view in Part I; script, subject and view in Part II."""

_BODIES, _JOINTS = 2, 25
FIELDS = _BODIES * _JOINTS * 3  # of a row of skeletons
_CHUNK = 1 << 18  # bytes read at once: what it takes beside the numbers stays small
_LINE = 1 << 16  # bytes of a line, at most: far more than 150 numbers take
_ROW = re.compile(rb"[ \t]*,[ \t]*".join([rb"(-?\d{1,9})"] * 4))
_LISTED = re.compile(RECORDING, re.ASCII)


def parse(data: bytes) -> Recording:
    """Read a skeleton file: a row a frame, 150 numbers, body 1's 25 x, y, z and then body 2's.

    Numbers stand apart by blanks or tabs, any number of them; lines end in either way; the tail may
    be blank. Nothing says how many frames there are but their rows.

    Returns:
        A recording of two slots, zeros where a body is absent, in metres.

    Raises:
        RejectedError: the file is empty, a row has another number of fields, or a field is no
            finite number (or one beyond 1,000 km).
    """
    bytes_ = np.frombuffer(data, dtype=np.uint8)
    if not data.isascii() or bytes_[bytes_ < ord(" ")].tobytes().strip():
        raise RejectedError("not a text file", found="a byte that no text has", expected="ASCII")
    if not data.strip():
        raise RejectedError("empty file", expected="a row of 150 numbers for every frame")
    data = data.rstrip()
    rows = []
    start, line = 0, 1
    while start < len(data):
        least = start + _CHUNK
        stop = data.find(b"\n", least, least + _LINE)
        if stop < 0 and least + _LINE < len(data):
            line += data.count(b"\n", start, least)
            raise RejectedError("too long a line", line=line, expected=f"≤ {_LINE} bytes")
        stop = len(data) if stop < 0 else stop
        rows.append(_numbers(data[start:stop], line))
        line += len(rows[-1]) // FIELDS
        start = stop + 1
    poses_TMJC = np.concatenate(rows).reshape(-1, _BODIES, _JOINTS, 3)
    return Recording.of_slots(np.swapaxes(poses_TMJC, 0, 1))


def _numbers(text: bytes, line: int) -> npt.NDArray[np.float64]:
    """The numbers of whole lines, the first of which has a number of its own."""
    bytes_ = np.frombuffer(text, dtype=np.uint8)
    blank = np.ones(len(text) + 2, dtype=np.bool_)
    np.less_equal(bytes_, ord(" "), out=blank[1:-1])
    # By turns the first byte of a field and the one after its last.
    edges = np.flatnonzero(blank[1:] != blank[:-1])
    ends_L = np.append(np.flatnonzero(bytes_ == ord("\n")), len(text))
    fields_L = np.diff(np.searchsorted(edges[::2], ends_L), prepend=0)
    wrong = np.flatnonzero(fields_L != FIELDS)
    if len(wrong):
        raise RejectedError(
            "wrong number of fields",
            line=line + int(wrong[0]),
            found=str(fields_L[wrong[0]]),
            expected=f"{FIELDS}, x, y, z of two bodies' 25 joints",
        )
    numbers = numbers_at(text, edges.astype(np.int32))
    return _one_by_one(text, line) if numbers is None else numbers


def _one_by_one(text: bytes, line: int) -> npt.NDArray[np.float64]:
    fields = enumerate(text.split())
    return np.array([metres(field, line + place // FIELDS) for place, field in fields])


def parse_labels(data: bytes) -> tuple[Action, ...]:
    """Read a label file: a row an action, `action, start, end, confidence`, whole numbers.

    Blank rows are passed over, blanks around numbers too. The numbers may be any: an action that
    there is not, a start after the end, frames that the recording lacks.

    Raises:
        RejectedError: a row is of another form.
    """
    actions: list[Action] = []
    for number, row in enumerate(data.split(b"\n"), 1):
        if not row.strip():
            continue
        match = _ROW.fullmatch(row.strip())
        if match is None:
            raise RejectedError(
                "wrong label row",
                line=number,
                found=shown(row.strip()),
                expected="action, start, end, confidence",
            )
        action, start, end, confidence = map(int, match.groups())
        actions.append((action, start, end, confidence))
    return tuple(actions)


def parse_list(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read a split's list: a heading, the names that train, a heading, the names that validate.

    Names stand apart by commas, by blanks too, on one line or several; a comma may be the last.

    Returns:
        The names that train, and those that validate, in the order of the file.

    Raises:
        RejectedError: anything else stands there, a part is empty or the parts are in another
            order, or a name stands there twice.
    """
    parts: list[list[str]] = []
    seen: set[str] = set()
    for number, line in enumerate(data.decode("ascii", "replace").split("\n"), 1):
        names = line.replace(",", " ").split()
        if not names:
            continue
        if not _LISTED.fullmatch(names[0]):
            if len(parts) == 2 or (parts and (not parts[-1] or "train" in line.lower())):
                raise _no_list(number, line, "a list of the recordings that validate, and no more")
            parts.append([])
            continue
        for name in names:
            if not parts or not _LISTED.fullmatch(name):
                raise _no_list(number, name, "a name" if parts else "a heading")
            if name in seen:
                raise RejectedError("a recording that is listed twice", line=number, found=name)
            seen.add(name)
            parts[-1].append(name)
    if len(parts) < 2 or not parts[1]:
        raise RejectedError("truncated list", expected="a list of the recordings that validate")
    return tuple(parts[0]), tuple(parts[1])


def span(action: Action, swapped: bool) -> tuple[int, int]:
    """First frame and the one after the last of a row; ``swapped``, where it says them reversed."""
    _, start, end, _ = action
    return (end, start) if swapped and start > end else (start, end)


def frame_labels(
    actions: Iterable[Action], frames: int, reversed: str = "swapped"
) -> npt.NDArray[np.uint8]:
    """What is done in each frame of a recording, (T,): 0 nothing, else the action, from 1.

    An action takes the frames from its start to before its end, counted from 0, as far as the
    recording has them. Where rows overlap, the later row of the file holds, as in PCM3's detection
    code. That code writes the action's number + 1, so that 1 is never used and there are 53
    classes; these are 52.

    Args:
        actions: Rows of the label file, numbers 1 to 51.
        frames: T.
        reversed: Rows that start after their end: "swapped", or "as_published" without any frame.
    """
    labels_T = np.zeros(frames, dtype=np.uint8)
    for action in actions:
        start, end = span(action, reversed == "swapped")
        labels_T[max(start, 0) : max(end, 0)] = action[0]
    return labels_T


def _no_list(line: int, found: str, expected: str) -> RejectedError:
    return RejectedError(
        "no list of recordings", line=line, found=shown(found.strip().encode()), expected=expected
    )
