"""What a table says: published numbers and ours, from stored results alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from skelpipe.checkpoint import read_json, read_run
from skelpipe.protocols.evaluate import result_name, write_result
from skelpipe.protocols.fusion import Wanted, fuse
from skelpipe.report.tables import united
from skelpipe.shards.card import Card, read_card

from .jobs import Job, hours_taken, stored
from .plan import Cell, Plan, Source
from .provenance import read_journal, revision
from .published import PublishedTable, Row, Scale
from .sets import Absent

Record = dict[str, Any]

_SCORES = "scores.parquet"


def add_fusions(plan: Plan) -> None:
    """Add up the scores of runs whose streams are all evaluated, where that was not done yet."""
    done = set()
    for cell in plan.cells:
        for source in cell.sources:
            if len(source.folders) > 1 and source not in done:
                done.add(source)
                _fuse(source, plan)


def _fuse(source: Source, plan: Plan) -> None:
    records = [stored(plan.jobs[folder], source.asked) for folder in source.folders]
    if any(record is None for record in records) or _fused(source, plan):
        return
    runs = [read_run(folder) for folder in source.folders]
    write_result(runs[0].folder, fuse(runs, Wanted(source.asked.protocol.name)))


def _fused(source: Source, plan: Plan) -> Record | None:
    """The record of a fusion of the scores that now stand."""
    name = result_name(source.asked.protocol.name, "fused", "", "test")
    file = source.folders[0] / "results" / name
    records = [stored(plan.jobs[folder], source.asked) for folder in source.folders]
    if not file.is_file() or any(record is None for record in records):
        return None
    found = read_json(file)
    now = [record["files"][_SCORES] for record in records if record]
    return found if [part["scores_sha256"] for part in found["streams"]] == now else None


def _result(source: Source, plan: Plan) -> Record | None:
    if len(source.folders) > 1:
        return _fused(source, plan)
    return stored(plan.jobs[source.folders[0]], source.asked)


def table_record(
    table: PublishedTable,
    scale: str,
    of_scale: Scale,
    plan: Plan,
    absent: Sequence[Absent],
    *,
    changes: Sequence[str],
    generated: bool,
) -> Record:
    """A table as a JSON object; `skelpipe.report.table_page` writes it for readers.

    Args:
        table: What was published.
        scale, of_scale: At what size ours was run.
        plan: Its cells and jobs; those without a result are left open.
        absent: Sets that could not be had.
        changes: Settings of all recipes that were not the scale's.
        generated: The data is generated: no number says anything about the real one.
    """
    numbers: dict[tuple[int, str], dict[str, float]] = {}
    results: list[Record] = []
    protocols: list[Record] = []
    for cell in plan.cells:
        _add_protocols(cell, table, protocols)
        found = [_result(source, plan) for source in cell.sources]
        rows = [record for record in found if record]
        if rows and len(rows) == len(found):
            results += rows
            value = fmean(record["results"][0][cell.metric] for record in rows)
            numbers.setdefault((cell.row, cell.column), {})[str(cell.seed)] = value
    jobs = [job for job in plan.jobs.values() if (job.folder / "recipe.json").is_file()]
    sets = dict.fromkeys(
        folder for job in plan.jobs.values() for folder in (job.data, *_tested(job))
    )
    cards = [(folder, read_card(folder)) for folder in sets if (folder / "card.json").is_file()]
    return {
        "kind": "table report",
        "name": table.name,
        "number": table.number,
        "title": table.title,
        "paper": table.paper,
        "measured": table.measured,
        "generated": generated,
        "scale": {"name": scale, "title": of_scale.title, "changes": list(changes)},
        "columns": {name: column.model_dump() for name, column in table.columns.items()},
        "filled": list(table.measured_columns()),
        "rows": [
            {
                **row.model_dump(exclude={"counted", "ours"}),
                "measured": row.measured or table.measured,
                "ours_measured": _names(place, plan),
                "ours": None if row.ours is None else _ours(place, row, numbers),
            }
            for place, row in enumerate(table.rows)
        ],
        "seeds": sorted({cell.seed for cell in plan.cells}),
        "protocols": protocols,
        "sets": [_set(folder, card) for folder, card in cards],
        "absent": [
            {"set": str(one.name), "reason": one.reason, "remedy": one.remedy} for one in absent
        ],
        "runs": [_run(job) for job in jobs],
        "code": revision(),
        "warnings": list(united(record["warnings"] for record in results)),
        "notes": list(table.notes),
        "readings": [*table.readings, *united(record["readings"] for record in results)],
    }


def _add_protocols(cell: Cell, table: PublishedTable, found: list[Record]) -> None:
    """Add what a cell is measured by, beside the columns that are measured so already."""
    label = table.columns[cell.column].label
    for source in cell.sources:
        settings = source.asked.protocol.model_dump(mode="json")
        for known in found:
            if known["settings"] == settings:
                known["columns"] = list(dict.fromkeys([*known["columns"], label]))
                break
        else:
            found.append({"settings": settings, "columns": [label]})


def _names(place: int, plan: Plan) -> list[str]:
    """Protocols that a row of ours is measured by."""
    sources = (source for cell in plan.cells if cell.row == place for source in cell.sources)
    return list(dict.fromkeys(source.asked.protocol.name for source in sources))


def _tested(job: Job) -> Iterable[Path]:
    return (asked.data for asked in job.asked)


def _ours(place: int, row: Row, numbers: dict[tuple[int, str], dict[str, float]]) -> Record:
    """Our numbers of a row by column: by seed, mean, deviation, and over what was published."""
    found = {}
    for (of_row, column), by_seed in numbers.items():
        if of_row == place:
            mean = fmean(by_seed.values())
            published = row.values.get(column)
            found[column] = {
                "by_seed": by_seed,
                "mean": mean,
                "std": stdev(by_seed.values()) if len(by_seed) > 1 else None,
                "over_published": None if published is None else mean - published,
            }
    return found


def _set(folder: Path, card: Card) -> Record:
    missing = card.missing_list
    applied = "has none"
    if missing:
        applied = "not applied"
        if missing.applied:
            applied = "official list applied" if missing.official else "another list applied"
    return {
        "set": f"{card.dataset} {card.split}, pipeline {card.pipeline.name}",
        "folder": str(folder),
        "train": card.counts.train.samples,
        "test": card.counts.test.samples,
        "published": card.counts.published,
        "missing_list": applied,
        "data_digest": card.data_digest,
        "warnings": list(card.warnings),
    }


def _run(job: Job) -> Record:
    """What a run took, on what, and by which code."""
    journal = read_journal(job.folder)
    return {
        "run": job.folder.name,
        "recipe": job.recipe.name,
        "epochs": job.recipe.train.epochs,
        "batch": job.recipe.train.batch,
        "precision": job.recipe.train.precision,
        "seed": job.seed,
        "hours_pretraining": hours_taken(job.folder),
        "hours_evaluations": sum(line.get("seconds", 0) for line in journal) / 3600,
        "hardware": list(dict.fromkeys(line["hardware"] for line in journal)),
        "code": list(dict.fromkeys(line["code"] for line in journal)),
    }
