"""Action detection on whole recordings, as PCM3 did it on PKU-MMD I (Sec. 4.3, Table 5).

A linear layer on the encoder tells the action of a window's middle frame. Both are trained on
windows of recordings in the camera's metres, whatever pipeline the encoder was pre-trained on: of
PCM3's encoder the input norm adapts. Every frame of a test recording is asked, frames become
segments, and segments are measured by the official metrics and by PASCAL VOC's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor

from skelpipe import distributed
from skelpipe.errors import UserError
from skelpipe.protocols import detection_metrics as metrics
from skelpipe.protocols.detection_inference import frame_scores
from skelpipe.protocols.detection_metrics import Matched, Segment
from skelpipe.protocols.detection_model import FrameClassifier
from skelpipe.protocols.detection_segments import pack_segments, segments, smooth
from skelpipe.protocols.detection_training import fit
from skelpipe.protocols.metrics import headline
from skelpipe.protocols.question import Found, Question
from skelpipe.protocols.settings import Detection
from skelpipe.shards.card import Card, made_from, read_card
from skelpipe.stream.frame_labels import FrameLabels, read_frame_labels

PIPELINE = "recordings"
SEGMENTS = "segments.parquet"
_OVERLAPS = (0.5, 0.3, 0.1)
_CONVENTIONS: tuple[metrics.Convention, ...] = ("official", "voc")


def recordings_card(folder: Path, val_subjects: Sequence[int] = ()) -> Card:
    """The card of a set of whole recordings.

    Raises:
        UserError: The set holds clips; subjects are to be held out, and it states none.
    """
    card = read_card(folder)
    if card.pipeline.name != PIPELINE:
        pku = card.source.layout == "pku"
        name, split = (made_from(card), card.split) if pku else ("pku1", "xsub")
        raise UserError(
            "detection needs whole recordings",
            file=folder,
            found=f"clips of {card.dataset}, prepared with '{card.pipeline.name}'",
            remedy=f"skelpipe prepare {name} --split {split} --pipeline {PIPELINE}, and --data",
        )
    if val_subjects and not card.counts.train.subjects:
        raise UserError(
            "no subjects can be held out: the set does not say who is in its recordings",
            file=folder,
            found=f"{card.title}",
            expected="a set whose recordings' names tell their subjects, such as pku2",
            remedy="leave out --val-subjects",
        )
    return card


def answer(protocol: Detection, question: Question) -> Found:
    """Train on a question's training recordings, and detect in its test recordings."""
    learned = read_frame_labels(question.folder, question.train.table)
    asked = read_frame_labels(question.folder, question.test.table)
    model = FrameClassifier(
        question.encoder(),
        question.recipe,
        question.topology,
        question.kind,
        protocol,
        outputs=1 + question.classes,
        seed=question.seed,
    )
    most = max(pc.max(part.table["bodies"]).as_py() for part in (question.train, question.test))
    slots = model.slots(most)
    fit(
        model,
        question.train,
        [labels.label_T for labels in learned],
        protocol,
        slots=slots,
        seed=question.seed,
        report=lambda epoch: question.report(epoch, protocol.epochs),
    )
    predicted, right = detect(model, protocol, question, asked, slots)
    truths = [
        Segment(place, *action) for place, labels in enumerate(asked) for action in labels.actions
    ]
    frames = sum(len(labels.label_T) for labels in asked)
    idle = sum(int((labels.label_T == 0).sum()) for labels in asked)
    row, record = scored(predicted, truths, question)
    name = "student" if question.subject == "run" else "untrained encoder"
    row = {"network": name, **row, "frame_accuracy": 100 * right / frames}
    idle_share = {"frame_accuracy_of_no_action": 100 * idle / frames}
    keys = question.test.table["key"].to_pylist()
    named = partial(_named, keys=keys)
    return Found(
        [row],
        {"headline": headline(row["map_a"], "map_a"), **idle_share, **record},
        files={SEGMENTS: pack_segments(map(named, predicted), map(named, truths))},
    )


def detect(
    model: FrameClassifier,
    protocol: Detection,
    question: Question,
    asked: Sequence[FrameLabels],
    slots: int,
) -> tuple[list[Segment], int]:
    """Segments of all test recordings, and how many frames are told right; ranks share the work.

    Frames are told by the smoothed probabilities that segments are made of.

    Raises:
        UserError: A recording's probabilities are not finite.
    """
    source = question.test
    rank, world = distributed.rank(), distributed.world()
    first, last = (len(source) * number // world for number in (rank, rank + 1))
    rows: list[Segment] = []
    right, wrong = torch.zeros((), dtype=torch.int64), -1
    for place in range(first, last):
        score_TK = frame_scores(model, source, place, protocol, slots=slots).numpy()
        score_TK = smooth(score_TK, protocol.smooth, protocol.smoothing)
        if not torch.from_numpy(score_TK).isfinite().all():
            wrong = place
            break
        right += int((score_TK.argmax(1) == asked[place].label_T.numpy()).sum())
        rows += segments(score_TK, protocol.threshold, place)
    distributed.wait_for_all()  # some have longer recordings than others
    wrong = max(_of_all(torch.tensor([wrong]), source.device).tolist())
    if wrong >= 0:
        raise UserError(
            "a recording has probabilities that are not finite",
            found=source.table["key"][wrong].as_py(),
            remedy="the run diverged: evaluate another checkpoint or lower the rate",
        )
    mine = torch.tensor(rows, dtype=torch.float64).view(-1, len(Segment._fields))
    found = [
        Segment(int(place), int(action), int(start), int(end), confidence)
        for place, action, start, end, confidence in _of_all(mine, source.device).tolist()
    ]
    return found, int(distributed.sum_over_ranks(right.to(source.device)))


def _of_all(rows: Tensor, device: torch.device) -> Tensor:
    """The rows of all ranks, in their order."""
    return distributed.gather_rows(rows.to(device))[0].cpu()


def scored(
    predicted: Sequence[Segment], truths: Sequence[Segment], question: Question
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of a row, and what the record has beside them; in per cent.

    The headline mAP_a is VOC's and mAP_v the official one, as PCM3's code computes them.
    """
    matched = {name: metrics.match(predicted, truths, name) for name in _CONVENTIONS}
    tables: dict[str, Any] = {
        name: {f"{theta:g}": _maps(found, theta) for theta in _OVERLAPS}
        for name, found in matched.items()
    }
    at = _OVERLAPS[0]
    row = {
        "map_a": tables["voc"][f"{at:g}"]["map_a"],
        "map_v": tables["official"][f"{at:g}"]["map_v"],
        **tables,
        "f1": 100 * metrics.f1(matched["official"], at),
        "ap_2d": 100 * metrics.average_precision_2d(matched["official"]),
    }
    classes, table = question.card.classes, question.test.table
    per_class = {
        name: {
            classes[action - 1]: 100 * value
            for action, value in metrics.action_precisions(found, at).items()
        }
        for name, found in matched.items()
    }
    per_recording = metrics.recording_precisions(matched["official"], at)
    return row, {
        "class_ap": per_class,
        "recordings": [
            {
                "key": table["key"][place].as_py(),
                "frames": table["frames"][place].as_py(),
                "ap": 100 * value,
            }
            for place, value in per_recording.items()
        ],
        "segments": {"predicted": len(predicted), "true": len(truths)},
    }


def _maps(matched: Matched, theta: float) -> dict[str, float]:
    return {
        "map_a": 100 * metrics.mean(metrics.action_precisions(matched, theta)),
        "map_v": 100 * metrics.mean(metrics.recording_precisions(matched, theta)),
    }


def _named(segment: Segment, keys: Sequence[str]) -> Segment:
    """A segment whose recording is told by its key, not by its place."""
    return segment._replace(recording=keys[int(segment.recording)])
