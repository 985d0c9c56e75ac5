"""From probabilities of frames to segments, and segments as a Parquet file.

As PCM3's detection code has it (Simple-Skeleton-Detection): probabilities are smoothed along time;
where the smoothed probability of any action is large enough, a run of such frames is one segment,
whose action has the largest mean of smoothed probabilities, which is its confidence. Nothing is
suppressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from skelpipe.protocols.detection_metrics import Segment

Smoothing = Literal["whole", "as_published"]
Floats = npt.NDArray[np.float64]


def smooth(score_TK: Floats, radius: int, smoothing: Smoothing) -> Floats:
    """The mean over frames [t - radius, t + radius), as far as there are such.

    Args:
        score_TK: Probabilities of T frames, at least one.
        radius: In frames; 0 leaves all as it is.
        smoothing: "as_published" ends at the last frame, which so enters no mean (but that of a
            recording of one frame); "whole" ends behind it.

    Returns:
        Shape (T, K).
    """
    frames = len(score_TK)
    if radius == 0:
        return score_TK
    last = max(frames - 1, 1) if smoothing == "as_published" else frames
    sums = np.zeros((frames + 1, score_TK.shape[1]))
    np.cumsum(score_TK, axis=0, out=sums[1:])
    begin = np.maximum(np.arange(frames) - radius, 0)
    end = np.minimum(np.arange(frames) + radius, last)
    found: Floats = (sums[end] - sums[begin]) / (end - begin)[:, None]
    return found


def segments(score_TK: Floats, threshold: float, recording: int | str) -> list[Segment]:
    """Maximal runs of frames in which something is done, in their order.

    Args:
        score_TK: Smoothed probabilities; column 0 is of no action.
        threshold: Something is done in a frame where 1 - p(no action) is this or more.
        recording: What the segments say that they are of.
    """
    active = np.zeros(len(score_TK) + 2, dtype=np.int8)
    active[1:-1] = 1 - score_TK[:, 0] >= threshold
    edges = np.flatnonzero(np.diff(active)).tolist()
    found = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        mean_K = score_TK[start:end, 1:].mean(0)
        best = int(mean_K.argmax())
        found.append(Segment(recording, best + 1, start, end, float(mean_K[best])))
    return found


_SCHEMA = pa.schema(
    [
        ("recording", pa.string()),
        ("predicted", pa.bool_()),
        ("label", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("confidence", pa.float64()),
    ]
)


def pack_segments(predicted: Iterable[Segment], truths: Iterable[Segment]) -> bytes:
    """The bytes of a file of segments; recordings are named in them.

    Columns: recording (string), predicted (bool; truths are not), label (int32, from 0: the class
    of the set's card), start, end (int32), confidence (float64).
    """
    rows = [*((False, truth) for truth in truths), *((True, segment) for segment in predicted)]
    table = pa.table(
        {
            "recording": [str(segment.recording) for _, segment in rows],
            "predicted": [is_predicted for is_predicted, _ in rows],
            "label": [segment.action - 1 for _, segment in rows],
            "start": [segment.start for _, segment in rows],
            "end": [segment.end for _, segment in rows],
            "confidence": [segment.confidence for _, segment in rows],
        },
        schema=_SCHEMA,
    )
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def unpack_segments(content: bytes) -> tuple[list[Segment], list[Segment]]:
    """The predicted segments of `pack_segments`, and the true ones."""
    found: tuple[list[Segment], list[Segment]] = ([], [])
    for row in pq.read_table(BytesIO(content), schema=_SCHEMA).to_pylist():
        segment = Segment(
            row["recording"], row["label"] + 1, row["start"], row["end"], row["confidence"]
        )
        found[0 if row["predicted"] else 1].append(segment)
    return found


def of_recording(segments: Sequence[Segment], recording: int | str) -> list[Segment]:
    """Those of one recording."""
    return [segment for segment in segments if segment.recording == recording]
