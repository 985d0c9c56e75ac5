"""A prepared set as one self-contained HTML page: its counts, and some samples in motion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from skelpipe.shards.card import Card, read_card
from skelpipe.shards.index import read_index

from . import player
from .histogram import bodies, lengths
from .html import facts, picture, table, warnings, write_html
from .samples import choose, read_clips
from .scene import lay_out
from .set_facts import NOT_STATED, NUMBERED, origin, per_class, per_number
from .set_plots import Series, bars_figure, columns_figure, lengths_figure

SHOWN = 6  # samples in motion
_MANY = 20  # subjects, cameras or setups, whose bars have no room beneath each other


def write_set_page(folder: Path, out: Path, *, seed: int = 0) -> None:
    """Write the page of a prepared set.

    Args:
        folder: The set.
        out: The HTML file.
        seed: Chooses the samples that are shown.

    Raises:
        UserError: there is no set, or one of the samples shown is damaged.
    """
    card, index = read_card(folder), read_index(folder)
    clips = read_clips(folder, choose(index, SHOWN, seed))
    parts = [
        warnings(card.warnings),
        _counts(card),
        "<h2>Some samples</h2>",
        '<p class="faint">Drawn by lot, of different classes where there are: from the front, the '
        "side and above in one scale (flat skeletons from the front alone), at the speed they were "
        "recorded. The grey line is as high as the lowest joint ever is.</p>",
        *(player.player(lay_out(clip)) for clip in clips),
        "<h2>Classes</h2>",
        _classes(card),
        "<h2>Subjects, cameras, setups</h2>",
        *(_numbered(card, field, what) for field, what in NUMBERED),
        "<h2>Lengths and bodies</h2>",
        _sizes(card, index),
        "<h2>Rejected recordings</h2>",
        _kinds(card.counts.rejected, "rejected recordings", "No recording was rejected."),
        "<h2>Odd, but read</h2>",
        _kinds(card.counts.odd, "odd recordings", "Nothing odd was met."),
        "<h2>Where it came from</h2>",
        facts({**origin(card), "data digest": card.data_digest}),
        player.SCRIPT,
    ]
    title = f"{card.title}, {card.split}, {card.pipeline.name}"
    write_html(out, title, parts, style=player.STYLE)


def _counts(card: Card) -> str:
    counts = card.counts
    tallies = {"train": counts.train, "test": counts.test, "both": counts.total}
    published = {**counts.published, "both": sum(counts.published.values())}
    columns, rows = ["part", "samples", "bodies", "frames"], []
    for part, tally in tallies.items():
        rows.append([part, f"{tally.samples:,}", f"{tally.bodies:,}", f"{tally.frames:,}"])
        if counts.published:
            rows[-1].append(f"{published[part]:,}" if part in published else "")
    if counts.published:
        columns.append("published samples")
    return table(columns, rows, words=1)


def _classes(card: Card) -> str:
    found = per_class(card)
    if not found:
        return "<p>Whole recordings have no class.</p>"
    absent = len(card.classes) - len(found)
    note = f"{absent} more classes have no sample." if absent else "Every class has samples."
    names = [f"{label}  {card.classes[label]}" for label in found]
    series = _series(found.values())
    return picture(
        bars_figure(names, series),
        "samples per class",
        f"Samples per class; labels count from 0. {note}",
    ) + _numbers("class", names, series)


def _numbered(card: Card, field: str, what: str) -> str:
    found = per_number(card, field)
    names, series = list(found), _series(found.values())
    if names == [NOT_STATED]:
        return f"<p>The {field} are not stated.</p>"
    if len(names) > _MANY:
        figure = columns_figure(names, series, what)
    else:
        figure = bars_figure([f"{what} {name}" for name in names], series)
    return picture(figure, f"samples per {what}", "") + _numbers(what, names, series)


def _sizes(card: Card, index: pa.Table) -> str:
    found = lengths(index)
    least, lower, median, upper, most = found.quartiles
    counts = bodies(index)
    names, series = [_bodies(number) for number in counts], _series(counts.values())
    return (
        picture(
            lengths_figure(found, card.fps),
            "histogram of lengths",
            f"Frames of a sample, {card.fps:g} a second: at least {least:g}, quartiles {lower:g}, "
            f"{median:g} and {upper:g}, at most {most:g}.",
        )
        + _numbers("frames", found.bins, {"train": found.train, "test": found.test})
        + picture(bars_figure(names, series), "samples per number of bodies", "")
        + _numbers("bodies", names, series)
    )


def _bodies(number: int) -> str:
    return "1 body" if number == 1 else f"{number} bodies"


def _kinds(counts: Mapping[str, int], what: str, none: str) -> str:
    if not counts:
        return f"<p>{none}</p>"
    names = sorted(counts, key=lambda name: (-counts[name], name))
    series = {"recordings": [counts[name] for name in names]}
    return picture(bars_figure(names, series), what, "") + _numbers(what, names, series)


def _series(counts: Iterable[tuple[int, int]]) -> dict[str, list[int]]:
    pairs = list(counts)
    return {"train": [train for train, _ in pairs], "test": [test for _, test in pairs]}


def _numbers(what: str, names: Sequence[str], series: Series) -> str:
    """The same as a figure, as a table to unfold."""
    rows = [
        (name, *(f"{counts[place]:,}" for counts in series.values()))
        for place, name in enumerate(names)
    ]
    return (
        f"<details><summary>as numbers</summary>{table((what, *series), rows, words=1)}</details>"
    )
