"""Calls in a process of their own, with limits: what a damaged file does to a library stays there.

HDF5, Parquet, Arrow and pickles are read by code that was not written for hostile files. A crash,
an endless loop or a huge allocation ends the child, and the parent goes on with an error. This
guards against damage; it is no sandbox.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from skelpipe.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

MEMORY = 2 << 30  # bytes a call may take, beyond what the child has loaded
SECONDS = 60.0
_GRACE = 5.0  # seconds on the clock beyond those of computing, of which an endless loop dies first
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class DiedError(Exception):
    """The child ended, or was ended, before it answered; the message says why."""


class Child:
    """A process that makes calls, one after the other. It is started by the first, and anew by the
    first after its death; it ends with `close`, or with its parent.

    Args:
        memory: Bytes that a call may take.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection[Any, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, seconds: float, function: Callable[P, R], *args: P.args, **more: P.kwargs) -> R:
        """The function's result, or the exception that it raises.

        Args:
            seconds: How long it may take, both on the clock and of computing.
            function: One that can be imported by its name.
            args, more: What it is called with.

        Raises:
            DiedError: the child came to its end, by the call or by the limits.
        """
        link = self._link or self._start()
        try:
            link.send((seconds, function, args, more))
            if not link.poll(seconds + _GRACE):
                raise DiedError(f"it took longer than {seconds:g} s")
            answer, error = link.recv()
        except (EOFError, OSError) as broken:
            status = self.close()
            raise DiedError(_told(status)) from broken
        except BaseException:
            self.close()
            raise
        if error is not None:
            raise error
        result: R = answer
        return result

    def close(self) -> int:
        """End the child; returns its status as `subprocess.Popen.returncode`."""
        if self._process is None or self._link is None:
            return 0
        self._link.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # one that died has a status of its own
        self._process.kill()
        status = self._process.wait()
        self._process = self._link = None
        return status

    def _start(self) -> Connection[Any, Any]:
        ours, theirs = Pipe()
        environment = dict.fromkeys(_ONE_THREAD, "1") | os.environ
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others reserve what they never use
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), str(self._memory)],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        self._link = ours
        return ours


def run_limited(
    function: Callable[..., R],
    *args: Any,
    file: Path | str = "",
    seconds: float = SECONDS,
    memory: int = MEMORY,
) -> R:
    """A function's result, computed in a child that is started for it.

    Args:
        function: One that can be imported by its name.
        args: What it is called with.
        file: What is being read, for the error.
        seconds: How long it may take.
        memory: Bytes it may take.

    Raises:
        UserError: the child died. Whatever the function itself raises is raised here.
    """
    with Child(memory) as child:
        try:
            return child.call(seconds, function, *args)
        except DiedError as error:
            raise UserError(
                "reading this file ended the process that read it",
                file=file,
                found=error,
                expected=f"at most {seconds:g} s and {memory >> 20:,} MB, and no crash",
                remedy="the file is damaged or made to do harm: fetch it again",
            ) from error


def _told(status: int) -> str:
    if status == -9:
        return "it was killed, most likely for its memory"
    if status == -getattr(os, "SIGXCPU", 24):
        return "it computed for too long"
    return f"it died of signal {-status}" if status < 0 else f"it ended with status {status}"


def _serve(link: Connection[Any, Any], memory: int) -> None:
    """Answer calls until the parent is gone."""
    while True:
        try:
            seconds, function, args, more = link.recv()
        except EOFError:
            return
        _limit(seconds, memory)
        answer: tuple[Any, BaseException | None]
        try:
            answer = function(*args, **more), None
        except BaseException as error:
            answer = None, error.with_traceback(None)
        _lift()
        link.send(answer)


def _limit(seconds: float, memory: int) -> None:
    """Bound what the next call may take, beyond what was taken before it."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    _bound(resource.RLIMIT_CPU, int(spent.ru_utime + spent.ru_stime + seconds) + 1)
    with suppress(OSError):  # Linux alone tells; elsewhere the limit is of the whole process
        memory += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _bound(resource.RLIMIT_AS, memory)


def _lift() -> None:
    _bound(resource.RLIMIT_AS, resource.RLIM_INFINITY)


def _bound(kind: int, value: int) -> None:
    with suppress(ValueError, OSError):  # a system that does not know the limit
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
