"""One recording along time: what is done and what was detected, as coloured bars."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from skelpipe.protocols.detection_metrics import Segment
from skelpipe.protocols.detection_segments import of_recording, unpack_segments

from .colours import GREY, colour
from .plots import plain

_FEW = 8  # actions that the colours of other figures tell apart


def typical_recording(record: dict[str, Any], segments: bytes) -> bytes:
    """The bars of the recording whose average precision is the median, as a PNG.

    Args:
        record: Of a detection.
        segments: Of `pack_segments`, as stored beside it.
    """
    by_precision = sorted(record["recordings"], key=lambda one: (one["ap"], one["key"]))
    chosen = by_precision[len(by_precision) // 2]
    predicted, truths = unpack_segments(segments)
    figure = bars_figure(
        of_recording(truths, chosen["key"]),
        of_recording(predicted, chosen["key"]),
        record["classes"],
        frames=chosen["frames"],
        title=f"{chosen['key']}: average precision {chosen['ap']:.0f} % at overlap 0.5, "
        "the median of the recordings",
    )
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()


def bars_figure(
    truths: Sequence[Segment],
    predicted: Sequence[Segment],
    classes: Sequence[str],
    *,
    frames: int,
    title: str,
) -> Figure:
    """Truth above, prediction below; the less confident a prediction, the paler.

    Args:
        truths, predicted: Of one recording.
        classes: Names of the actions, from the first.
        frames: Of the recording.
        title: What is written above.
    """
    shown = sorted({segment.action for segment in (*truths, *predicted)})
    shades = dict(zip(shown, _shades(len(shown)), strict=True))
    rows = -(-len(shown) // 4)
    figure = Figure(figsize=(12, 2.1 + 0.22 * rows), layout="constrained")
    axes = figure.subplots()
    for height, segments in ((1, truths), (0, predicted)):
        axes.axhline(height, color=GREY, linewidth=0.6, zorder=0)
        for segment in segments:
            axes.barh(
                height,
                segment.end - segment.start,
                left=segment.start,
                height=0.8,
                color=shades[segment.action],
                alpha=0.25 + 0.75 * min(max(segment.confidence, 0), 1),
            )
    axes.set_yticks([1, 0], ["truth", "detected"])
    axes.set_xlim(0, frames)
    axes.set_ylim(-0.5, 1.5)
    axes.set_xlabel("frame")
    axes.set_title(plain(title), fontsize=10, loc="left", fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    marks = [Patch(color=shades[action], label=plain(classes[action - 1])) for action in shown]
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _shades(count: int) -> list[Any]:
    """Colours that can be told apart, as far as so many can."""
    if count <= _FEW:
        return [colour(number) for number in range(count)]
    shades = [*colormaps["tab20"].colors, *colormaps["tab20b"].colors, *colormaps["tab20c"].colors]  # type: ignore[attr-defined]
    return [shades[number % len(shades)] for number in range(count)]
