"""Threads that work ahead of a consumer and deliver in order."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

State = TypeVar("State")
Result = TypeVar("Result")


class Ahead(Generic[State, Result]):
    """Results of ``work`` for one state after the other, computed before they are asked for.

    Twice as many as there are threads are under way or waiting. Threads end with `close`, or when
    nothing refers to this object any more.

    Args:
        work: Made in a thread; what it raises is raised by the `get` of that state.
        after: The state that follows a state.
        workers: Threads.
    """

    def __init__(
        self, work: Callable[[State], Result], after: Callable[[State], State], workers: int
    ) -> None:
        self._work, self._after = work, after
        self._depth = 2 * workers
        self._waiting: deque[tuple[State, Future[Result]]] = deque()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="skelpipe-ahead")
        weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)

    def get(self, state: State) -> Result:
        """The result for a state. One that was not expected drops what was made ahead."""
        if self._waiting and self._waiting[0][0] != state:
            self._drop()
        coming = self._after(self._waiting[-1][0]) if self._waiting else state
        while len(self._waiting) < self._depth:
            self._waiting.append((coming, self._threads.submit(self._work, coming)))
            coming = self._after(coming)
        return self._waiting.popleft()[1].result()

    def close(self) -> None:
        """End the threads, once they have finished what they are at."""
        self._drop()
        self._threads.shutdown(cancel_futures=True)

    def _drop(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
