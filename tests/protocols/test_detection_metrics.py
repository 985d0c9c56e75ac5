from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from skelpipe.protocols.detection_metrics import (
    THETAS,
    Convention,
    Segment,
    action_precisions,
    average_precision_2d,
    f1,
    match,
    mean,
    official_overlap,
    recording_precisions,
    voc_overlap,
)

TRUTHS = [Segment("v", 1, 0, 10), Segment("v", 1, 20, 30), Segment("v", 1, 40, 50)]
PREDICTED = [
    Segment("v", 1, 1, 10, 0.6),  # 9 / 10 of the first truth, which a surer one has
    Segment("v", 1, 0, 10, 0.9),  # the first truth
    Segment("v", 1, 44, 60, 0.5),  # (50 - 44) / (60 - 40) = 0.3 of the third
    Segment("v", 1, 60, 70, 0.8),  # none
    Segment("v", 1, 21, 31, 0.7),  # (30 - 21) / (31 - 20) = 9 / 11 of the second
]


def test_overlaps_by_hand() -> None:
    one, other, apart = Segment(0, 1, 10, 20), Segment(0, 1, 15, 30), Segment(0, 1, 40, 50)
    assert official_overlap(one, other) == 5 / 20  # (20 - 15) / (30 - 10)
    assert voc_overlap(one, other) == 6 / 21  # (20 - 15 + 1) / (11 + 16 - 6)
    assert official_overlap(one, apart) == -20 / 40  # (20 - 40) / (50 - 10)
    assert voc_overlap(one, apart) == 0
    # Neighbours share a frame by VOC's convention: 1 / (11 + 11 - 1).
    assert voc_overlap(one, Segment(0, 1, 20, 30)) == 1 / 21
    assert official_overlap(one, one) == voc_overlap(one, one) == 1


def test_a_sweep_by_hand() -> None:
    """Removing predictions in ascending confidence.

    At 0.5: all 2 of 5 right, recall 2/3; without 0.5 2/4; without 0.6 (of the truth that 0.9 has
    too) 2/3; without 0.7 recall falls by 1/3: 2/3 * 1/3. Without 0.8 1/1; without 0.9: 1 * 1/3.
    Together 5/9.

    At 0.3 the least confident is right as well: 3/5 * 1/3 + 2/3 * 1/3 + 1 * 1/3 = 34/45.
    """
    matched = match(PREDICTED, TRUTHS, "official")
    assert action_precisions(matched, 0.5) == {1: pytest.approx(5 / 9)}
    assert action_precisions(matched, 0.3) == {1: pytest.approx(34 / 45)}
    # Precision 2/5, recall 2/3: 2 * (4/15) / (16/15).
    assert f1(matched, 0.5) == pytest.approx(1 / 2)
    # VOC's third overlap is 7 / (17 + 11 - 7) = 1/3.
    voc = match(PREDICTED, TRUTHS, "voc")
    assert action_precisions(voc, 0.34) == {1: pytest.approx(5 / 9)}
    assert action_precisions(voc, 1 / 3) == {1: pytest.approx(34 / 45)}


def test_means_over_actions_and_recordings_by_hand() -> None:
    """The same, and action 2, which is in recording w alone but is detected in v.

    Action 2 has 0: mAP_a = (5/9 + 0) / 2. In v, the wrong one comes first: precisions by
    confidence 0, 1/2, 1/3, 2/4, 2/5, 2/6, so 1/2 for either truth: 1/2 * 1/3 + 1/2 * 1/3 = 1/3.
    In w nothing is detected: mAP_v = (1/3 + 0) / 2. Of action 3 there is no truth: it is in no
    mean over actions, and lets recordings' precision fall.
    """
    truths = [*TRUTHS, Segment("w", 2, 0, 100)]
    predicted = [*PREDICTED, Segment("v", 2, 0, 100, 0.95)]
    matched = match(predicted, truths, "official")
    assert mean(action_precisions(matched, 0.5)) == pytest.approx(5 / 18)
    assert recording_precisions(matched, 0.5) == {"v": pytest.approx(1 / 3), "w": 0}
    assert mean(recording_precisions(matched, 0.5)) == pytest.approx(1 / 6)
    stranger = match([*predicted, Segment("w", 3, 0, 100, 0.99)], truths, "official")
    assert action_precisions(stranger, 0.5) == action_precisions(matched, 0.5)
    assert f1(stranger, 0.5) == pytest.approx(2 * 2 / (7 + 4))


def test_the_2d_precision_by_hand() -> None:
    """3/4 of the truth is covered: that is enough at 15 of the 20 overlaps 0.05 ... 1."""
    matched = match([Segment(0, 1, 0, 15, 0.5)], [Segment(0, 1, 0, 20)], "official")
    assert average_precision_2d(matched) == pytest.approx(15 / 20)
    assert THETAS[0] == 0.05
    assert THETAS[-1] == 1


@pytest.mark.parametrize("convention", ["official", "voc"])
def test_nothing_detected_and_nothing_to_detect_is_0(convention: Convention) -> None:
    for predicted, truths in (([], TRUTHS), (PREDICTED, []), ([], [])):
        matched = match(predicted, truths, convention)
        assert mean(action_precisions(matched, 0.5)) == 0
        assert mean(recording_precisions(matched, 0.5)) == 0
        assert f1(matched, 0.5) == average_precision_2d(matched) == 0


def official_sweep(predicted: Sequence[Segment], truths: Sequence[Segment], theta: float) -> float:
    """The official metric step by step, with its comparison that begins at truth -1."""

    def overlap(one: Segment, other: Segment) -> float:
        same = one.recording == other.recording and one.action == other.action
        return official_overlap(one, other) if same else 0

    if not predicted or not truths:
        return 0.0
    left = sorted(predicted, key=lambda segment: segment.confidence)
    best_of = []
    for segment in left:
        best = -1
        for number, truth in enumerate(truths):
            share = overlap(segment, truth)
            if share < theta or share < overlap(segment, truths[best]):
                continue
            best = number
        best_of.append(best)
    score = highest = 0.0
    recall = len(set(best_of) - {-1}) / len(truths)
    while left:
        positive = len(set(best_of) - {-1})
        highest = max(highest, positive / len(left))
        del left[0], best_of[0]
        now = len(set(best_of) - {-1}) / len(truths)
        score += highest * (recall - now)
        recall = now
    return score


def voc_sweep(predicted: Sequence[Segment], truths: Sequence[Segment], theta: float) -> float:
    """VOC's devkit step by step: each takes its best truth, if no surer one has."""
    if not predicted or not truths:
        return 0.0
    taken: set[int] = set()
    right = []
    for segment in sorted(predicted, key=lambda segment: -segment.confidence):
        best, most = -1, -1.0
        for number, truth in enumerate(truths):
            same = segment.recording == truth.recording and segment.action == truth.action
            if same and voc_overlap(segment, truth) > most:
                best, most = number, voc_overlap(segment, truth)
        right.append(most >= theta and best not in taken)
        if right[-1]:
            taken.add(best)
    recall = [sum(right[: n + 1]) / len(truths) for n in range(len(right))]
    precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for n in range(len(precision) - 2, -1, -1):
        precision[n] = max(precision[n], precision[n + 1])
    return sum((recall[n + 1] - recall[n]) * precision[n + 1] for n in range(len(recall) - 1))


@pytest.mark.parametrize("convention", ["official", "voc"])
def test_random_segments_against_the_plain_loops(convention: Convention) -> None:
    sweep = official_sweep if convention == "official" else voc_sweep
    draw = random.Random(0)

    def some(most: int) -> list[Segment]:
        """Short recordings and coarse numbers: many equal overlaps and confidences."""
        found = []
        for _ in range(draw.randrange(most)):
            start = draw.randrange(20)
            end = start + draw.randrange(1, 9)
            confidence = draw.randrange(6) / 5
            found.append(Segment(draw.randrange(3), draw.randrange(1, 4), start, end, confidence))
        return found

    for _ in range(40):
        predicted, truths = some(25), some(15)
        matched = match(predicted, truths, convention)
        for theta in (0.1, 0.5, 1.0):
            per_action = {
                action: sweep(
                    [segment for segment in predicted if segment.action == action], wanted, theta
                )
                for action in (1, 2, 3)
                if (wanted := [segment for segment in truths if segment.action == action])
            }
            assert action_precisions(matched, theta) == pytest.approx(per_action)
            per_recording = {
                number: sweep(
                    [segment for segment in predicted if segment.recording == number],
                    wanted,
                    theta,
                )
                for number in (0, 1, 2)
                if (wanted := [segment for segment in truths if segment.recording == number])
            }
            assert recording_precisions(matched, theta) == pytest.approx(per_recording)
        if convention == "official":
            every = [sweep(predicted, truths, theta) for theta in THETAS]
            assert average_precision_2d(matched) == pytest.approx(sum(every) / len(every))
