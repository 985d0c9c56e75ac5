"""The linear probe on cached features: the closed-form gradient against autograd."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe.costs.roofline import measure_peaks
from skelpipe.optim import cosine
from skelpipe.protocols.linear import fit
from skelpipe.protocols.settings import Linear, Schedule, load_protocol
from skelpipe.random import fold
from skelpipe.stream.order import permutation

from .measure import Row, interleave, rate, rows
from .stream import threads_of

_QUESTIONS = 4  # training samples for one test sample, about as in NTU RGB+D 120


def linear(
    samples: int = 6300,
    *,
    features: int = 2048,
    classes: int = 120,
    epochs: int = 1,
    name: str = "linear",
    device: torch.device,
    threads: int = 2,
    rounds: int = 3,
) -> list[Row]:
    """Train a probe on cached features, in both ways.

    The plain way is a module, `torch.optim.SGD` and autograd. Both look at the test part after each
    epoch. The floor is what the device's measured peak of large matrix products allows for the two
    products of training; the time of 100 epochs is that of our way.

    Args:
        samples: Of training.
        features, classes: D and C.
        epochs: Measured at once.
        name: The protocol: its batch, schedule and norm.
        device: Where.
        threads: Of torch, on a CPU.
        rounds: Measurements of each way.
    """
    protocol = load_protocol(name)
    assert isinstance(protocol, Linear)
    noise = torch.Generator().manual_seed(0)
    tests = max(samples // _QUESTIONS, 1)
    x_ND = torch.randn(samples, features, generator=noise).to(device)
    label_N = (torch.arange(samples) % classes).to(device)
    test_MD = torch.randn(tests, features, generator=noise).to(device)
    test_label_M = (torch.arange(tests) % classes).to(device)
    settings: dict[str, Any] = {
        "classes": classes,
        "epochs": epochs,
        "seed": 0,
        **protocol.model_dump(include={"batch", "lr", "momentum", "weight_decay", "norm"}),
        "schedule": "cosine",  # steps of few epochs would have none to drop at
        "drops": (),
    }

    def autograd() -> int:
        scores = fit_by_autograd(x_ND, label_N, test_MD, **settings)
        float(scores[0, 0])  # waits for the device
        return samples * epochs

    def ours() -> int:
        (found,) = fit(repeat([x_ND]), label_N, [test_MD], test_label_M, **settings)
        float(found.score_NC[0, 0])
        return samples * epochs

    with threads_of(threads):
        rates = interleave(
            {"autograd": lambda: rate(autograd), "closed form": lambda: rate(ours)}, rounds
        )
        peak = measure_peaks(device, torch.float32).flop_per_s
    floor = peak / (4 * features * classes)
    measured = rows(rates, "samples/s")
    return [
        *measured,
        Row("floor: the products at the peak", floor, "samples/s", floor / measured[0].value),
        Row(f"100 epochs of {samples:,} samples", 100 * samples / measured[1].value, "s", None),
        Row("their floor", 100 * samples / floor, "s", None),
    ]


def fit_by_autograd(
    x_ND: Tensor,
    label_N: Tensor,
    test_MD: Tensor,
    *,
    classes: int,
    epochs: int,
    batch: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    norm: bool,
    schedule: Schedule,
    drops: Sequence[int],
    seed: int,
) -> Tensor:
    """The probe as a module that autograd and torch's own SGD train; arguments as `linear.fit`'s.

    Returns:
        Logits of the test samples after the last epoch, shape (M, classes).
    """
    samples, dim = x_ND.shape
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(dim, classes)
        torch.manual_seed(seed)
        linear.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(classes, dim), std=0.01))
    nn.init.zeros_(linear.bias)
    first = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if norm else nn.Identity()
    model = nn.Sequential(first, linear).to(x_ND.device)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    batch = min(batch, samples)
    steps = samples // batch
    scores = test_MD.new_empty(0)
    for epoch in range(epochs):
        order = permutation(samples, int(fold(seed, 1)), epoch).to(label_N.device)
        for step in range(steps):
            some = order[step * batch : (step + 1) * batch]
            if schedule == "cosine":
                now = cosine(lr, 0.0, (epoch * steps + step) / (epochs * steps))
            else:
                now = lr * 0.1 ** sum(epoch >= drop for drop in drops)
            optimiser.param_groups[0]["lr"] = now
            loss = F.cross_entropy(model(x_ND[some]), label_N[some])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            scores = model(test_MD)
        model.train()
    return scores
