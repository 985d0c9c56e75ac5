"""Measuring, and what it gives.

Machines are noisy: rounds alternate between the ways, and a ratio is the median over the rounds of
what two neighbouring measurements give. Rates say what this machine did; the ratios carry over.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Row:
    """One way of doing the work, or one thing about it.

    Attributes:
        what: The way, or the thing.
        value: Of a way its rate, the median over the rounds.
        unit: Of the value.
        ratio: To the baseline, which has 1; None where the row stands outside the comparison.
        megabytes: Of input a second, where that says something.
    """

    what: str
    value: float
    unit: str
    ratio: float | None
    megabytes: float | None = None


def machine(device: torch.device | None = None) -> str:
    """CPU, cores to use, the GPU if one is meant, and versions: what a rate is read with."""
    name = platform.processor() or platform.machine()
    if (cpus := Path("/proc/cpuinfo")).exists():
        models = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device is not None and device.type == "cuda":
        import torch

        name = f"{torch.cuda.get_device_name(device)} beside {name}"
    packages = ("numpy", "pyarrow", "isal", "torch", "webdataset", "skelpipe")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{name}, {cores} cores; Python {platform.python_version()}, {versions}"


def rate(work: Callable[[], int], least: float = 0.0) -> float:
    """Units a second of work that returns how many it did; it is repeated for ``least`` seconds."""
    done, start = 0, time.perf_counter()
    while True:
        done += work()
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return done / elapsed


def interleave(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The rates of each way, measured in turns."""
    rates: dict[str, list[float]] = {what: [] for what in ways}
    for _ in range(rounds):
        for what, measure in ways.items():
            rates[what].append(measure())
    return rates


def ratio(rates: Sequence[float], baseline: Sequence[float]) -> float:
    return median(ours / theirs for ours, theirs in zip(rates, baseline, strict=True))


def rows(rates: Mapping[str, Sequence[float]], unit: str) -> list[Row]:
    """One row a way; the first is the baseline."""
    baseline = next(iter(rates.values()))
    return [Row(what, median(of), unit, ratio(of, baseline)) for what, of in rates.items()]


def with_megabytes(row: Row, size: float) -> Row:
    """The row with what its rate means where an item has ``size`` bytes."""
    return replace(row, megabytes=row.value * size / 1e6)
