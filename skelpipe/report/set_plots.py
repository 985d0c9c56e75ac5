"""Figures of a prepared set: how many samples there are of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .colours import colour
from .histogram import Lengths
from .plots import plain

Series = Mapping[str, Sequence[int]]
"""Name of a part -> its count for each bar; parts are stacked in this order."""

_WIDTH = 9.0  # inches
_BAR = 0.2  # inches from one horizontal bar to the next
_MOST = 60  # horizontal bars above each other; more stand in several columns
_LONGEST = 42  # letters of a bar's name
_LETTERS = 95  # of the names under upright bars that fit side by side


def bars_figure(names: Sequence[str], series: Series) -> Figure:
    """Horizontal bars, for names of any length; each ends with its number."""
    columns = -(-len(names) // _MOST)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(_WIDTH, 0.8 + _BAR * rows), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharex=True)[0]
    for number, panel in enumerate(panels):
        part = slice(number * rows, (number + 1) * rows)
        places = np.arange(len(names[part]))
        ends = np.zeros(len(places), dtype=np.int64)
        for shade, (name, counts) in enumerate(series.items()):
            panel.barh(places, counts[part], 0.75, left=ends, color=colour(shade), label=name)
            ends += np.array(counts[part])
        for place, end in zip(places, ends, strict=True):
            panel.annotate(
                f"{end:,}",
                (end, place),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        panel.set_yticks(places, [_shortened(name) for name in names[part]], fontsize=8)
        panel.set_ylim(rows - 0.4, -0.6)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        _tidy(panel, "x")
    longest = max(map(sum, zip(*series.values(), strict=True)), default=0)
    panels[0].set_xlim(0, 1.12 * max(longest, 1))  # all panels share it
    _legend(figure, panels[0], series)
    return figure


def columns_figure(names: Sequence[str], series: Series, what: str) -> Figure:
    """Upright bars, for many short names such as the numbers of subjects; ``what`` they are."""
    figure = Figure(figsize=(_WIDTH, 2.6), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(names))
    ends = np.zeros(len(names), dtype=np.int64)
    for shade, (name, counts) in enumerate(series.items()):
        panel.bar(places, counts, 0.8, bottom=ends, color=colour(shade), label=name)
        ends += np.array(counts)
    letters = sum(len(name) + 1 for name in names)
    step = -(-letters // _LETTERS)
    panel.set_xticks(places[::step], names[::step], fontsize=8)
    panel.set_xlabel(what)
    panel.set_ylabel("samples")
    panel.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panel.set_xlim(-0.8, len(names) - 0.2)
    panel.set_ylim(0, 1.08 * max(*ends, 1))
    _tidy(panel, "y")
    _legend(figure, panel, series)
    return figure


def lengths_figure(found: Lengths, fps: float) -> Figure:
    """Histogram of lengths in frames, the seconds above."""
    figure = Figure(figsize=(_WIDTH, 3), layout="constrained")
    panel = figure.subplots()
    widths = 0.94 * np.diff(found.edges)
    ends = np.zeros(len(widths), dtype=np.int64)
    series = {"train": found.train, "test": found.test}
    for shade, (name, counts) in enumerate(series.items()):
        panel.bar(
            found.edges[:-1],
            counts,
            widths,
            bottom=ends,
            align="edge",
            color=colour(shade),
            label=name,
        )
        ends += np.array(counts)
    median = found.quartiles[2]
    panel.axvline(median, color="#444444", linewidth=1, linestyle=(0, (4, 3)))
    panel.annotate(
        f"median {median:g}",
        (median, 1),
        (4, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color="#444444",
    )
    panel.set_xlabel("frames")
    panel.set_ylabel("samples")
    panel.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    panel.margins(y=0.12)
    _tidy(panel, "y")
    seconds = panel.secondary_xaxis(
        "top", functions=(lambda t: np.divide(t, fps), lambda s: np.multiply(s, fps))
    )
    seconds.set_xlabel("seconds", fontsize=8)
    seconds.tick_params(labelsize=8)
    _legend(figure, panel, series)
    return figure


def _tidy(panel: Axes, axis: Literal["x", "y"]) -> None:
    panel.set_axisbelow(True)
    panel.grid(axis=axis, color="#E3E6EA", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, panel: Axes, series: Series) -> None:
    if len(series) > 1:
        handles, labels = panel.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def _shortened(name: str) -> str:
    return plain(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")
