"""Generated recordings in PKU-MMD's layout: continuous performances and their labels.

A recording is two files of the archive. ``PKU_Skeleton_Renew/NAME.txt`` has a row a frame of 150
numbers, two bodies of 25 joints in metres, zeros for a body that is not there.
``Train_Label_PKU_final/NAME.txt`` has a row an action: its number (1-51), first frame, frame after
the last, confidence (1, 2). Frames count from 0. ``Split`` holds the official form of the lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .motion import Performance, generator, invented, perform_in_turn, performer
from .programmes import ACTIONS, PKU, programme
from .sensor import measured, seen_by

# The file of each split's lists.
LISTS = {
    "pku1": {"xsub": "cross-subject.txt", "xview": "cross-view.txt"},
    "pku2": {"xsub": "cross_subject_v2.txt", "xview": "cross_view_v2.txt"},
}

# Share of the recordings that show each fault.
OVERLAPPING = 0.5  # of Part II: some actions are said to last until the next ones have begun
PAST = 0.05  # the last action is said to end after the last frame
EMPTY = 0.04  # nobody is seen during a whole action
ABSENT = 0.1  # nobody is seen in some frames
REVERSED = 0.05  # an action is said to start after its end
CRLF = 0.03

_VIEWS = "LMR"  # of cameras 1, 2, 3
_CAMERAS = (2, 1, 3)  # in the order in which they are taken
_VALIDATION_IDS = range(291, 335)  # of Part I
_TRAINING_IDS: tuple[int, ...] = (*range(2, 291), *range(335, 365))
_VALIDATION_SUBJECTS = (2, 3, 7)  # of Part II
_UNSURE = 0.1  # share of the actions of confidence 1
_ZEROS = " ".join(["0"] * 75)
_BODY = " ".join(["%.4f"] * 75)

Present = npt.NDArray[np.bool_]  # (bodies, T)


@dataclass(frozen=True)
class Take:
    """A recording: who is seen how often (``replication``) by which camera, each from 1."""

    name: str  # of the data set
    subject: int
    replication: int
    camera: int

    @property
    def key(self) -> str:
        view = _VIEWS[self.camera - 1]
        if self.name == "pku2":
            return f"A{self.replication:02}N{self.subject:02}-{view}"
        return f"{self._number:04}-{view}"

    def trains(self, split: str) -> bool:
        """Whether the recording stands in a split's first list."""
        if split == "xview":
            return self.camera != 1
        if self.name == "pku2":
            return self.subject not in _VALIDATION_SUBJECTS
        return self._number not in _VALIDATION_IDS

    @property
    def _number(self) -> int:
        """Part I counts performances: every seventh of 66 subjects gets the validation's numbers.

        In the real one, 44 of 363 numbers are the validation's.
        """
        before = (self.subject + 4) // 7  # validation subjects before this one
        if self.subject % 7 == 2:
            return _VALIDATION_IDS[10 * (self.replication - 1) + before]
        return _TRAINING_IDS[56 * (self.replication - 1) + self.subject - 1 - before]


@dataclass(frozen=True)
class Row:
    """A row of a label file."""

    action: int
    start: int
    end: int
    confidence: int


def takes(name: str, subjects: int, cameras: int, replications: int) -> Iterator[Take]:
    """The recordings of a data set of some size, by performer."""
    for subject in range(1, subjects + 1):
        for replication in range(1, replications + 1):
            for camera in sorted(_CAMERAS[:cameras]):
                yield Take(name, subject, replication, camera)


def files(seed: int, take: Take, classes: int, actions: int) -> dict[str, bytes]:
    """The two files of a recording: what the camera makes of the performance, and its labels."""
    joints, present, rows = recording(seed, take, classes, actions)
    texts = {
        f"PKU_Skeleton_Renew/{take.key}.txt": _skeleton_text(joints, present),
        f"Train_Label_PKU_final/{take.key}.txt": "".join(
            f"{row.action},{row.start},{row.end},{row.confidence}\n" for row in rows
        ),
    }
    rng = _generator("line ends", seed, take)
    end = "\r\n" if rng.random() < CRLF else "\n"
    return {path: text.replace("\n", end).encode("ascii") for path, text in texts.items()}


def lists(all_takes: Iterable[Take]) -> dict[str, bytes]:
    """The lists of both splits, in the official form: its spelling and stray commas included."""
    all_takes = sorted(all_takes, key=lambda take: take.key)
    found = {}
    for split, file in LISTS[all_takes[0].name].items():
        trains, validates = (
            "".join(f"{take.key}, " for take in all_takes if take.trains(split) == part).rstrip()
            for part in (True, False)
        )
        text = f"Training videos:\n{trains}\nValidataion videos:\n{validates}\n"
        found[f"Split/{file}"] = text.encode("ascii")
    return found


def recording(
    seed: int, take: Take, classes: int, actions: int
) -> tuple[npt.NDArray[np.float64], Present, list[Row]]:
    """Joints (bodies, T, 25, 3), which of them are seen, (bodies, T), and the labels; with faults.

    Args:
        seed: Of the data set.
        take: The recording.
        classes: Number of classes of the data set.
        actions: Number of executions in a recording, more or less.
    """
    rng = _generator("sensor", seed, take)
    shown, numbers = _performance(seed, replace(take, camera=0), classes, actions)
    scene = generator(seed, f"{take.name} scene", take.subject)
    bodies = [measured(body.joints, rng)[0] for body in seen_by(take.camera, shown.bodies, scene)]
    present = np.stack(shown.present)
    rows = [
        Row(number, *span, 2 - (rng.random() < _UNSURE))
        for number, span in zip(numbers, shown.spans, strict=True)
    ]
    if take.name == "pku2" and rng.random() < OVERLAPPING:
        _overlapping(rows, present, rng)
    for share, fault in _FAULTS:
        if rng.random() < share:
            fault(rows, present, rng)
    return np.stack(bodies), present, rows


@lru_cache(maxsize=1)
def _performance(
    seed: int, take: Take, classes: int, actions: int
) -> tuple[Performance, list[int]]:
    """What all cameras see, and the numbers of its actions; kept for the next camera."""
    rng = _generator("performance", seed, take)
    most = actions * 5 // 4
    count = int(rng.integers((actions * 3 + 3) // 4, most + 1))
    # Each performer goes through all classes, shuffled, again and again.
    first = most * (take.replication - 1)
    deck: list[int] = []
    while len(deck) < first + count:
        shuffler = generator(seed, f"{take.name} deck", take.subject, len(deck) // classes)
        deck += shuffler.permutation(ACTIONS[take.name][:classes]).tolist()
    numbers = deck[first : first + count]
    whats = [programme(PKU[number - 1]) for number in numbers]
    return perform_in_turn(whats, invented(seed, take.subject), performer(rng), rng), numbers


def _generator(use: str, seed: int, take: Take) -> np.random.Generator:
    return generator(seed, f"{take.name} {use}", take.subject, take.replication, take.camera)


def _overlapping(rows: list[Row], present: Present, rng: np.random.Generator) -> None:
    neighbours = list(pairwise(range(len(rows))))
    for here, after in rng.permutation(neighbours)[: rng.integers(1, 4)].tolist():
        until = rng.integers(rows[after].start + 1, rows[after].end)
        rows[here] = replace(rows[here], end=int(until))


def _past(rows: list[Row], present: Present, rng: np.random.Generator) -> None:
    rows[-1] = replace(rows[-1], end=present.shape[1] + int(rng.integers(1, 31)))


def _empty(rows: list[Row], present: Present, rng: np.random.Generator) -> None:
    row = rows[rng.integers(len(rows))]
    present[:, row.start : row.end] = False


def _absent(rows: list[Row], present: Present, rng: np.random.Generator) -> None:
    start = rng.integers(present.shape[1])
    present[:, start : start + rng.integers(1, 21)] = False


def _reversed(rows: list[Row], present: Present, rng: np.random.Generator) -> None:
    which = rng.integers(len(rows))
    rows[which] = replace(rows[which], start=rows[which].end, end=rows[which].start)


_FAULTS = (
    (PAST, _past),
    (EMPTY, _empty),
    (ABSENT, _absent),
    (REVERSED, _reversed),
)


def _skeleton_text(joints: npt.NDArray[np.float64], present: Present) -> str:
    columns = [
        [_BODY % tuple(row) if there else _ZEROS for row, there in zip(*body, strict=True)]
        for body in zip(
            joints.reshape(*joints.shape[:2], 75).tolist(), present.tolist(), strict=True
        )
    ]
    if len(columns) == 1:
        columns.append([_ZEROS] * len(columns[0]))
    return "".join(f"{first} {second}\n" for first, second in zip(*columns, strict=True))
