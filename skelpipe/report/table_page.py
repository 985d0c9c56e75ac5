"""A published table with ours beside it, as JSON, Markdown and a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from skelpipe.checkpoint import write_json
from skelpipe.files import write_whole

from .grid import Grid, markdown_grid
from .html import facts, table, warnings, write_html
from .tables import settings_line

Record = dict[str, Any]

GENERATED = (
    "The data is generated: procedural motion of invented performers. This page shows that the "
    "path works from raw archives to the table. No number of ours here says anything about the "
    "method, about NTU RGB+D or about PKU-MMD, and none may be compared with the published ones."
)
_STYLE = """
.generated { border: 4px solid var(--warn); padding: .6rem 1rem; font-size: 1.4rem;
  line-height: 1.35; font-weight: 600; color: var(--warn); }
"""


def write_table(out: Path, record: Record) -> list[Path]:
    """Write a record of `skelpipe.tables.record` as NAME.json, NAME.md and NAME.html.

    Args:
        out: The folder; it is made.
        record: The record.

    Returns:
        The files.
    """
    json, markdown, page = (out / f"{record['name']}{end}" for end in (".json", ".md", ".html"))
    write_json(json, record)
    write_whole(markdown, as_markdown(record).encode())
    write_html(page, _title(record), _html(record), style=_STYLE)
    return [json, markdown, page]


def grids(record: Record) -> list[Grid]:
    """The tables of a page: published beside ours, all rows, sets, what is absent, runs."""
    found = [_beside(record), _rows(record), _sets(record), _absent(record), _runs(record)]
    return [grid for grid in found if grid.rows]


def _title(record: Record) -> str:
    return f"{record['paper']}, Table {record['number']}: {record['title']}"


def _number(value: float | None, column: Record) -> str:
    digits = 2 if column["unit"] == "GFLOP" else 1
    return "–" if value is None else f"{value:.{digits}f}"


def _mean(found: Record, column: Record) -> str:
    deviation = found["std"]
    return _number(found["mean"], column) + ("" if deviation is None else f" ± {deviation:.1f}")


def _heading(column: Record) -> str:
    better = ", lower is better" if column["lower_is_better"] else ""
    return f"{column['label']} ({column['unit']}{better})"


def _beside(record: Record) -> Grid:
    """A line for each of our cells."""
    rows = []
    for row in record["rows"]:
        if row["ours"] is None:
            continue
        for name in record["filled"]:
            column, ours = record["columns"][name], row["ours"].get(name)
            published = _number(row["values"].get(name), column)
            cells = ["not run", "", ""]
            if ours:
                over = ours["over_published"]
                cells = [
                    ", ".join(_number(value, column) for value in ours["by_seed"].values()),
                    _mean(ours, column),
                    "" if over is None else f"{over:+.1f}",
                ]
            rows.append((row["method"], _heading(column), published, *cells))
    headings = ("row", "column", "published", "ours, by seed", "mean ± std", "difference")
    return Grid("Published beside ours", headings, rows, words=2)


def _rows(record: Record) -> Grid:
    """All rows as published; ours follows the row that it repeats."""
    columns = record["columns"]
    present = [
        (key, heading)
        for key, heading in (("group", "kind"), ("venue", "venue"), ("backbone", "backbone"))
        if any(row[key] for row in record["rows"])
    ]
    rows = []
    for row in record["rows"]:
        words = [row["method"], row["citation"], *(row[key] for key, _ in present)]
        note = f" (printed: {row['printed']})" if row["printed"] else ""
        numbers = [_number(row["values"].get(name), columns[name]) for name in columns]
        if row["values"]:
            rows.append((*words, row["measured"] + note, *numbers))
        if row["ours"] is not None:
            own = [
                _mean(row["ours"][name], columns[name])
                if name in row["ours"]
                else ("not run" if name in record["filled"] else "–")
                for name in columns
            ]
            blank = [""] * (len(words) - 1)
            by = f"our protocol {', '.join(row['ours_measured'])}" if row["ours_measured"] else ""
            rows.append((f"{row['method']}, ours", *blank, by, *own))
    headings = (
        "method", "cited as", *(heading for _, heading in present), "measured by",
        *(_heading(column) for column in columns.values()),
    )  # fmt: skip
    return Grid("All rows", headings, rows, words=3 + len(present))


def _sets(record: Record) -> Grid:
    rows = []
    for one in record["sets"]:
        published = one["published"]
        counts = [
            f"{one[part]:,}" + (f" of {published[part]:,}" if part in published else "")
            for part in ("train", "test")
        ]
        rows.append((one["set"], one["missing_list"], one["data_digest"][:16], *counts))
    headings = ("set", "list of missing skeletons", "data digest", "train", "test")
    return Grid("Data of ours", headings, rows, words=3)


def _absent(record: Record) -> Grid:
    rows = [
        (one["set"], " ".join(one["reason"].split()), one["remedy"]) for one in record["absent"]
    ]
    return Grid("Left out: the data is not there", ("set", "found", "to have it"), rows, words=3)


def _runs(record: Record) -> Grid:
    rows = [
        (
            run["run"],
            f"{run['recipe']}: {run['epochs']} epochs, batch {run['batch']}, {run['precision']}",
            "; ".join(run["hardware"]),
            "; ".join(run["code"]),
            f"{run['hours_pretraining']:.2f}",
            f"{run['hours_evaluations']:.2f}",
        )
        for run in record["runs"]
    ]
    headings = ("run", "recipe", "hardware", "code", "hours of pre-training", "of evaluations")
    return Grid("Runs", headings, rows, words=4)


def _facts(record: Record) -> dict[str, str]:
    hours = sum(run["hours_pretraining"] + run["hours_evaluations"] for run in record["runs"])
    return {
        "published": f"{record['paper']}, Table {record['number']}; {record['measured']}",
        "ours": _scale(record["scale"]),
        "accuracy": "the student's after the last epoch, of all test samples",
        "seeds of pre-training": ", ".join(map(str, record["seeds"])),
        **{
            f"{one['settings']['name']} on {'; '.join(one['columns'])}": settings_line(
                one["settings"]
            )
            for one in record["protocols"]
        },
        "hours in all": f"{hours:.2f}",
        "code that wrote this": record["code"],
    }


def _scale(scale: Record) -> str:
    """At what size ours was run: the scale's own, but for what the user changed."""
    changed = f"; changed: {', '.join(scale['changes'])}" if scale["changes"] else ""
    return f"scale {scale['name']}: {scale['title']}{changed}"


def _lists(record: Record) -> list[tuple[str, Sequence[str]]]:
    return [("Notes", record["notes"]), ("Our reading", record["readings"])]


def as_markdown(record: Record) -> str:
    """A record as Markdown."""
    lines = [f"# {_title(record)}", ""]
    if record["generated"]:
        lines += [f"> **GENERATED DATA.** {GENERATED}", ""]
    lines += [f"**Warning:** {text}\n" for text in record["warnings"]]
    lines += [f"- **{name}**: {value}" for name, value in _facts(record).items()]
    lines.append("")
    for grid in grids(record):
        lines += markdown_grid(grid)
    for title, texts in _lists(record):
        if texts:
            lines += [f"## {title}", "", *(f"- {text}" for text in texts), ""]
    return "\n".join(lines)


def _html(record: Record) -> list[str]:
    parts = []
    if record["generated"]:
        parts.append(f'<p class="generated">Generated data. {escape(GENERATED)}</p>')
    parts += [warnings(record["warnings"]), facts(_facts(record))]
    for grid in grids(record):
        parts += [
            f"<h2>{escape(grid.title)}</h2>",
            table(grid.columns, grid.rows, words=grid.words),
        ]
    for title, texts in _lists(record):
        if texts:
            items = "".join(f"<li>{escape(text)}</li>" for text in texts)
            parts.append(f"<h2>{title}</h2><ul>{items}</ul>")
    return parts
