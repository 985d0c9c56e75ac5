"""Runs tasks on a Dask cluster: the workers share a file system, and take tasks as they get free.

A worker that is killed loses the task it was at; another takes it up. Nothing but the group's
number and its files' names goes over the network.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version

from skelpipe.errors import UserError

from .plan import Group
from .task import Job, write_group

_PATIENCE = 30  # seconds for the scheduler to answer


def run_on_dask(
    groups: list[Group],
    job: Job,
    scheduler: str | None,
    workers: int,
    report: Callable[[int, int], None],
    finished: Callable[[Group], None],
) -> None:
    """Work on groups with Dask.

    Args:
        groups: The tasks.
        job: What they need beside.
        scheduler: Address of a running scheduler, such as "tcp://10.0.0.1:8786"; None starts
            workers on this machine.
        workers: How many, in that case.
        report: Called with the units and bytes that are read, group by group.
        finished: Called with each group whose files are on disk.

    Raises:
        UserError: Dask is not installed, the scheduler does not answer, or tasks' workers were
            lost again and again.
    """
    try:
        from distributed import Client, KilledWorker, LocalCluster, as_completed
    except ImportError as error:
        raise UserError(
            "Dask is not installed", found=error, remedy="pip install 'skelpipe[dask]'"
        ) from error
    with ExitStack() as stack:
        if scheduler is None:
            here = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                silence_logs=50,
            )
            stack.enter_context(here)
        try:
            client = stack.enter_context(
                Client(scheduler or here, timeout=_PATIENCE)  # type: ignore[no-untyped-call]
            )
        except (OSError, ValueError) as error:
            raise UserError(
                "the Dask scheduler does not answer",
                place=scheduler or "",
                found=error,
                expected="an address such as tcp://10.0.0.1:8786",
                remedy="start it with `dask scheduler`, and workers with `dask worker ADDRESS`",
            ) from error
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            raise UserError(
                "the Dask scheduler has no worker",
                place=scheduler or "",
                remedy="start some with `dask worker ADDRESS`; the same command continues",
            ) from error
        futures = {client.submit(_work, group, job, pure=False): group for group in groups}
        units, size = 0, 0
        try:
            for future in as_completed(futures):  # type: ignore[no-untyped-call]
                future.result()
                group = futures.pop(future)
                finished(group)
                units, size = units + len(group.units), size + group.size
                report(units, size)
        except KilledWorker as error:
            raise UserError(
                "a task was given up: every worker that took it was lost",
                found=error,
                remedy="give the workers more memory; the same command continues",
            ) from error
        finally:
            client.cancel(list(futures))


def _work(group: Group, job: Job) -> None:
    """A task on a worker, which may be another machine's."""
    if version("skelpipe") != job.version:
        raise UserError(
            "a Dask worker has another skelpipe",
            found=version("skelpipe"),
            expected=job.version,
            remedy="install the same version everywhere: it decides the bytes",
        )
    needed = (job.work, *sorted({unit.member.file for unit in group.units}))
    unseen = [path for path in needed if not path.exists()]
    if unseen:
        raise UserError(
            "a Dask worker does not see a file of this run",
            file=unseen[0],
            remedy="keep the raw data and --out where all workers have them under the same path",
        )
    write_group(group, job, lambda read: None)
