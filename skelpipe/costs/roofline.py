"""How long a device takes at least for what must be computed and moved: the roofline.

Operations are those of matrix products, attention's among them: 2 a multiplication with its
addition. Bytes are a model of the least traffic with memory, stated by each method's `step_rows`. A
device does a piece of work no faster than its peak rates allow: the larger of operations / peak and
bytes / bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}
"""Type of matrix products in each precision of a run."""
STORED = {"float32": 4, "bf16": 4, "float64": 8}
"""Bytes of a weight, a gradient or a moment in each precision of a run."""


@dataclass(frozen=True)
class Peaks:
    """What a device reaches: operations of matrix products, and bytes read or written, a second."""

    flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Work:
    """A piece of a step: its operations (2 a multiply-add), and the bytes it moves at least."""

    what: str
    flop: float
    bytes: float

    def least_seconds(self, peaks: Peaks) -> float:
        """No device with these peaks is faster."""
        return max(self.flop / peaks.flop_per_s, self.bytes / peaks.bytes_per_s)


@cache
def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The best rates of matrix products and of a large copy, in about a second; measured once.

    Products grow until one takes 20 ms. Their factors are no constants, which some devices
    multiply with less power and so faster; the copy is of more than caches hold.
    """
    side, flop_per_s, seconds = 128, 0.0, 0.0
    while seconds < 0.02 and side < 8192:
        side *= 2
        factor = torch.arange(side * side, device=device, dtype=torch.float32).sin().to(dtype)
        factor = factor.view(side, side)
        product = torch.empty_like(factor)
        seconds = _best(partial(torch.mm, factor, factor, out=product), product)
        flop_per_s = max(flop_per_s, 2 * side**3 / seconds)
    source = torch.ones(2**27 if device.type == "cuda" else 2**25, device=device)
    copy = torch.empty_like(source)
    seconds = _best(partial(copy.copy_, source), copy)
    return Peaks(flop_per_s, 2 * source.nbytes / seconds)


def _best(work: Callable[[], Tensor], result: Tensor) -> float:
    """Least seconds of a call; several are queued before a device is waited for."""
    calls = 1 if result.device.type == "cpu" else 8
    work()
    result.view(-1)[0].item()  # waits for the device
    best, end = float("inf"), time.perf_counter() + 0.1
    while (began := time.perf_counter()) < end:
        for _ in range(calls):
            work()
        result.view(-1)[0].item()
        best = min(best, (time.perf_counter() - began) / calls)
    return best
