"""Raw recordings -> prepared sets: runs the plan's tasks, here or on a cluster.

Everything is written in a work folder beside the sets, named after the plan. A task's files get
their names when they are whole and on disk, and a marker says so; a rerun takes up where the
markers end. A set is moved to its final name in one step, when its card is written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from skelpipe.errors import UserError
from skelpipe.files import leftovers
from skelpipe.manifest import load_dataset, topology_of
from skelpipe.shards.card import Card, Precision, digest_of, place_of

from .cluster import run_on_dask
from .finish import (
    Raw,
    check_replaceable,
    count_kinds,
    finish,
    put_in_place,
    rejections,
    standing,
)
from .formats import list_raw, switches_of
from .local import run_here, run_in_processes
from .normalise import find_pipeline
from .plan import Group, Plan, make_plan
from .task import Job, Task

_FEW = 10  # this many rejections are tolerated whatever the size of the set, else one in a hundred
_MOST = 3  # a shard may take up to so many times what was estimated from the raw bytes
_MARGIN = 1 << 20  # for indexes and cards

Engine = Literal["local", "dask"]


@dataclass(frozen=True)
class Progress:
    """How far the reading is: recordings, and bytes of them."""

    recordings: int
    of_recordings: int
    size: int
    of_size: int


@dataclass(frozen=True)
class Prepared:
    """A prepared set. ``fresh``: it was made now; otherwise it stood there already."""

    folder: Path
    card: Card
    fresh: bool


@dataclass(frozen=True)
class Preparation:
    """Prepared sets in the order asked for, and what was passed over, in sentences."""

    sets: tuple[Prepared, ...]
    notes: tuple[str, ...]


class _TooManyError(UserError):
    """More recordings are rejected than may silently be missing."""


def prepare(
    dataset: str,
    splits: Sequence[str] = (),
    *,
    raw: Sequence[Path],
    out: Path,
    pipeline: str = "ctrgcn",
    switches: Mapping[str, str] | None = None,
    precision: Precision = "float32",
    engine: Engine = "local",
    scheduler: str | None = None,
    workers: int | None = None,
    missing_list: Path | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Preparation:
    """Make prepared sets `<out>/<dataset>/<pipeline>/<split>/` from raw recordings, read once.

    The same recordings give the same bytes, whatever the engine and number of workers, the splits
    asked for together, and the way the recordings are archived. With more than one worker,
    processes are spawned: a script that calls this needs the usual `if __name__ == "__main__"`.

    Args:
        dataset: Name of a packaged data set, or the path of a manifest of one's own.
        splits: Names of its splits; none: all of them.
        raw: Folders, zips, tars or loose files that hold the recordings; none: where the manifest
            of one's own data says.
        out: Root of the prepared sets.
        pipeline: Name of the pipeline that cleans and normalises; "recordings" keeps whole
            recordings as they are, for detection.
        switches: Switches of the pipeline and the raw format, where not the default.
        precision: Of positions. "int16" halves the size (error at most 0.125 mm within ±8.19 m)
            and makes `<pipeline>-int16`.
        engine: "local" processes, or a Dask cluster.
        scheduler: Address of a running Dask scheduler; by default Dask starts workers here.
        workers: Processes here; by default as many as there are cores to use.
        missing_list: The list of recordings to leave out; by default the official one, if it lies
            beside the raw data.
        force: Make the sets anew where they were made from other raw data or are damaged.
        progress: Called several times a second.

    Raises:
        UserError: an unknown name, no fitting raw data, a set of other raw data in the way, a full
            disk, more than max(10, 1 %) of a split's recordings rejected.
    """
    if engine == "dask":  # whose workers have other working folders
        raw, out = [Path(place).absolute() for place in raw], Path(out).absolute()
    material = find_material(
        dataset, splits, raw=raw, pipeline=pipeline, switches=switches, precision=precision,
        missing_list=missing_list,
    )  # fmt: skip
    manifest, listing = material.dataset, material.listing
    present = {name for unit in listing.units for name in unit.parts}
    names = list(dict.fromkeys(splits)) or [name for name in manifest.splits if name in present]
    home = Path(out) / place_of(manifest.name, pipeline, precision)
    cards = {}
    for name in names:
        check_replaceable(home / name)
        if not force and (card := standing(home / name, material)):
            cards[name] = card
    todo = tuple(name for name in names if name not in cards)
    if todo:
        with _held(home):
            run = _Run(engine, scheduler, workers or _cores(), progress)
            cards |= _make(material, home, todo, run)
            _sweep(home)
    else:
        with suppress(UserError), _held(home):  # another run may be at work on other splits
            _sweep(home)
    notes = list(listing.notes)
    if not splits:
        absent = [name for name in manifest.splits if name not in present]
        notes += [f"left out split {name}: no recording belongs to it" for name in absent]
    return Preparation(
        tuple(Prepared(home / name, cards[name], fresh=name in todo) for name in names),
        tuple(notes),
    )


def find_material(
    dataset: str,
    splits: Sequence[str] = (),
    *,
    raw: Sequence[Path],
    pipeline: str = "ctrgcn",
    switches: Mapping[str, str] | None = None,
    precision: Precision = "float32",
    missing_list: Path | None = None,
) -> Raw:
    """What `prepare` would make its sets from; arguments are its own, and nothing is written.

    Raises:
        UserError: an unknown name, or no raw data of the data set or of one of the splits.
    """
    manifest = load_dataset(dataset)
    for name in splits:
        manifest.split(name)
    if precision == "int16" and not manifest.metric:
        raise UserError(
            f"int16 stores steps of 0.25 mm, and {manifest.name} has no metric unit",
            remedy="prepare it as float32",
        )
    chosen = find_pipeline(pipeline)
    known = {**chosen.switches, **switches_of(manifest)}
    settled = replace(chosen, switches=known).settled(switches or {})
    listing = list_raw(
        manifest,
        raw,
        splits=tuple(splits),
        pipeline=pipeline,
        switches=settled,
        missing_list=missing_list,
    )
    present = {name for unit in listing.units for name in unit.parts}
    asked = splits or ([] if present else list(manifest.splits))
    for name in asked:
        if name not in present:
            outside = listing.outside.get(name, ())
            raise UserError(
                f"none of the recordings belongs to split {name} of {manifest.title}",
                file=", ".join(map(str, raw)),
                found=outside[0][2] if outside else f"{len(listing.units):,} of other splits",
                remedy="choose another --split, or look whether this is the whole archive",
            )
    return Raw(manifest, chosen, settled, precision, listing)


def _make(
    raw: Raw,
    home: Path,
    splits: tuple[str, ...],
    run: _Run,
) -> dict[str, Card]:
    """Make the sets of some splits; returns their cards."""
    plan = make_plan(raw.dataset.splits, raw.listing.units)
    identity = digest_of(
        [
            plan.digest,
            raw.listing.refused,
            raw.listing.source.digest,
            raw.pipeline.version,
            raw.switches,
        ]
    )
    work = home / f".work-{identity[:16]}"
    job = Job(
        work=work,
        splits=splits,
        dataset=raw.dataset,
        topology=topology_of(raw.dataset),
        pipeline=raw.pipeline.name,
        switches=raw.switches,
        precision=raw.precision,
        version=version("skelpipe"),
    )
    for name in splits:
        (work / name).mkdir(parents=True, exist_ok=True)
    _clear(work)
    try:
        with _disk_full_told(plan, job):
            tasks = _work_on(raw, plan, job, run)
            _clear(work)  # of workers that were lost on the way
            cards = {name: finish(name, raw, plan, job, tasks) for name in splits}
    except _TooManyError:
        _remove(work)
        raise
    for name in splits:
        put_in_place(work / name, home / name)
    return cards


def _remove(work: Path) -> None:
    for _ in range(100):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(0.1)  # a cancelled task on a cluster may still be writing into it


def _clear(work: Path) -> None:
    for leftover in leftovers(work):
        leftover.unlink(missing_ok=True)


def _sweep(home: Path) -> None:
    """Remove work folders that have no set in them, or no longer: their runs came to an end."""
    for work in home.glob(".work-*"):
        if not any(file.is_dir() and not file.name.startswith("old-") for file in work.iterdir()):
            shutil.rmtree(work)


@dataclass(frozen=True)
class _Run:
    """Who works, and who is told."""

    engine: Engine
    scheduler: str | None
    workers: int
    progress: Callable[[Progress], None] | None


def _work_on(raw: Raw, plan: Plan, job: Job, run: _Run) -> dict[int, Task]:
    """Work on all groups that are not done yet; returns what all tasks left, by group number."""
    groups = plan.of(job.splits)
    tasks = {group.number: task for group in groups if (task := job.done(group))}
    done = [group for group in groups if group.number in tasks]
    # The largest first, so that no worker is left alone with one in the end.
    left = sorted((g for g in groups if g.number not in tasks), key=lambda g: (-g.size, g.number))
    recordings, size = (sum(len(g.units) for g in groups), sum(g.size for g in groups))
    before = (sum(len(g.units) for g in done), sum(g.size for g in done))

    def report(more: int, more_size: int) -> None:
        if run.progress is not None:
            run.progress(Progress(before[0] + more, recordings, before[1] + more_size, size))

    def finished(group: Group) -> None:
        task = job.done(group)
        assert task is not None, f"group {group.number} left nothing behind"
        tasks[group.number] = task
        _check_rejections(raw, plan, job, tasks)

    report(0, 0)
    _check_rejections(raw, plan, job, tasks)
    if run.engine == "dask":
        run_on_dask(left, job, run.scheduler, run.workers, report, finished)
    elif run.workers == 1 or len(left) < 2:
        run_here(left, job, report, finished)
    else:
        run_in_processes(left, job, min(run.workers, len(left)), report, finished)
    return tasks


def _check_rejections(raw: Raw, plan: Plan, job: Job, tasks: dict[int, Task]) -> None:
    for name in job.splits:
        rows = rejections(name, raw, plan, tasks)
        # A recording with many samples is one, however many of them it costs.
        lost = {source for _, source, _ in rows}
        others = (*raw.listing.outside.get(name, ()), *raw.listing.refused)
        planned = len({source for _, source, _ in others})
        planned += sum(len(group.units) for group in plan.of([name]))
        bearable = max(_FEW, planned // 100)
        if len(lost) > bearable:
            kinds = [f"{count:,} {kind}" for kind, count in count_kinds(rows).most_common()]
            reasons = dict.fromkeys(f"\n    {source}: {reason}" for _, source, reason in rows)
            examples = "".join(list(reasons)[:3])
            raise _TooManyError(
                f"too many recordings cannot be used for {name}: "
                f"so far {len(lost):,} of {planned:,}",
                found=", ".join(kinds) + examples,
                expected=f"at most {bearable:,}",
                remedy=f"{_mend(raw)}; nothing was written",
            )


@contextmanager
def _held(home: Path) -> Iterator[None]:
    """A folder of prepared sets, written to by this process alone."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            "prepared sets cannot be written here",
            file=home,
            found=error.strerror or error,
            expected="a folder that may be written to",
            remedy="choose another --out",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UserError(
            "another skelpipe is preparing sets here",
            file=home,
            remedy="wait for it, or stop it: what it has finished is kept",
        ) from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _disk_full_told(plan: Plan, job: Job) -> Iterator[None]:
    """Turn a full disk into the user's error, which names the bytes that are still needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "the prepared sets cannot be written",
                file=error.filename or job.work,
                found=error.strerror or error,
                remedy="see to it, or choose another --out; the same command continues",
            ) from error
        _clear(job.work)
        estimated, written, needed = 0, 0, 0
        for group in plan.of(job.splits):
            task = job.done(group)
            if task:
                estimated, written = estimated + group.stored, written + task.size
            else:
                needed += group.stored * len(job.shards(group))
        needed = needed * written // estimated if estimated else needed * _MOST
        raise UserError(
            "the disk is full",
            file=job.work.parent,
            found=f"{shutil.disk_usage(job.work).free:,} bytes free",
            expected=f"about {needed + _MARGIN:,} bytes more",
            remedy="make room, or choose another --out; the same command continues",
        ) from error


def _mend(raw: Raw) -> str:
    """What most likely helps where recordings cannot be used."""
    if raw.dataset.format == "arrays":
        return "look whether the manifest describes them as they are"
    return "fetch the raw data again"


def _cores() -> int:
    """Cores this process may use, which on a cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
