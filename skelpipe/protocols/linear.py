"""Linear evaluation: a linear classifier on frozen features, as MAMP or as PCM3 trains it.

MAMP normalises the features by a batch norm and lowers the rate along a cosine; PCM3 has no norm
(P18) and lowers the rate in steps. All else is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe.optim import cosine
from skelpipe.protocols.features import Encode
from skelpipe.protocols.question import Answer, Question, labels
from skelpipe.protocols.settings import Probe, Schedule
from skelpipe.random import fold
from skelpipe.stream.order import permutation


def answer(protocol: Probe, question: Question) -> list[Answer]:
    """Linear evaluation of every network of a question."""
    networks = question.networks()
    test = question.centre_features(question.test, networks, protocol.centre)
    probes = fit(
        _epochs(protocol, question, networks),
        labels(question.train),
        test,
        labels(question.test),
        classes=question.classes,
        epochs=protocol.epochs,
        batch=protocol.batch,
        lr=protocol.lr,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        norm=protocol.norm,
        schedule=protocol.schedule,
        drops=protocol.drops,
        seed=question.seed,
        report=lambda epoch: question.report(epoch, protocol.epochs),
    )
    return [
        Answer(name, [probe.score_NC], [probe.predicted_N], peer_convention(probe))
        for name, probe in zip(networks, probes, strict=True)
    ]


def peer_convention(probe: Trained) -> dict[str, Any]:
    """What a row says of the best epoch on the test part, which peers report."""
    best = {"accuracy": 100 * probe.best, "epoch": probe.best_epoch}
    return {"best_epoch_peer_convention": best}


def _epochs(
    protocol: Probe, question: Question, networks: dict[str, Encode]
) -> Iterator[list[Tensor]]:
    """Training features of each epoch: of fresh random views, or of one fixed crop, once."""
    source = question.train
    row_N = torch.as_tensor(source.table["row"].to_numpy().copy())
    if protocol.train_view == "centre":
        features = question.centre_features(source, networks, protocol.centre)
        while True:
            yield features
    for epoch in range(protocol.epochs):
        key_N = fold(question.seed, epoch, row_N)
        yield question.random_features(source, networks, protocol.random, key_N)


@dataclass(frozen=True)
class Trained:
    """A trained classifier's answers.

    Attributes:
        score_NC: Logits of each test sample after the last epoch.
        predicted_N: The class of the largest one.
        best: Highest test accuracy of any epoch, which peers report; never headlined.
        best_epoch: That epoch, from 1.
    """

    score_NC: Tensor
    predicted_N: Tensor
    best: float
    best_epoch: int


class Classifier(nn.Module):
    """Batch norm without affine part (eps 1e-6) if asked for, then one linear layer.

    Weights start as N(0, 0.01), biases as 0. MAMP's truncated normal cuts at 200 deviations, so it
    is PCM3's normal too.
    """

    def __init__(self, dim: int, classes: int, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if norm else nn.Identity()
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        out: Tensor = self.linear(self.norm(x_ND))
        return out


def fit(
    epochs_of_features: Iterator[list[Tensor]],
    label_N: Tensor,
    test_features: list[Tensor],
    test_label_N: Tensor,
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
    report: Callable[[int], None] = lambda epoch: None,
) -> list[Trained]:
    """Train one classifier for each set of features, by SGD.

    The last incomplete batch of an epoch is dropped, as MAMP does, unless it is the only one. What
    PCM3 does with it is not known: our reading is the same.

    Args:
        epochs_of_features: Yields each epoch's training features: one (N, D) for each set.
        label_N: Training classes.
        test_features: One (M, D) for each set.
        test_label_N: Test classes.
        classes: Outputs.
        epochs, batch, lr, momentum, weight_decay: Of the protocol.
        norm: See `Classifier`.
        schedule: Of the rate: "cosine" goes to 0 with every step, "steps" is a tenth from the start
            of each of ``drops`` on.
        drops: Epochs, counted from 0; of "steps" alone.
        seed: Of initial weights and order.
        report: Called with each finished epoch, from 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = [
            Classifier(test.shape[1], classes, norm=norm).to(test.device) for test in test_features
        ]
    optimisers = [
        torch.optim.SGD(m.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        for m in models
    ]
    samples = len(label_N)
    batch = min(batch, samples)
    steps = samples // batch
    best = [(0.0, 0)] * len(models)
    scores: list[Tensor] = []
    for epoch in range(epochs):
        features = next(epochs_of_features)
        order = permutation(samples, int(fold(seed, 1)), epoch).to(label_N.device)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            if schedule == "cosine":
                rate = cosine(lr, 0.0, (epoch * steps + step) / (epochs * steps))
            else:
                rate = lr * 0.1 ** sum(epoch >= drop for drop in drops)
            for model, optimiser, x_ND in zip(models, optimisers, features, strict=True):
                optimiser.param_groups[0]["lr"] = rate
                loss = F.cross_entropy(model(x_ND[rows]), label_N[rows])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        scores = []
        for number, (model, test) in enumerate(zip(models, test_features, strict=True)):
            model.eval()
            with torch.no_grad():
                scores.append(model(test))
            model.train()
            accuracy = (scores[-1].argmax(1) == test_label_N).double().mean().item()
            best[number] = max(best[number], (accuracy, -(epoch + 1)))
        report(epoch + 1)
    return [
        Trained(score_NC, score_NC.argmax(1), accuracy, -epoch)
        for score_NC, (accuracy, epoch) in zip(scores, best, strict=True)
    ]
