"""How well predicted segments meet the true ones: PKU-MMD's official metrics, and PASCAL VOC's.

Both sweep over all predictions by confidence and take the area under the precision envelope; a
truth counts as found once, by whichever prediction of its action and recording overlaps with it
most. They differ in the overlap of two segments and in what happens at equality:

    official   (min ends - max starts) / (max ends - min starts)
    voc        (min ends - max starts + 1) / (sum of lengths, each + 1, - that), as if ends belonged
               to their segments; 0 where it would be negative

Starts and ends are label files' numbers: the first frame, and the one after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Convention = Literal["official", "voc"]

THETAS = tuple(step / 20 for step in range(1, 21))
"""Overlaps of the official 2D-AP: 0.05, 0.10 ... 1.00."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Segment(NamedTuple):
    """An action in a recording.

    Attributes:
        recording: Its number, or name.
        action: Its number.
        start, end: First frame, and the one after the last.
        confidence: Of a prediction.
    """

    recording: int | str
    action: int
    start: int
    end: int
    confidence: float = 1.0


def official_overlap(one: Segment, other: Segment) -> float:
    """PKU-MMD's: negative where the two lie apart."""
    common = min(one.end, other.end) - max(one.start, other.start)
    return common / (max(one.end, other.end) - min(one.start, other.start))


def voc_overlap(one: Segment, other: Segment) -> float:
    """PASCAL VOC's: ends are taken to belong to their segments."""
    common = max(min(one.end, other.end) - max(one.start, other.start) + 1, 0)
    lengths = (one.end - one.start + 1) + (other.end - other.start + 1)
    return common / (lengths - common)


_OVERLAPS: dict[Convention, Callable[[Segment, Segment], float]] = {
    "official": official_overlap,
    "voc": voc_overlap,
}


@dataclass(frozen=True)
class Matched:
    """Predictions, the most confident first, each with the truth that it overlaps with most.

    Attributes:
        truth_P: The truth's number; -1 where there is none of its action in its recording.
        overlap_P: With that truth; -1 where there is none.
        action_P, recording_P: Of each prediction; its recording as a place in ``recordings``.
        action_G, recording_G: Of each truth.
        recordings: Numbers or names, as segments have them.
    """

    truth_P: Ints
    overlap_P: Floats
    action_P: Ints
    recording_P: Ints
    action_G: Ints
    recording_G: Ints
    recordings: tuple[int | str, ...]


def match(
    predicted: Sequence[Segment], truths: Sequence[Segment], convention: Convention
) -> Matched:
    """Give every prediction its truth.

    Of truths that overlap equally the official code takes the last, VOC's the first. The official
    comparison begins with "truth -1", Python's last one: for a positive threshold that changes
    nothing, as what is below the threshold never beats what is not. Of equally confident
    predictions the official sweep drops the earlier one first, VOC's takes the earlier one first.
    """
    overlap = _OVERLAPS[convention]
    numbers: dict[int | str, int] = {}
    for segment in (*truths, *predicted):
        numbers.setdefault(segment.recording, len(numbers))
    candidates: dict[tuple[int | str, int], list[int]] = {}
    for number, truth in enumerate(truths):
        candidates.setdefault((truth.recording, truth.action), []).append(number)
    ascending = sorted(range(len(predicted)), key=lambda place: predicted[place].confidence)
    if convention == "official":
        order = ascending[::-1]
    else:
        order = sorted(range(len(predicted)), key=lambda place: -predicted[place].confidence)
    found: list[tuple[float, int]] = []
    for place in order:
        segment = predicted[place]
        best = (-1.0, -1)
        for number in candidates.get((segment.recording, segment.action), ()):
            share = overlap(segment, truths[number])
            if share > best[0] or (convention == "official" and share == best[0]):
                best = (share, number)
        found.append(best)
    return Matched(
        truth_P=np.array([number for _, number in found], dtype=np.int64),
        overlap_P=np.array([share for share, _ in found], dtype=np.float64),
        action_P=np.array([predicted[place].action for place in order], dtype=np.int64),
        recording_P=np.array(
            [numbers[predicted[place].recording] for place in order], dtype=np.int64
        ),
        action_G=np.array([truth.action for truth in truths], dtype=np.int64),
        recording_G=np.array([numbers[truth.recording] for truth in truths], dtype=np.int64),
        recordings=tuple(numbers),
    )


def average_precision(truth_P: Ints, truths: int) -> float:
    """The area under the envelope of precision over recall, by all points.

    Removing predictions in ascending confidence, it is the sum of the largest precision so far
    times what recall loses (the official sweep): which is VOC's monotone envelope, all points.

    Args:
        truth_P: Of predictions, the most confident first: the number of the truth that each hits,
            -1 where it hits none. A truth that was hit before is not found again.
        truths: How many there are, hit or not.

    Returns:
        In [0, 1]; 0 where there are no truths or no predictions.
    """
    if not truths or not len(truth_P):
        return 0.0
    new_P = first_hits(truth_P)
    precision_P = np.cumsum(new_P) / np.arange(1, len(new_P) + 1)
    envelope_P = np.maximum.accumulate(precision_P[::-1])[::-1]
    return float((envelope_P * new_P).sum() / truths)


def first_hits(truth_P: Ints) -> npt.NDArray[np.bool_]:
    """Which predictions are the first to hit their truth."""
    new_P = np.zeros(len(truth_P), dtype=np.bool_)
    new_P[np.unique(truth_P, return_index=True)[1]] = True
    return new_P & (truth_P >= 0)


def hits(matched: Matched, theta: float) -> Ints:
    """The truth that each prediction hits at an overlap of theta or more, else -1."""
    return np.where(matched.overlap_P >= theta, matched.truth_P, -1)


def action_precisions(matched: Matched, theta: float) -> dict[int, float]:
    """Average precision of each action that any truth shows, over all recordings."""
    hit_P = hits(matched, theta)
    return {
        int(action): average_precision(
            hit_P[matched.action_P == action], int((matched.action_G == action).sum())
        )
        for action in np.unique(matched.action_G)
    }


def recording_precisions(matched: Matched, theta: float) -> dict[int | str, float]:
    """Average precision in each recording that shows any action, over all its predictions."""
    hit_P = hits(matched, theta)
    return {
        matched.recordings[number]: average_precision(
            hit_P[matched.recording_P == number], int((matched.recording_G == number).sum())
        )
        for number in np.unique(matched.recording_G)
    }


def mean(values: Mapping[Any, float]) -> float:
    """The mean over actions (mAP_a) or recordings (mAP_v); 0 of none.

    The official mean is over all 51 actions. In its set all of them occur; where some do not, as in
    a part of a set, those that do are what is averaged.
    """
    return sum(values.values()) / len(values) if values else 0.0


def f1(matched: Matched, theta: float) -> float:
    """The harmonic mean of precision and recall of all predictions (official)."""
    hit_P = hits(matched, theta)
    found = int(first_hits(hit_P).sum())
    # 2 P R / (P + R) of P = found / predictions and R = found / truths.
    count = len(hit_P) + len(matched.action_G)
    return 2 * found / count if count else 0.0


def average_precision_2d(matched: Matched) -> float:
    """The mean over the overlaps `THETAS` of the average precision of all predictions (official).

    What it is the mean of is our reading: all actions and recordings in one sweep, as F1 has them.
    """
    truths = len(matched.action_G)
    return sum(average_precision(hits(matched, theta), truths) for theta in THETAS) / len(THETAS)
