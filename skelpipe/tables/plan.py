"""From a published table and a scale to the runs that fill its cells.

Runs lie in ROOT/STREAM-DATASET-SPLIT-seedK, whatever table asks for them, so tables share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from skelpipe.config import Recipe
from skelpipe.errors import UserError, nearest
from skelpipe.protocols.settings import Protocol, load_protocol

from .jobs import Asked, Job
from .published import Column, Ours, PublishedTable, Scales, Stream
from .sets import SetName, about


@dataclass(frozen=True)
class Source:
    """A result: an evaluation of a run, or the fusion of one evaluation of several runs.

    Attributes:
        folders: The runs, one a stream.
        asked: The evaluation.
    """

    folders: tuple[Path, ...]
    asked: Asked


@dataclass(frozen=True)
class Cell:
    """A number of ours: the mean of a metric over its sources, for one seed.

    Attributes:
        row: Its place in the table.
        column: Its column.
        seed: Of the runs.
        metric: What of the results' first row it is.
        sources: One, or several.
        needs: The prepared sets without which there is no number.
    """

    row: int
    column: str
    seed: int
    metric: str
    sources: tuple[Source, ...]
    needs: tuple[SetName, ...]


@dataclass(frozen=True)
class Plan:
    """All cells that are wanted, and the jobs whose results they are; jobs by their folders."""

    cells: tuple[Cell, ...]
    jobs: dict[Path, Job]

    @property
    def sets(self) -> list[SetName]:
        """Prepared sets that the cells need."""
        return list(dict.fromkeys(name for cell in self.cells for name in cell.needs))

    def without(self, absent: Iterable[SetName]) -> Plan:
        """The plan without cells that need sets which are not there, and their evaluations."""
        gone = set(absent)
        return _plan([cell for cell in self.cells if not gone & set(cell.needs)], self.jobs)


def make_plan(
    table: PublishedTable,
    scales: Scales,
    scale: str,
    *,
    seeds: Sequence[int],
    root: Path,
    shards: Path,
    columns: Sequence[str] = (),
    changes: Sequence[str] = (),
    generated: bool = False,
) -> Plan:
    """What is to be run for a table.

    Args:
        table: The table.
        scales: Its paper's.
        scale: Name of one.
        seeds: Of the runs of each cell.
        root: Of the runs.
        shards: Root of prepared sets.
        columns: Those to fill; all that we measure if empty.
        changes: Settings of all recipes.
        generated: The data is to be generated, and smaller than the real one.

    Raises:
        UserError: An unknown scale, column or setting, or a protocol that is not known.
    """
    measured = table.measured_columns()
    for name in columns:
        if name not in measured:
            raise UserError(f"unknown column '{name}'", remedy=nearest(name, measured))

    @cache
    def recipe_of(dataset: str, stream: Stream) -> Recipe:
        return scales.recipe(scale, dataset, stream, changes)

    @cache
    def job_of(train: str, stream: Stream, seed: int) -> Job:
        recipe = recipe_of(train.split("/")[0], stream)
        name = _set_name(train, recipe)
        method = recipe.method if stream == "joint" else f"{recipe.method}-{stream}"
        return Job(
            folder=root / f"{method}-{name.dataset}-{name.split}-seed{seed}",
            recipe=recipe,
            seed=seed,
            data=name.folder(shards),
            asked=(),
            on=f"{name.dataset} {name.split}",
            about=about(name, generated=generated),
        )

    @cache
    def protocol_of(column: Column, ours: Ours) -> Protocol:
        name = ours.protocol or column.protocol
        own = () if ours.protocol else column.changes  # a row's own takes none of the column's
        return load_protocol(name, [*own, *scales.scale(scale).protocols.get(name, ())])

    cells: list[Cell] = []
    jobs: dict[Path, Job] = {}
    for seed, (place, row) in product(seeds, enumerate(table.rows)):
        for name in (columns or measured) if row.ours else ():
            assert row.ours is not None
            sources, needs = [], []
            for part in measured[name]:
                made = [job_of(part.train, stream, seed) for stream in row.ours.streams]
                train = _set_name(part.train, made[0].recipe)
                test = _set_name(part.test or part.train, made[0].recipe)
                asked = Asked(protocol_of(part, row.ours), test.folder(shards), row.ours.subject)
                sources.append(Source(tuple(job.folder for job in made), asked))
                needs += [train, test]
                jobs |= {job.folder: job for job in made}
            metric = table.columns[name].metric
            cells.append(
                Cell(place, name, seed, metric, tuple(sources), tuple(dict.fromkeys(needs)))
            )
    return _plan(cells, jobs)


def _plan(cells: Sequence[Cell], jobs: dict[Path, Job]) -> Plan:
    """Jobs that some cells need, each with the evaluations that these ask of it."""
    asked: dict[Path, list[Asked]] = {}
    for cell in cells:
        for source in cell.sources:
            for folder in source.folders:
                known = asked.setdefault(folder, [])
                if source.asked not in known:
                    known.append(source.asked)
    return Plan(
        tuple(cells),
        {folder: replace(jobs[folder], asked=tuple(found)) for folder, found in asked.items()},
    )


def _set_name(text: str, recipe: Recipe) -> SetName:
    """DATASET/SPLIT of the recipe's pipeline, or DATASET/SPLIT/PIPELINE."""
    dataset, split, *pipeline = text.split("/")
    return SetName(dataset, split, pipeline[0] if pipeline else recipe.pipeline)
