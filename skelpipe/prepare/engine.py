"""Raw recordings -> prepared sets: runs the plan's tasks on local processes.

Everything is written in a work folder beside the sets, named after the plan. A task's files get
their names when they are whole and on disk, and a marker says so; a rerun takes up where the
markers end. A set is moved to its final name in one step, when its card is written.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path

from skelpipe.errors import UserError
from skelpipe.manifest import load_dataset, load_topology
from skelpipe.shards.card import Card, digest_of
from skelpipe.shards.tar import ShardWriter, payload_bytes

from . import ntu
from .archive import Reader
from .files import into_place, leftovers, new_name, write_whole
from .finish import (
    Raw,
    Row,
    Task,
    check_replaceable,
    count_kinds,
    finish,
    gather,
    put_in_place,
    rejections,
    standing,
)
from .normalise import find_pipeline
from .plan import Group, Plan, make_plan
from .recording import RejectedError

_FEW = 10  # this many rejections are tolerated whatever the size of the set, else one in a hundred
_LEAST_TEXT_PER_BYTE = 3  # bytes of text at least behind a byte of a shard; usually some nine
_MARGIN = 1 << 20  # for indexes and cards


@dataclass(frozen=True)
class Progress:
    """How far the reading is: recordings, and bytes of their text."""

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


@dataclass(frozen=True)
class Job:
    """What every task of a run needs beside its group."""

    work: Path
    splits: tuple[str, ...]
    pipeline: str
    topology: str
    first_action: int

    def shards(self, group: Group) -> list[Path]:
        """A group's shard in each split that is being made."""
        return [
            self.work / name / group.shards[name] for name in self.splits if name in group.shards
        ]

    def marker(self, group: Group) -> Path:
        return self.work / f"group-{group.number:06d}.json"

    def done(self, group: Group) -> Task | None:
        """What a finished task left behind; None where it is not finished."""
        marker = self.marker(group)
        if not marker.exists() or not all(shard.exists() for shard in self.shards(group)):
            return None
        left = json.loads(marker.read_bytes())
        return Task(**{**left, "rejected": [tuple(row) for row in left["rejected"]]})


class _StopError(Exception):
    """The run was stopped while a task was at work."""


class _TooManyError(UserError):
    """More recordings are rejected than may silently be missing."""


def prepare(
    dataset: str,
    splits: Sequence[str] = (),
    *,
    raw: Sequence[Path],
    out: Path,
    pipeline: str = "ctrgcn",
    workers: int | None = None,
    missing_list: Path | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Preparation:
    """Make prepared sets `<out>/<dataset>/<pipeline>/<split>/` from raw recordings, read once.

    The same recordings give the same bytes, whatever the number of workers, the splits asked for
    together, and the way the recordings are archived. With more than one worker, processes are
    spawned: a script that calls this needs the usual `if __name__ == "__main__"`.

    Args:
        dataset: Name of a data set manifest.
        splits: Names of its splits; none: all of them.
        raw: Folders, zips, tars or loose files that hold the recordings.
        out: Root of the prepared sets.
        pipeline: Name of the pipeline that cleans and normalises.
        workers: Processes; by default as many as there are cores to use.
        missing_list: The list of recordings to leave out; by default the official one, if it lies
            beside the raw data.
        force: Make the sets anew where they were made from other raw data or are damaged.
        progress: Called several times a second.

    Raises:
        UserError: an unknown name, no fitting raw data, a set of other raw data in the way, a full
            disk, more than max(10, 1 %) of a split's samples rejected.
    """
    manifest = load_dataset(dataset)
    names = list(dict.fromkeys(splits or manifest.splits))
    for name in names:
        manifest.split(name)
    material = gather(manifest, find_pipeline(pipeline), raw, missing_list)
    home = Path(out) / dataset / pipeline
    cards = {}
    for name in names:
        check_replaceable(home / name)
        if not force and (card := standing(home / name, material)):
            cards[name] = card
    todo = tuple(name for name in names if name not in cards)
    if todo:
        with _held(home):
            cards |= _make(material, home, todo, workers or _cores(), progress)
            _sweep(home)
    else:
        with suppress(UserError), _held(home):  # another run may be at work on other splits
            _sweep(home)
    return Preparation(
        tuple(Prepared(home / name, cards[name], fresh=name in todo) for name in names),
        material.notes,
    )


def _make(
    raw: Raw,
    home: Path,
    splits: tuple[str, ...],
    workers: int,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Card]:
    """Make the sets of some splits; returns their cards."""
    plan = make_plan(raw.dataset, raw.members)
    identity = digest_of([plan.digest, raw.refused, raw.source.digest, raw.pipeline.version])
    work = home / f".work-{identity[:16]}"
    job = Job(work, splits, raw.pipeline.name, raw.dataset.topology, raw.dataset.actions[0])
    for name in splits:
        (work / name).mkdir(parents=True, exist_ok=True)
    for leftover in leftovers(work):
        leftover.unlink()
    try:
        with _disk_full_told(plan, job):
            tasks = _run(raw, plan, job, workers, progress)
            cards = {name: finish(name, raw, plan, tasks, work / name) for name in splits}
    except _TooManyError:
        shutil.rmtree(work)
        raise
    for name in splits:
        put_in_place(work / name, home / name)
    return cards


def _sweep(home: Path) -> None:
    """Remove work folders that have no set in them, or no longer: their runs came to an end."""
    for work in home.glob(".work-*"):
        if not any(file.is_dir() and not file.name.startswith("old-") for file in work.iterdir()):
            shutil.rmtree(work)


def _run(
    raw: Raw,
    plan: Plan,
    job: Job,
    workers: int,
    progress: Callable[[Progress], None] | None,
) -> dict[int, Task]:
    """Work on all groups that are not done yet; returns what all tasks left, by group number."""
    groups = plan.of(job.splits)
    tasks = {group.number: task for group in groups if (task := job.done(group))}
    done = [group for group in groups if group.number in tasks]
    # The largest first, so that no worker is left alone with one in the end.
    left = sorted((g for g in groups if g.number not in tasks), key=lambda g: (-g.size, g.number))
    recordings, size = (sum(len(g.samples) for g in groups), sum(g.size for g in groups))
    before = (sum(len(g.samples) for g in done), sum(g.size for g in done))

    def report(more: int, more_size: int) -> None:
        if progress is not None:
            progress(Progress(before[0] + more, recordings, before[1] + more_size, size))

    def finished(group: Group) -> None:
        task = job.done(group)
        assert task is not None, f"group {group.number} left nothing behind"
        tasks[group.number] = task
        _check_rejections(raw, plan, job, tasks)

    report(0, 0)
    _check_rejections(raw, plan, job, tasks)
    if workers == 1 or len(left) < 2:
        _run_here(left, job, report, finished)
    else:
        _run_in_processes(left, job, min(workers, len(left)), report, finished)
    return tasks


def _check_rejections(raw: Raw, plan: Plan, job: Job, tasks: dict[int, Task]) -> None:
    for name in job.splits:
        rows = rejections(name, raw, plan, tasks)
        planned = plan.planned(name) + len(raw.refused)
        bearable = max(_FEW, planned // 100)
        if len(rows) > bearable:
            kinds = [f"{count:,} {kind}" for kind, count in count_kinds(rows).most_common()]
            examples = "".join(f"\n    {source}: {reason}" for _, source, reason in rows[:3])
            raise _TooManyError(
                f"too many recordings cannot be used for {name}: "
                f"so far {len(rows):,} of {planned:,}",
                found=", ".join(kinds) + examples,
                expected=f"at most {bearable:,}",
                remedy="fetch the raw data again; nothing was written",
            )


def _run_here(
    groups: list[Group],
    job: Job,
    report: Callable[[int, int], None],
    finished: Callable[[Group], None],
) -> None:
    recordings, size, last = 0, 0, 0.0

    def tick(read: int) -> None:
        nonlocal recordings, size, last
        recordings, size = recordings + 1, size + read
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            report(recordings, size)

    for group in groups:
        write_group(group, job, tick)
        finished(group)
        report(recordings, size)


def _run_in_processes(
    groups: list[Group],
    job: Job,
    workers: int,
    report: Callable[[int, int], None],
    finished: Callable[[Group], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", 3)  # recordings, bytes, whether to stop
    try:
        with ProcessPoolExecutor(workers, context, _join, (shared,)) as pool:
            running = {pool.submit(_work, group, job): group for group in groups}
            try:
                while running:
                    done, _ = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        finished(running.pop(future))
                    report(shared[0], shared[1])
            except BaseException:
                shared[2] = 1
                for future in running:
                    future.cancel()
                raise
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed",
            found="most likely the system ran out of memory",
            remedy="run the same command again with fewer --workers: it continues",
        ) from error


_shared: SynchronizedArray[int] | None = None  # a worker process's link to the run, set by _join


def _join(shared: SynchronizedArray[int]) -> None:
    """Start of a worker process: it leaves Ctrl-C to the run, and does not outlive it."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _work(group: Group, job: Job) -> None:
    """A task in a worker process."""
    shared = _shared
    assert shared is not None, "_join has not run"

    def tick(read: int) -> None:
        with shared.get_lock():
            shared[0] += 1
            shared[1] += read
            stop = shared[2]
        if stop:
            raise _StopError

    write_group(group, job, tick)


def write_group(group: Group, job: Job, tick: Callable[[int], None]) -> None:
    """Write a group's shard in each of its splits, then its marker.

    A shard whose recordings are all rejected is an empty archive: the numbers stay as planned.

    Args:
        group: The task.
        job: What it needs beside.
        tick: Called after every recording with the bytes of its text.
    """
    pipeline = find_pipeline(job.pipeline)
    topology, switches = load_topology(job.topology), pipeline.settled({})
    rows: list[dict[str, object]] = []
    rejected: list[Row] = []
    shards = job.shards(group)
    new = [new_name(shard) for shard in shards]
    with new[0].open("wb") as file, Reader() as reader:
        writer = ShardWriter(file)
        for sample in group.samples:
            try:
                poses = pipeline.apply(ntu.parse(reader.read(sample.member)), topology, switches)
            except RejectedError as error:
                rejected.append((sample.key, sample.member.source, error.reason))
            else:
                payload = payload_bytes(poses)
                fields = {
                    "key": sample.key,
                    "label": sample.name.action - job.first_action,
                    "subject": sample.name.subject,
                    "camera": sample.name.camera,
                    "setup": sample.name.setup,
                    "replication": sample.name.replication,
                    "bodies": poses.shape[0],
                    "frames": poses.shape[1],
                    "source": sample.member.source,
                }
                place = {
                    "offset": writer.add(sample.key, payload, json.dumps(fields).encode()),
                    "size": len(payload),
                    "crc32": zlib.crc32(payload),
                    "sha256": hashlib.sha256(payload).hexdigest(),
                }
                rows.append(fields | place)
            tick(sample.member.size)
        sha256 = writer.close()
    for other in new[1:]:
        shutil.copyfile(new[0], other)
    for written, shard in zip(new, shards, strict=True):
        into_place(written, shard)
    task = Task(rows=rows, rejected=rejected, size=writer.size, sha256=sha256)
    write_whole(job.marker(group), json.dumps(asdict(task)).encode())


@contextmanager
def _held(home: Path) -> Iterator[None]:
    """A folder of prepared sets, written to by this process alone."""
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home, os.O_RDONLY)
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
            raise
        for leftover in leftovers(job.work):
            leftover.unlink()
        read, written, left = 0, 0, 0
        for group in plan.of(job.splits):
            task = job.done(group)
            if task:
                read, written = read + group.size, written + task.size
            else:
                left += group.size * len(job.shards(group))
        needed = left * written // read if read else left // _LEAST_TEXT_PER_BYTE
        raise UserError(
            "the disk is full",
            file=job.work.parent,
            found=f"{shutil.disk_usage(job.work).free:,} bytes free",
            expected=f"about {needed + _MARGIN:,} bytes more",
            remedy="make room, or choose another --out; the same command continues",
        ) from error


def _cores() -> int:
    """Cores this process may use, which on a cluster are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
