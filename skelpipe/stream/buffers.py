"""Memory for batches, used again once a batch is dead: fresh pages cost more than copying."""

from __future__ import annotations

import sys
from threading import Lock

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_KEPT = 8  # buffers; what is asked for beside them is plain memory
_ROOM = 1.25  # ragged batches differ in size


class Buffers:
    """Hands out float32 arrays; the memory of one is free when nothing refers to it any more.

    Every view of an array, and every tensor over it with all of its views, holds a reference to the
    buffer below. Their number is what tells.
    """

    def __init__(self) -> None:
        self._buffers: list[Floats] = []
        self._lock = Lock()

    def empty(self, *shape: int) -> Floats:
        """An array of this shape with anything in it."""
        size = int(np.prod(shape))
        with self._lock:
            free = [n for n in range(len(self._buffers)) if _references(self._buffers, n) == _FREE]
            for number in free:
                if self._buffers[number].size >= size:
                    return self._buffers[number][:size].reshape(shape)
            buffer = np.empty(int(size * _ROOM), dtype=np.float32)
            if free:
                self._buffers[free[0]] = buffer
            elif len(self._buffers) < _KEPT:
                self._buffers.append(buffer)
            return buffer[:size].reshape(shape)


def _references(buffers: list[Floats], number: int) -> int:
    return sys.getrefcount(buffers[number])


_FREE = _references([np.empty(1, dtype=np.float32)], 0)
