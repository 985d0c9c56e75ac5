"""Results of several runs side by side: differences to the first, and only of like to like.

A group has all results by one protocol on one part of one split. Within it a row is compared with
the first run's if both have the same settings, data and features; otherwise it stands there without
a difference, and what differs is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any

from skelpipe.checkpoint import Run, read_json, write_json
from skelpipe.errors import UserError
from skelpipe.files import write_whole
from skelpipe.protocols.fusion import Wanted, flat_settings
from skelpipe.report.html import table, warnings, write_html
from skelpipe.report.tables import (
    DAMAGED,
    MEASURES,
    features_name,
    headline,
    result_files,
    settings_line,
    united,
)

Record = dict[str, Any]
ENDINGS = (".md", ".html", ".json")
"""Of the files that a comparison can be written to."""

_SUBJECTS = ("run", "fused", "random-init", "raw")
_FLOORS = ("random-init", "raw")
_OWN = ("patch", "last")
"""What the methods' papers evaluate: alike, whatever the method."""
_NEEDED = ("protocol", "subject", "features", "dataset", "split", "part", "data_digest", "results")


def compare(runs: Sequence[Run]) -> Record:
    """All stored results of some runs, as a record.

    Args:
        runs: Two at least; the first is what the others are compared with.

    Returns:
        "runs" (their names and recipes), "warnings", "readings" and "groups": each with "title",
        "protocol", "data", "settings" (of its first row), "value" (what is measured, and its unit),
        "lower_is_better", "missing" (runs without a result, and what makes one) and "rows". A row
        has "run", "network", "floor", "features", "value", "difference" (to the group's first row
        that is no floor; None where that is not like it), "unlike" (why) and "best" (of all that
        are alike, floors too).

    Raises:
        UserError: Fewer than two runs, or one twice; no result at all; a damaged record.
    """
    if len(runs) < 2:
        raise UserError("a comparison takes two runs at least", remedy="skelpipe compare RUN RUN")
    folders = [run.folder.resolve() for run in runs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise UserError("a run stands in the comparison twice", file=folder)
    names = _names(runs)
    groups: dict[tuple[str, ...], list[tuple[str, Record]]] = {}
    for name, run in zip(names, runs, strict=True):
        for record in _records(run):
            key = (
                record["protocol"]["name"], record.get("variant", ""),
                record["dataset"], record["split"], record["part"], headline(record).name,
            )  # fmt: skip
            groups.setdefault(key, []).append((name, record))
    if not groups:
        raise UserError(
            "none of these runs has a result",
            file=runs[0].folder / "results",
            remedy=f"skelpipe evaluate --run {quote(str(runs[0].folder))}",
        )
    found = [record for members in groups.values() for _, record in members]
    return {
        "runs": [
            {"name": name, "recipe": run.recipe.name} for name, run in zip(names, runs, strict=True)
        ],
        "groups": [
            _group(members, dict(zip(names, runs, strict=True))) for members in groups.values()
        ],
        "warnings": united(record.get("warnings", []) for record in found),
        "readings": united(record.get("readings", []) for record in found),
        "versions": {"skelpipe": version("skelpipe")},
    }


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' folders: by their last part, or whole where that would not tell them apart."""
    short = [run.folder.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def _records(run: Run) -> list[Record]:
    """A run's records: of itself, of fusions, then of its floors; sweeps are none."""
    found = []
    for path in result_files(run.folder):
        record = read_json(path, DAMAGED)
        lacks = [name for name in _NEEDED if name not in record]
        if not lacks:
            name = record.get("headline", {}).get("name", "accuracy")
            lacks = [name] * any(name not in row for row in record["results"])
        if lacks or record["subject"] not in _SUBJECTS or not record["results"]:
            raise UserError(
                "this is no record of an evaluation",
                file=path,
                place=lacks[0] if lacks else "subject",
                found="nothing" if lacks else record["subject"],
                remedy="move it elsewhere, or evaluate again",
            )
        found.append(record)
    return sorted(found, key=lambda record: _SUBJECTS.index(record["subject"]))


def _values(record: Record) -> Iterator[tuple[str, float]]:
    """Networks and what each is worth, by the record's headline."""
    name = headline(record).name
    for row in record["results"]:
        yield row["network"], row[name]


def _group(members: Sequence[tuple[str, Record]], runs: dict[str, Run]) -> Record:
    evaluated = [record for _, record in members if record["subject"] not in _FLOORS]
    reference = (evaluated or [record for _, record in members])[0]
    zero = next(iter(_values(reference)))[1]
    first = headline(reference)
    less = first.lower_is_better
    rows: list[Record] = []
    for name, record in members:
        unlike = _unlike(record, reference)
        for network, number in _values(record):
            rows.append(
                {
                    "run": name,
                    "network": network,
                    "floor": record["subject"] in _FLOORS,
                    "features": features_name(record),
                    "value": number,
                    "difference": None if unlike else number - zero,
                    "unlike": unlike,
                }
            )
    alike = [row["value"] for row in rows if not row["unlike"]]
    best = min(alike) if less else max(alike)
    for row in rows:
        row["best"] = len(alike) > 1 and not row["unlike"] and row["value"] == best
    protocol = reference["protocol"]
    have = {name for name, record in members if record["subject"] not in _FLOORS}
    wanted = Wanted(
        protocol["name"],
        reference["features"] if reference["features"] in ("class", "both") else None,
        tuple(map(int, re.findall(r"\d+", reference["part"]))),
    )
    return {
        "title": protocol["title"],
        "protocol": protocol["name"],
        "data": f"{reference['dataset']} {reference['split']}, {reference['part']}",
        "settings": settings_line(protocol),
        "value": MEASURES.get(first.name, first.name),
        "lower_is_better": less,
        "missing": {
            name: wanted.command(run, reference) for name, run in runs.items() if name not in have
        },
        "rows": rows,
    }


def _unlike(record: Record, reference: Record) -> list[str]:
    """Why a record is not to be compared with another of its group; nothing where it is."""
    found = []
    ours, theirs = flat_settings(record["protocol"]), flat_settings(reference["protocol"])
    for key in dict.fromkeys((*theirs, *ours)):
        if ours.get(key) != theirs.get(key):
            found.append(f"{key} {ours.get(key)}, not {theirs.get(key)}")
    if record["data_digest"] != reference["data_digest"]:
        found.append("the set was prepared otherwise")
    kinds = {record["features"], reference["features"]}
    floor = "raw" in (record["subject"], reference["subject"])
    if len(kinds) > 1 and not kinds <= set(_OWN) and not floor:
        found.append(f"features {features_name(record)}, not {features_name(reference)}")
    return found


def cells(group: Record) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A group's headings and rows as texts; the first three columns are words."""
    less = " (lower is better)" if group["lower_is_better"] else ""
    columns = ("run", "network", "features", f"{group['value']}{less}", "over the first")
    rows: list[tuple[str, ...]] = []
    for row in group["rows"]:
        difference = "not alike" if row["unlike"] else f"{row['difference']:+.1f}"
        rows.append(
            (
                row["run"],
                row["network"] + (" (floor)" if row["floor"] else ""),
                row["features"],
                f"{row['value']:.1f}{' best' if row['best'] else ''}",
                difference,
            )
        )
    return columns, rows


def notes(group: Record) -> list[str]:
    """What must be read beside a group: its settings, what is not alike, and what is missing."""
    found = [f"{group['data']}; protocol: {group['settings']}"]
    said = {
        (row["run"], row["network"] if row["floor"] else "", "; ".join(row["unlike"])): None
        for row in group["rows"]
        if row["unlike"]
    }
    found += [
        f"not alike: {run}{f', {network}' if network else ''}: {why}" for run, network, why in said
    ]
    found += [f"{name} has no result here: {command}" for name, command in group["missing"].items()]
    return found


def write_comparison(out: Path, comparison: Record) -> None:
    """Write a comparison as its file's ending says: Markdown, HTML or JSON.

    Raises:
        UserError: Another ending.
    """
    check_ending(out)
    if out.suffix == ".json":
        write_json(out, comparison)
        return
    title = " against ".join(run["name"] for run in comparison["runs"])
    if out.suffix == ".html":
        write_html(out, title, _html(comparison))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, _markdown(title, comparison).encode())


def check_ending(out: Path) -> None:
    """Refuse a file to which no comparison can be written."""
    if out.suffix not in ENDINGS:
        raise UserError(
            "a comparison is not written so", file=out, found=out.suffix or "no ending",
            expected=", ".join(ENDINGS),
        )  # fmt: skip


def _markdown(title: str, comparison: Record) -> str:
    lines = [f"# {_in_cell(title)}", ""]
    lines += [f"**Warning:** {text}\n" for text in comparison["warnings"]]
    for group in comparison["groups"]:
        columns, rows = cells(group)
        marks = ("---", "---", "---", "---:", "---:")
        lines += [f"## {group['title']}", ""]
        for row in (columns, marks, *rows):
            lines.append(f"| {' | '.join(map(_in_cell, row))} |")
        lines += ["", *(f"- {text}" for text in notes(group)), ""]
    lines += ["## Our reading", "", *(f"- {text}" for text in comparison["readings"]), ""]
    return "\n".join(lines)


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _html(comparison: Record) -> list[str]:
    parts = [warnings(comparison["warnings"])]
    for group in comparison["groups"]:
        columns, rows = cells(group)
        parts += [
            f"<h2>{escape(group['title'])}</h2>",
            table(columns, rows, words=3),
            _list(notes(group)),
        ]
    return [*parts, "<h2>Our reading</h2>", _list(comparison["readings"])]


def _list(texts: Sequence[str]) -> str:
    return f'<ul class="faint">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'
