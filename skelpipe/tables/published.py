"""The papers' tables as data: what was published, by whom, and how our cell of a column is made.

A column says what a run is pre-trained on, what it is evaluated on and by which protocol; a row
that is ours says which encoder is asked: a run's, of one stream or several, or an untrained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from skelpipe.config import PCM3Recipe, Recipe, Settings, build, load_recipe
from skelpipe.errors import UserError, nearest
from skelpipe.manifest import manifest_names, read_manifest

Stream = Literal["joint", "bone", "motion"]


class Column(Settings):
    """A column: top-1 accuracies in per cent where it says nothing else.

    Attributes:
        label: Its heading.
        unit: Of its numbers.
        lower_is_better: Such as an error.
        train: What our run is pre-trained on, DATASET/SPLIT; empty where we measure nothing.
        test: What it is evaluated on, DATASET/SPLIT or DATASET/SPLIT/PIPELINE; the same if empty.
        protocol: Name of the protocol.
        changes: Settings of it.
        metric: What of the result's first row the cell shows.
        mean_of: Columns whose results the metric is the mean of, instead of one of its own.
    """

    label: str
    unit: str = "%"
    lower_is_better: bool = False
    train: str = ""
    test: str = ""
    protocol: str = ""
    changes: tuple[str, ...] = ()
    metric: str = "accuracy"
    mean_of: tuple[str, ...] = ()


class Ours(Settings):
    """How a row is filled by us.

    Attributes:
        subject: A run's encoder, or an untrained one.
        streams: Whose scores are added up, where there are several.
        protocol: Instead of the columns' own.
    """

    subject: Literal["run", "random-init"] = "run"
    streams: tuple[Stream, ...] = ("joint",)
    protocol: str = ""


class Row(Settings):
    """A row as the paper has it, with what is known better.

    Attributes:
        method: Its name.
        citation: The paper's number and who it is.
        venue, backbone, group: Where the table names them.
        printed: What the paper prints where this row is corrected.
        measured: How its numbers were really measured, where not as the table's.
        values: By column; those that the paper leaves out are missing.
        counted: What `skelpipe bench flops` counts it by (Table 1).
        ours: How we fill it; None for a row of others.
    """

    method: str
    citation: str = ""
    venue: str = ""
    backbone: str = ""
    group: str = ""
    printed: str = ""
    measured: str = ""
    values: dict[str, float]
    counted: dict[str, Any] = Field(default_factory=dict)
    ours: Ours | None = None


class PublishedTable(Settings):
    """A published table.

    Attributes:
        name: Such as "slim-table-2".
        number, title: In the paper.
        paper: Its name.
        scales: Name of the manifest of `Scales`.
        measured: How its rows were measured, unless one says otherwise.
        reduction: Of inference, that the paper states (Table 1).
        readings: How we read what it leaves open.
        notes: What must be known beside it.
    """

    kind: Literal["table"]
    name: str
    number: int
    title: str
    paper: str
    scales: str
    measured: str
    reduction: float | None = None
    readings: tuple[str, ...]
    notes: tuple[str, ...]
    columns: dict[str, Column]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        for row in self.rows:
            if unknown := row.values.keys() - self.columns.keys():
                raise ValueError(f"row {row.method} has unknown columns {sorted(unknown)}")
        for name, column in self.columns.items():
            if unknown := set(column.mean_of) - self.columns.keys():
                raise ValueError(f"column {name} is the mean of unknown {sorted(unknown)}")
            if bool(column.train) != bool(column.protocol):
                raise ValueError(f"column {name} says where or how it is measured, not both")
        return self

    def measured_columns(self) -> dict[str, tuple[Column, ...]]:
        """By column that we fill, the columns whose evaluations it is made of: itself, mostly."""
        found = {
            name: tuple(self.columns[part] for part in column.mean_of or [name])
            for name, column in self.columns.items()
        }
        return {name: parts for name, parts in found.items() if all(part.train for part in parts)}


class Scale(Settings):
    """At what size rows are run.

    Attributes:
        title: What it is, in words.
        recipe: Of the joint stream; other streams' stand on it.
        recipes: By data set, another.
        changes: By data set, or "all", settings of it.
        protocols: By a protocol's name, settings of it.
    """

    title: str
    recipe: str
    recipes: dict[str, str] = Field(default_factory=dict)
    changes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    protocols: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Scales(Settings):
    """The scales of a paper's tables; ``streams`` are recipes of streams beside the joint one."""

    kind: Literal["scales"]
    name: str
    title: str
    streams: dict[Stream, str]
    scales: dict[str, Scale]

    def scale(self, name: str) -> Scale:
        """A scale by name; an unknown one suggests the nearest."""
        if name not in self.scales:
            raise UserError(f"unknown scale '{name}'", remedy=nearest(name, self.scales))
        return self.scales[name]

    def recipe(
        self, scale: str, dataset: str, stream: Stream, changes: Sequence[str] = ()
    ) -> Recipe:
        """The resolved recipe of a stream on a data set; ``changes`` win over all."""
        chosen = self.scale(scale)
        base = chosen.recipes.get(dataset, chosen.recipe)
        own = [*chosen.changes.get("all", ()), *chosen.changes.get(dataset, ()), *changes]
        if stream == "joint":
            return load_recipe(base, own)
        recipe = load_recipe(self.streams[stream], own, base=base)
        assert isinstance(recipe, PCM3Recipe)
        assert recipe.views.modality == stream
        return recipe


def load_table(name: str) -> PublishedTable:
    """A packaged table by name; an unknown one suggests the nearest."""
    return build(PublishedTable, read_manifest("table", name), what=f"table '{name}'")


def load_scales(table: PublishedTable) -> Scales:
    """The scales that a table is run at."""
    table_of = read_manifest("scales", table.scales)
    return build(Scales, table_of, what=f"'{table.scales}'")


def table_names() -> list[str]:
    """Names of all packaged tables of this kind."""
    return manifest_names("table")
