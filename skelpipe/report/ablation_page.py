"""A report of ablations as JSON, Markdown and a self-contained page, from its record alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from skelpipe.checkpoint import write_json
from skelpipe.report.ablations import count_orderings

from .colours import COLOURS, GREY
from .grid import Grid, markdown_grid
from .html import facts, picture, table, warnings, write_html
from .plots import plain
from .tables import MEASURES, features_name, settings_line

Record = dict[str, Any]

_SHORT = {"knn": "k-NN", "linear-pcm3": "linear"}


def write_report(out: Path, report: Record) -> list[Path]:
    """Write a report of `ablation_report` as NAME.json, NAME.md and NAME.html.

    Args:
        out: The folder; it is made.
        report: The record.

    Returns:
        The files.
    """
    json, markdown, page = (out / f"{report['name']}{end}" for end in (".json", ".md", ".html"))
    write_json(json, report)
    markdown.write_text(as_markdown(report), encoding="utf-8")
    write_html(page, report["title"], _html(report))
    return [json, markdown, page]


def grids(report: Record) -> list[Grid]:
    """The tables of a report, shortest account first: counts, published beside ours, orderings."""
    names = list(report["protocols"])
    found = [
        _summary_grid(report, names),
        *(
            _rows_grid(table, name, report["columns"], _unit(report, name))
            for name in names
            for table in report["tables"]
        ),
        _floor_grid(report, names),
        _orderings_grid(report, names),
    ]
    return [grid for grid in found if grid.rows]


def _short(protocol: str) -> str:
    return _SHORT.get(protocol, protocol)


def _unit(report: Record, protocol: str) -> str:
    """What a protocol's own numbers are; nothing of accuracies."""
    measure = report["measures"][protocol]
    name = measure["name"]
    lower = " (lower is better)" if measure["lower_is_better"] else ""
    return "" if name == "accuracy" else f"{MEASURES.get(name, name)}{lower}"


def _rows_grid(published: Record, name: str, columns: Record, unit: str) -> Grid:
    shown = list(published["rows"][0]["published"])
    compared = published["compared"][name]
    measured = {"", *published["compared"]}
    missing = {key for key in shown if columns[key]["protocol"] not in measured}
    headings = (
        "row",
        *(
            f"published {_label(columns[key])}{' / ours' if key in missing else ''}"
            for key in shown
        ),
        f"{columns[compared]['label']} over full row",
        f"{_short(name)} by seed{f', {unit}' if unit else ''}",
        "mean ± std",
        "over full row",
    )
    full = _full(published, compared)
    rows = []
    for row in published["rows"]:
        numbers = row["published"]
        cells = [row["label"]]
        cells += [f"{numbers[key]:.1f}{' / –' if key in missing else ''}" for key in shown]
        over = numbers[compared] - full
        cells.append(f"{over:+.1f}" if over else "")
        ours = row["ours"][name]
        cells += ["not run", "", ""] if ours is None else _own_cells(ours)
        rows.append(tuple(cells))
    title = f"Table {published['number']}, {published['title']}: published, and ours, "
    return Grid(title + _short(name), headings, rows)


def _label(column: Record) -> str:
    return f"{column['label']}{' (lower is better)' if column['lower_is_better'] else ''}"


def _full(published: Record, column: str) -> float:
    """The number that a table has for its full row."""
    rows = (row for row in published["rows"] if row["recipe"] == published["full"])
    number: float = next(rows)["published"][column]
    return number


def _own_cells(ours: Record) -> list[str]:
    by_seed = ", ".join(f"{value:.1f}" for value in ours["by_seed"].values())
    difference = ""
    if ours.get("over_full"):
        difference = _difference(**ours["over_full"])
    return [by_seed, _mean(ours), difference]


def _mean(score: Record) -> str:
    return f"{score['mean']:.1f}" + ("" if score["std"] is None else f" ± {score['std']:.1f}")


def _difference(points: float, error: float | None) -> str:
    """Points, and in brackets what they must exceed to be beyond noise, where that is known."""
    return f"{points:+.1f}" + ("" if error is None else f" ({2 * error:.1f})")


def _floor_grid(report: Record, names: Sequence[str]) -> Grid:
    columns = ("floor", *(f"{_short(name)}, mean ± std" for name in names))
    means = [_mean(floor) if (floor := report["floor"][name]) else "" for name in names]
    rows = [("untrained encoder", *means)] if any(means) else []
    return Grid("What comes without training", columns, rows)


def _summary_grid(report: Record, names: Sequence[str]) -> Grid:
    columns: tuple[str, ...] = (
        "protocol", "table", "pairs", "measured", "hold", "hold beyond noise",
        "fail beyond noise", "within noise", "noise unknown",
    )  # fmt: skip
    if not count_orderings(r for name in names for r in report["orderings"][name])["noise_unknown"]:
        columns = columns[:-1]
    rows = []
    for name in names:
        found = report["orderings"][name]
        numbers = [published["number"] for published in report["tables"]]
        for number in (*numbers, "all"):
            counts = count_orderings(r for r in found if number in (r["table"], "all"))
            cells = (_short(name), str(number), *map(str, counts.values()))
            rows.append(cells[: len(columns)])
    return Grid("How many of the paper's orderings hold", columns, rows, words=2)


def _orderings_grid(report: Record, names: Sequence[str]) -> Grid:
    columns = ["better", "than", "by published", "table", "published, points"]
    pairs: dict[tuple[Any, ...], dict[str, Record]] = {}
    for name in names:
        columns += [f"{_short(name)}, points", f"{_short(name)}"]
        for record in report["orderings"][name]:
            pair = tuple(record[key] for key in ("table", "column", "better", "worse"))
            pairs.setdefault(pair, {})[name] = record
    rows = []
    for (number, column, better, worse), by_name in pairs.items():
        published = next(iter(by_name.values()))["published"]
        label = _label(report["columns"][column])
        cells = [better, worse, label, str(number), f"{published:+.1f}"]
        for name in names:
            cells += _ordering_cells(by_name[name]) if name in by_name else ["", ""]
        rows.append(tuple(cells))
    return Grid("Every ordering", tuple(columns), rows, words=3)


def _ordering_cells(record: Record) -> list[str]:
    measured = record["ours"] is not None
    points = _difference(record["ours"], record["error"]) if measured else ""
    return [points, _verdict(record)]


def _verdict(record: Record) -> str:
    if record["ours"] is None:
        return "not run"
    word = "holds" if record["holds"] else "fails"
    if record["within_noise"] is None:
        return f"{word}, noise unknown"
    return f"{word}, within noise" if record["within_noise"] else word


def _facts(report: Record) -> dict[str, str]:
    samples = report["samples"]
    spread = {
        _short(name): "unknown, one seed" if std is None else f"{std:.2f} {unit or 'points'}"
        for name, std in report["difference_std"].items()
        for unit in (_unit(report, name),)
    }
    return {
        "published": report["source"],
        "scale": f"{report['scale']['name']}: {report['scale']['title']}",
        "pre-training": _training(report["training"]),
        "data": f"{report['dataset']} {report['split']}, data digest {report['data_digest']}",
        "queries": f"{report['part']}: {samples['test']:,} samples against "
        f"{samples['train']:,} training samples",
        **{
            f"data of {_short(name)}": f"{other['dataset']} {other['split']}, data digest "
            f"{other['data_digest']}, {other['samples']['test']:,} samples against "
            f"{other['samples']['train']:,}"
            for name, other in report["other_data"].items()
        },
        "seeds": ", ".join(map(str, report["seeds"])),
        "features": f"student, {features_name(report)}; accuracy after the last epoch",
        **{
            f"protocol {_short(name)}": settings_line(protocol)
            for name, protocol in report["protocols"].items()
        },
        "deviation of a difference between seeds": ", ".join(
            f"{name} {text}" for name, text in spread.items()
        ),
    }


def _training(training: Record) -> str:
    """The size of all runs, whatever their method: SLiM's have prototypes."""
    train, encoder = training["train"], training["encoder"]
    width = encoder["dim"] if "dim" in encoder else encoder["hidden"]
    parts = [f"{train['epochs']} epochs, batch {train['batch']}, {train['precision']}"]
    parts.append(f"{encoder['layers']} layers of {width}")
    if "head" in training:
        parts.append(f"{training['head']['prototypes']:,} prototypes")
    return ", ".join([*parts, f"peak lr {training['optim']['lr']:g}"])


_KEY = (
    "Accuracies are top-1 in per cent, differences points. Behind a difference stands, in "
    "brackets, what it must reach to be beyond noise. Rows of one recipe are one run."
)


def _key(report: Record) -> str:
    """How to read the numbers."""
    units = {_short(name): _unit(report, name) for name in report["protocols"]}
    others = [f"{name}: {unit}" for name, unit in units.items() if unit]
    if not others:
        return _KEY
    return f"{_KEY} Other numbers and their differences are in units of their own: " + (
        f"{'; '.join(others)}."
    )


def as_markdown(report: Record) -> str:
    """A report as Markdown."""
    lines = [f"# {report['title']}", ""]
    lines += [f"**Warning:** {text}\n" for text in report["warnings"]]
    lines += [f"- **{name}**: {value}" for name, value in _facts(report).items()]
    lines += ["", _key(report), "", report["noise_rule"], ""]
    for grid in grids(report):
        lines += markdown_grid(grid)
    for title, texts in (("Notes", report["notes"]), ("Our reading", report["readings"])):
        lines += [f"## {title}", "", *(f"- {text}" for text in texts), ""]
    return "\n".join(lines)


def _html(report: Record) -> list[str]:
    parts = [
        warnings(report["warnings"]),
        facts(_facts(report)),
        *(f'<p class="faint">{escape(text)}</p>' for text in (_key(report), report["noise_rule"])),
        picture(
            differences_figure(report),
            "differences to the full row, published and ours",
            "How far each row lies from the full one: published in grey, ours with two standard "
            "errors to either side.",
        ),
    ]
    for grid in grids(report):
        parts += [
            f"<h2>{escape(grid.title)}</h2>",
            table(grid.columns, grid.rows, words=grid.words),
        ]
    for title, texts in (("Notes", report["notes"]), ("Our reading", report["readings"])):
        items = "".join(f"<li>{escape(text)}</li>" for text in texts)
        parts.append(f"<h2>{title}</h2><ul>{items}</ul>")
    return parts


def differences_figure(report: Record) -> Figure:
    """Each row's difference to the full row: published, and ours with two standard errors."""
    names = list(report["protocols"])
    sizes = [len(published["rows"]) for published in report["tables"]]
    figure = Figure(figsize=(9, 1.2 + 0.42 * sum(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), height_ratios=sizes, squeeze=False)[:, 0]
    for panel, published in zip(panels, report["tables"], strict=True):
        rows = published["rows"]
        places = np.arange(len(rows))
        for column, marker in zip(dict.fromkeys(published["compared"].values()), cycle("Ds^")):
            full = _full(published, column)
            panel.plot(
                [row["published"][column] - full for row in rows],
                places,
                marker,
                color=GREY,
                label=f"published, {report['columns'][column]['label']}",
            )
        for number, name in enumerate(names):
            found = [
                (place + 0.22 * (number + 1), row["ours"][name]["over_full"])
                for place, row in zip(places, rows, strict=True)
                if row["ours"][name] and row["ours"][name].get("over_full")
            ]
            panel.errorbar(
                [over["points"] for _, over in found],
                [place for place, _ in found],
                xerr=[2 * (over["error"] or 0) for _, over in found],
                fmt="o",
                markersize=4,
                color=COLOURS[number],
                label=", ".join(filter(None, ("ours", _short(name), _unit(report, name)))),
            )
        panel.axvline(0, color="#444444", linewidth=1)
        panel.set_yticks(places, [plain(row["label"]) for row in rows])
        panel.set_ylim(len(rows) - 0.3, -0.5)
        panel.set_title(
            f"Table {published['number']}: {published['title']}",
            fontsize=10, loc="left", fontweight="bold",
        )  # fmt: skip
        panel.grid(axis="x", color="#E3E6EA", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    series: dict[str, Artist] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        series |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(series.values()),
        list(series),
        fontsize=9,
        frameon=False,
        loc="outside upper right",
        ncols=4,
    )
    others = any(_unit(report, name) for name in names)
    panels[-1].set_xlabel(f"points over the full row{', or units as said' if others else ''}")
    return figure
