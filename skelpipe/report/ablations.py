"""Ablation tables: what was published, and what runs of every row gave, from JSON records alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from skelpipe.checkpoint import read_json
from skelpipe.config import Recipe, Settings, build, load_recipe
from skelpipe.errors import UserError
from skelpipe.manifest import manifest_names, read_manifest
from skelpipe.report.tables import headline, read_results, united

Record = dict[str, Any]

_ACCURACY = "accuracy"
_DATA = ("dataset", "split", "data_digest", "samples")

NOISE_RULE = (
    "Runs of one seed share initial weights, order and probe, so rows are compared seed by seed. A "
    "difference of two rows, the mean over the seeds that both have, is within noise if it is "
    "smaller than two standard errors. The standard error is the root of two variances. Of the "
    "seeds: s^2 / n for n seeds, s^2 being the variance of a difference between seeds, pooled over "
    "all pairs of rows; it is unknown, and left out, where there is one seed. Of the queries: the "
    "sum of p (1 - p) / Q over both rows, p being a row's accuracy on Q queries, which more seeds "
    "do not lower; that both rows answer the same queries would lower it and is not made use of."
)
_OTHER_NOISE = (
    " Numbers other than accuracies have the seeds' variance alone: with one seed it is unknown "
    "whether a difference is within noise."
)


class Column(Settings):
    """A column of published numbers: accuracies in per cent where the label says nothing else.

    Attributes:
        label: Its heading.
        protocol: Of ours, that it is compared with; one that the report has not is shown as not
            measured.
        lower_is_better: Such as an error.
    """

    label: str
    protocol: str = ""
    lower_is_better: bool = False


class Row(Settings):
    """A row of a published table: its numbers by column, and the recipe that we read it as."""

    label: str
    recipe: str
    published: dict[str, float]


class PublishedTable(Settings):
    """A published table, by its number in the paper.

    Attributes:
        number, title: In the paper.
        full: Recipe of the row that the others are set against; the ablations' own by default.
        rows: With numbers for the same columns each.
    """

    number: int
    title: str
    full: str = ""
    rows: tuple[Row, ...] = Field(min_length=1)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns, the headline first."""
        return tuple(self.rows[0].published)


class Scale(Settings):
    """At what size the rows are run.

    Attributes:
        title: What it is, in words.
        base: Recipe that the rows' recipes stand on.
        protocols: By a protocol's name, changes of it.
        changes: By a row's recipe, settings that its own must be replaced with at this scale.
    """

    title: str
    base: str
    protocols: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    changes: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Ablations(Settings):
    """Published ablations and how they are run."""

    kind: Literal["ablations"]
    name: str
    title: str
    source: str
    full: str = Field(description="recipe of the row that has all parts of the method")
    protocols: tuple[str, ...] = Field(description="that rows are evaluated by, the headline first")
    same: tuple[str, ...] = Field(description="sections of a recipe that no two rows differ in")
    columns: dict[str, Column]
    readings: tuple[str, ...]
    notes: tuple[str, ...]
    scales: dict[str, Scale]
    tables: tuple[PublishedTable, ...]

    @model_validator(mode="after")
    def _tables_fit(self) -> Self:
        for table in self.tables:
            for row in table.rows:
                if row.published.keys() != table.rows[0].published.keys():
                    raise ValueError(f"rows of table {table.number} have different columns")
            if unknown := set(table.columns) - self.columns.keys():
                raise ValueError(f"table {table.number} has unknown columns {sorted(unknown)}")
            if self.full_of(table) not in {row.recipe for row in table.rows}:
                raise ValueError(f"the full row of table {table.number} is none of its rows")
        return self

    def full_of(self, table: PublishedTable) -> str:
        """Recipe of the row that a table's others are set against."""
        return table.full or self.full

    def column_for(self, table: PublishedTable, protocol: str) -> str:
        """The column that a protocol is compared with: its own, or else the table's first."""
        own = (name for name in table.columns if self.columns[name].protocol == protocol)
        return next(own, table.columns[0])

    def recipes(self) -> list[str]:
        """Names of the rows' recipes; rows that are the same run share one."""
        return list(dict.fromkeys(row.recipe for table in self.tables for row in table.rows))


def load_ablations(name: str) -> Ablations:
    """Packaged ablations by name; an unknown one suggests the nearest."""
    return build(Ablations, read_manifest("ablations", name), what=f"'{name}'")


def single_tables() -> dict[str, tuple[str, int]]:
    """Ablations and number of every table in them, by its name, such as "slim-table-5"."""
    return {
        _table_name(name, table.number): (name, table.number)
        for name in manifest_names("ablations")
        for table in load_ablations(name).tables
    }


def only_table(ablations: Ablations, number: int) -> Ablations:
    """Ablations of one table alone, under its name; runs are those of all of them."""
    table = next(table for table in ablations.tables if table.number == number)
    change = {
        "name": _table_name(ablations.name, number),
        "title": f"{ablations.title}: Table {number}, {table.title}",
        "full": ablations.full_of(table),
        "tables": (table,),
    }
    return ablations.model_copy(update=change)


def _table_name(ablations: str, number: int) -> str:
    return f"{ablations.partition('-')[0]}-table-{number}"


def row_recipes(ablations: Ablations, scale: str, changes: Sequence[str] = ()) -> dict[str, Recipe]:
    """The resolved recipe of every row at a scale.

    Raises:
        UserError: ``changes`` do not fit, or make two rows the same run.
    """
    spec = ablations.scales[scale]
    found: dict[str, Recipe] = {}
    for name in ablations.recipes():
        own = spec.changes.get(name, ())
        recipe = load_recipe(name, [*own, *changes], base=spec.base)
        for other in found.values():
            if recipe == other.model_copy(update={"name": recipe.name, "title": recipe.title}):
                raise UserError(
                    f"the rows '{other.name}' and '{name}' would be the same run",
                    found=" ".join(changes),
                    remedy="leave out the settings that the rows differ in",
                )
        found[name] = recipe
    return found


@dataclass(frozen=True)
class Entry:
    """What stands in the folder of a row's run.

    Attributes:
        recipe: Name of the row's recipe.
        seed: Of the run.
        settings: recipe.json.
        results: Evaluation records.
    """

    recipe: str
    seed: int
    settings: Record
    results: list[Record]


def run_folder(root: Path, recipe: str, seed: int) -> Path:
    """Where the run of a row and seed lies."""
    return root / f"{recipe}-seed{seed}"


def read_entries(root: Path, recipes: Iterable[str], seeds: Iterable[int]) -> list[Entry]:
    """The runs that have results, of these rows and seeds."""
    found = []
    for recipe in recipes:
        for seed in seeds:
            folder = run_folder(root, recipe, seed)
            results = read_results(folder)
            if results:
                found.append(Entry(recipe, seed, read_json(folder / "recipe.json"), results))
    return found


@dataclass(frozen=True)
class Score:
    """A row's headlines under one protocol, by seed, at least one: accuracies in per cent, or else.

    See `tables.headline`.
    """

    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None of a single seed."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None


def differences(first: Score, second: Score) -> list[float]:
    """How far one row lies over another, by each seed that both have."""
    shared = sorted(first.by_seed.keys() & second.by_seed.keys())
    return [first.by_seed[seed] - second.by_seed[seed] for seed in shared]


def difference_variance(scores: Iterable[Score]) -> float | None:
    """Variance of a difference between seeds, pooled over all pairs of rows that share two seeds.

    None where no pair does.
    """
    pairs = [differences(*pair) for pair in combinations(scores, 2)]
    many = [found for found in pairs if len(found) > 1]
    freedom = sum(len(found) - 1 for found in many)
    if not freedom:
        return None
    return sum((len(found) - 1) * variance(found) for found in many) / freedom


@dataclass(frozen=True)
class Comparison:
    """One row over another: points, and their standard error by `NOISE_RULE`; None if unknown."""

    points: float
    error: float | None

    @property
    def within_noise(self) -> bool | None:
        """None if unknown."""
        return None if self.error is None else abs(self.points) < 2 * self.error


def compare(
    first: Score, second: Score, spread: float | None, queries: int | None
) -> Comparison | None:
    """How far one row lies over another; None if they share no seed.

    Args:
        first, second: The rows.
        spread: Of `difference_variance`; None where it is unknown, which leaves its part out.
        queries: Q; None of numbers that are no accuracies, whose part of queries is not known.
    """
    found = differences(first, second)
    if not found:
        return None
    if queries is None:
        error = None if spread is None else sqrt(spread / len(found))
        return Comparison(fmean(found), error)
    binomial = sum(score.mean * (100 - score.mean) / queries for score in (first, second))
    return Comparison(fmean(found), sqrt((spread or 0.0) / len(found) + binomial))


def ablation_report(
    ablations: Ablations, scale: str, entries: Sequence[Entry], *, part: str, features: str
) -> Record:
    """Published and own numbers of every row, and what can be said of their order.

    Numbers are the student's after the last epoch: accuracies, or what a protocol's records have as
    their headline. Accuracies are all of the same data; of other numbers those of one protocol.

    Args:
        ablations: What was published.
        scale: Name of one of its scales.
        entries: Runs with their results; rows without any are reported as not run.
        part: Which results count: "test", or validation subjects as the records name them.
        features: Which results count: what stands for a sample, as the records name it.

    Returns:
        A JSON object; `ablation_page` writes it as Markdown and HTML.

    Raises:
        UserError: Results of different data or protocols, or runs of different sizes.
    """
    records = {
        (entry.recipe, entry.seed, record["subject"], record["protocol"]["name"]): record
        for entry in entries
        for record in entry.results
        if record["features"] == features
        and record["part"] == part
        and record["subject"] != "fused"
        and record["protocol"]["name"] in ablations.protocols
    }
    if not records:
        raise UserError(
            "there is no result to make a table of",
            expected=f"evaluations of part '{part}' by {' or '.join(ablations.protocols)}",
        )
    protocols: dict[str, Record] = {}
    for name in ablations.protocols:
        for record in records.values():
            if record["protocol"]["name"] == name:
                protocols.setdefault(name, record["protocol"])
    measures = {name: _measure(records, name) for name in protocols}
    data: dict[str, Record] = {}
    for (recipe, seed, _, name), record in records.items():
        group = _ACCURACY if measures[name]["name"] == _ACCURACY else name
        data.setdefault(group, {key: record[key] for key in _DATA})
        for key in _DATA:
            _must_equal(f"{recipe}, seed {seed}", key, record[key], data[group][key])
        _must_equal(f"{recipe}, seed {seed}", "protocol", record["protocol"], protocols[name])
    for entry in entries:
        for key in ablations.same:
            found, wanted = entry.settings[key], entries[0].settings[key]
            _must_equal(f"{entry.recipe}, seed {entry.seed}", key, found, wanted)

    scores: dict[str, dict[str, Score]] = {name: {} for name in protocols}
    floor: dict[str, dict[int, float]] = {name: {} for name in protocols}
    for (recipe, seed, subject, name), record in records.items():
        by_seed = (
            scores[name].setdefault(recipe, Score({})).by_seed if subject == "run" else floor[name]
        )
        by_seed[seed] = headline(record).value

    first = data.get(_ACCURACY) or next(iter(data.values()))
    queries = {
        name: int(first["samples"]["test"]) if measure["name"] == _ACCURACY else None
        for name, measure in measures.items()
    }
    spread = {name: difference_variance(scores[name].values()) for name in protocols}
    tables = [
        {
            "number": table.number,
            "title": table.title,
            "full": ablations.full_of(table),
            "compared": {name: ablations.column_for(table, name) for name in protocols},
            "rows": [
                {
                    **row.model_dump(),
                    "ours": {
                        name: _own(
                            scores[name],
                            row.recipe,
                            ablations.full_of(table),
                            spread[name],
                            queries[name],
                        )
                        for name in protocols
                    },
                }
                for row in table.rows
            ],
        }
        for table in ablations.tables
    ]
    return {
        "kind": "ablation report",
        "name": ablations.name,
        "title": ablations.title,
        "source": ablations.source,
        "scale": {"name": scale, "title": ablations.scales[scale].title},
        **first,
        "other_data": {name: data[name] for name in protocols if data.get(name, first) != first},
        "part": part,
        "features": features,
        "warnings": united(record["warnings"] for record in records.values()),
        "training": {key: entries[0].settings[key] for key in ablations.same},
        "protocols": protocols,
        "measures": measures,
        "seeds": sorted({entry.seed for entry in entries}),
        "columns": {key: column.model_dump() for key, column in ablations.columns.items()},
        "tables": tables,
        "floor": {name: _score(Score(found)) if found else None for name, found in floor.items()},
        "difference_std": {name: None if v is None else sqrt(v) for name, v in spread.items()},
        "orderings": {
            name: _orderings(
                ablations,
                name,
                scores[name],
                spread[name],
                queries[name],
                lower_is_better=measures[name]["lower_is_better"],
            )
            for name in protocols
        },
        "noise_rule": NOISE_RULE + (_OTHER_NOISE if None in queries.values() else ""),
        "notes": list(ablations.notes),
        "readings": [
            *ablations.readings,
            *united(record["readings"] for record in records.values()),
        ],
    }


def _measure(records: Mapping[Any, Record], protocol: str) -> Record:
    """What a protocol's numbers are: their name, and whether the lower is the better."""
    found = next(r for r in records.values() if r["protocol"]["name"] == protocol)
    first = headline(found)
    return {"name": first.name, "lower_is_better": first.lower_is_better}


def _must_equal(where: str, key: str, found: object, expected: object) -> None:
    if found != expected:
        raise UserError(
            f"results that differ in '{key}' make no table",
            place=where,
            found=found,
            expected=f"{expected}, as in the others",
            remedy="another --runs folder for runs of other data or settings",
        )


def _score(score: Score) -> Record:
    by_seed = {str(seed): value for seed, value in sorted(score.by_seed.items())}
    return {"by_seed": by_seed, "mean": score.mean, "std": score.std}


def _own(
    scores: Mapping[str, Score],
    recipe: str,
    full: str,
    spread: float | None,
    queries: int | None,
) -> Record | None:
    """A row's score, and its difference to the full row's where both were run."""
    if recipe not in scores:
        return None
    found = _score(scores[recipe])
    if recipe != full and full in scores:
        over = compare(scores[recipe], scores[full], spread, queries)
        found["over_full"] = over and {"points": over.points, "error": over.error}
    return found


def _orderings(
    ablations: Ablations,
    protocol: str,
    scores: Mapping[str, Score],
    spread: float | None,
    queries: int | None,
    *,
    lower_is_better: bool,
) -> list[Record]:
    """Every pair of rows of a table whose published numbers differ, the better one first.

    Numbers are those of the column that the protocol is compared with. Of ours the lower is better
    where the protocol's are such, whatever that column holds.
    """
    own = -1 if lower_is_better else 1
    found = []
    for table in ablations.tables:
        column = ablations.column_for(table, protocol)
        sign = -1 if ablations.columns[column].lower_is_better else 1
        for pair in combinations(table.rows, 2):
            worse, better = sorted(pair, key=lambda row: sign * row.published[column])
            if worse.published[column] == better.published[column]:
                continue
            record: Record = {
                "table": table.number,
                "column": column,
                "better": better.label,
                "worse": worse.label,
                "published": round(better.published[column] - worse.published[column], 6),
                "ours": None,
            }
            if better.recipe in scores and worse.recipe in scores:
                over = compare(scores[better.recipe], scores[worse.recipe], spread, queries)
                if over:
                    record |= {
                        "ours": over.points,
                        "error": over.error,
                        "holds": own * over.points > 0,
                        "within_noise": over.within_noise,
                    }
            found.append(record)
    return found


def count_orderings(orderings: Iterable[Record]) -> dict[str, int]:
    """How many orderings there are, were measured, hold, are reversed, and are within noise.

    The last count is of those that are measured and whose noise is unknown.
    """
    found = list(orderings)
    measured = [record for record in found if record["ours"] is not None]
    clear = [record for record in measured if record["within_noise"] is False]
    unknown = sum(record["within_noise"] is None for record in measured)
    return {
        "published": len(found),
        "measured": len(measured),
        "hold": sum(record["holds"] for record in measured),
        "hold_beyond_noise": sum(record["holds"] for record in clear),
        "fail_beyond_noise": sum(not record["holds"] for record in clear),
        "within_noise": len(measured) - len(clear) - unknown,
        "noise_unknown": unknown,
    }
