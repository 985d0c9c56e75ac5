"""k-NN retrieval tile by tile against the whole matrix of similarities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.costs.roofline import measure_peaks
from skelpipe.protocols.knn import retrieve

from .measure import Row, interleave, rate, rows
from .memory import private_megabytes
from .stream import threads_of

_CLASSES = 120
Problem = tuple[Tensor, Tensor, Tensor]
Way = Callable[[Problem], tuple[Tensor, Tensor]]


def knn(
    samples: int = 8192,
    *,
    features: int = 2048,
    device: torch.device,
    threads: int = 2,
    rounds: int = 3,
) -> list[Row]:
    """Find the nearest row, and the nearest of each class, in both ways.

    Memory is what a process takes beside the features: on a CPU looked at from outside, on a GPU
    told by its allocator. The floor is what the device's measured peak of large matrix products
    allows for the similarities.

    Args:
        samples: Of the gallery; 4 queries for 5 of them, as in NTU RGB+D 120.
        features: D.
        device: Where.
        threads: Of torch, on a CPU.
        rounds: Measurements of each way.
    """
    least = 1.0 if device.type == "cuda" else 0.0  # a GPU does it in milliseconds
    with threads_of(threads):
        problem = _problem(samples, features, device)
        rates = interleave(
            {
                "whole matrix": lambda: rate(lambda: _run(whole, problem), least),
                "tiles": lambda: rate(lambda: _run(tiled, problem), least),
            },
            rounds,
        )
        agreed = (whole(problem)[0] == tiled(problem)[0]).double().mean().item()
        peak = measure_peaks(device, torch.float32).flop_per_s
    floor = peak / (2 * features * samples)
    measured = rows(rates, "queries/s")
    memory = [_working_memory(way, samples, features, device) for way in (whole, tiled)]
    return [
        *measured,
        Row("floor: the products at the peak", floor, "queries/s", floor / measured[0].value),
        Row("working memory, whole matrix", memory[0], "MB", 1.0),
        Row("working memory, tiles", memory[1], "MB", memory[1] / memory[0]),
        Row("queries that both answer alike", 100 * agreed, "%", None),
    ]


def whole(problem: Problem) -> tuple[Tensor, Tensor]:
    """Nearest rows (N, 1) and scores of classes (N, C), by the whole matrix."""
    query_ND, gallery_GD, label_G = problem
    similarity_NG = F.normalize(query_ND, dim=-1) @ F.normalize(gallery_GD, dim=-1).T
    lowest_NC = similarity_NG.new_full((len(query_ND), _CLASSES), -1.0)
    label_NG = label_G.expand(len(query_ND), -1)
    score_NC = lowest_NC.scatter_reduce(1, label_NG, similarity_NG, "amax")
    return similarity_NG.argmax(1, keepdim=True), score_NC


def tiled(problem: Problem) -> tuple[Tensor, Tensor]:
    """The same by tiles."""
    return retrieve(*problem, _CLASSES)


def _problem(samples: int, features: int, device: torch.device) -> Problem:
    noise = torch.Generator().manual_seed(0)
    query_ND = torch.randn(max(4 * samples // 5, 1), features, generator=noise).to(device)
    gallery_GD = torch.randn(samples, features, generator=noise).to(device)
    return query_ND, gallery_GD, (torch.arange(samples) * 7 % _CLASSES).to(device)


def _run(way: Way, problem: Problem) -> int:
    place_Nk, _ = way(problem)
    int(place_Nk[0, 0])  # waits for the device
    return len(place_Nk)


def _working_memory(way: Way, samples: int, features: int, device: torch.device) -> float:
    """Megabytes that a way takes beside the features."""
    if device.type == "cuda":
        problem = _problem(samples, features, device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _run(way, problem)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with_way, _ = private_megabytes(_in_process, way, samples, features)
    without, _ = private_megabytes(_in_process, None, samples, features)
    return with_way - without


def _in_process(way: Way | None, samples: int, features: int) -> None:
    problem = _problem(samples, features, torch.device("cpu"))
    if way is not None:
        _run(way, problem)
