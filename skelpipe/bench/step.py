"""One training step: its time and memory, and a roofline of operations and bytes beside it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from skelpipe.config import Recipe
from skelpipe.costs import step_rows
from skelpipe.costs.roofline import DTYPES, Peaks, Work, measure_peaks
from skelpipe.estimate import micro_batch
from skelpipe.manifest import load_dataset, load_topology
from skelpipe.methods import build_method
from skelpipe.optim import build_optimiser
from skelpipe.stream.loader import Loader
from skelpipe.stream.source import Batch
from skelpipe.train import compile_blocks, take_step

BODIES = 1.22
"""Mean bodies of NTU RGB+D 60's samples: 18.3 % mutual actions, and other people detected."""
_FRAMES = (32, 128)
"""Shortest and longest recording: a mean of 80 frames."""
_NOMINAL = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations a second on the makers' data sheets."""


@dataclass(frozen=True)
class Step:
    """What a step took.

    Attributes:
        seconds: Of a step: the median.
        input_seconds: Of those, reading the batch and drawing its views.
        memory: Most bytes allocated on the device; on a CPU, of the process.
        micro_batch: Samples at once.
        peaks: Of the device, measured.
        nominal: Operations a second on its data sheet, where it is a known one and in bf16.
        work: Of the roofline.
        epochs, steps_per_epoch: Of a run on NTU RGB+D 60 cross-subject.
    """

    seconds: float
    input_seconds: float
    memory: int
    micro_batch: int
    peaks: Peaks
    nominal: float | None
    work: list[Work]
    epochs: int
    steps_per_epoch: int

    @property
    def flop(self) -> float:
        """Operations of a step."""
        return sum(row.flop for row in self.work)

    @property
    def least_seconds(self) -> float:
        """What the roofline allows."""
        return sum(row.least_seconds(self.peaks) for row in self.work)

    @property
    def hours(self) -> float:
        """Of the recipe's epochs on NTU RGB+D 60 cross-subject."""
        return self.seconds * self.steps_per_epoch * self.epochs / 3600


class Generated:
    """Samples as long and as many-bodied as NTU RGB+D 60's, of random coordinates, on a device."""

    def __init__(self, count: int, joints: int, device: torch.device) -> None:
        draw = np.random.default_rng(0)
        self.device = device
        self.table = pa.table({"row": np.arange(count), "key": [f"{n}" for n in range(count)]})
        frames = torch.from_numpy(draw.integers(_FRAMES[0], _FRAMES[1] + 1, count))
        bodies = torch.from_numpy(1 + (draw.random(count) < BODIES - 1))
        rows = frames * bodies
        flat_RJC = torch.randn(int(rows.sum()), joints, 3)
        number = torch.arange(count)
        self._all = Batch(
            flat_RJC=flat_RJC.to(device),
            present_R=torch.ones(len(flat_RJC), dtype=torch.bool, device=device),
            start_N=(rows.cumsum(0) - rows).to(device),
            frames_N=frames.to(device),
            bodies_N=bodies.to(device),
            label_N=torch.zeros_like(number).to(device),
            row_N=number.to(device),
            key_N=torch.zeros_like(number).to(device),
            key=torch.zeros((), dtype=torch.int64, device=device),
            valid_N=torch.ones(count, dtype=torch.bool, device=device),
        )

    def __len__(self) -> int:
        return len(self._all)

    def take(self, places: Tensor, key_N: Tensor | None = None) -> Batch:
        """The samples at these places."""
        here = places.to(self.device)
        names = ("start_N", "frames_N", "bodies_N", "label_N", "row_N", "valid_N")
        chosen = {name: getattr(self._all, name)[here] for name in names}
        key_N = torch.zeros_like(here) if key_N is None else key_N.to(self.device)
        return replace(self._all, **chosen, key_N=key_N)


def step(recipe: Recipe, device: torch.device, *, steps: int = 5) -> Step:
    """Take steps of a recipe as `skelpipe pretrain` does, on generated samples.

    Args:
        recipe: With its batch, micro-batch and precision; compiled where it says so.
        device: Where.
        steps: Steps to measure, after two that are not.
    """
    topology, dataset = load_topology("kinect_v2"), load_dataset("ntu60")
    joints = len(topology.joints)
    micro = micro_batch(recipe, bodies=BODIES, joints=joints, device=device)
    peaks = measure_peaks(device, DTYPES[recipe.train.precision])
    loader = Loader(Generated(2 * recipe.train.batch, joints, device), recipe.train.batch, 0)
    method = build_method(recipe, topology, 0).to(device)
    if recipe.train.compile:
        compile_blocks(method)
    optimiser = build_optimiser(method.student, recipe)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def whole(number: int) -> None:
        take_step(method, optimiser, next(loader), micro, number, steps + 2)

    def inputs(number: int) -> None:
        method.views(next(loader))

    for number in range(2):
        whole(number)
        inputs(number)
    seconds = _median(whole, steps, device)
    input_seconds = _median(inputs, steps, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    nominal = [rate for card, rate in _NOMINAL.items() if card in name]
    published = dataset.split("xsub").published
    assert published is not None
    return Step(
        seconds=seconds,
        input_seconds=input_seconds,
        memory=_most_memory(device),
        micro_batch=micro,
        peaks=peaks,
        nominal=nominal[0] if nominal and recipe.train.precision == "bf16" else None,
        work=step_rows(recipe, samples=recipe.train.batch, bodies=BODIES, joints=joints),
        epochs=recipe.train.epochs,
        steps_per_epoch=published.train // recipe.train.batch,
    )


def _median(work: Callable[[int], None], times: int, device: torch.device) -> float:
    taken = []
    for number in range(times):
        _wait(device)
        began = time.perf_counter()
        work(number + 2)
        _wait(device)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _most_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
