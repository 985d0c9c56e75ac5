"""Linear evaluation: a linear classifier on frozen features, as MAMP, PCM3 or CMD trains it.

MAMP normalises the features by a batch norm and lowers the rate along a cosine; PCM3 and CMD have
no norm (P18) and lower the rate in steps. All else is the same. On PKU-MMD MAMP takes lr 0.01 and
batch 32 (`--set lr=0.01 --set batch=32`), PCM3 a random training view
(`--set train_view=random`).

Letters: N training and M test samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.init import trunc_normal_

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


_EPS = 1e-6
"""Of MAMP's batch norm."""


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


class Classifier:
    """A linear layer on features, trained by SGD along the gradient of softmax regression.

    Features are constants, so the gradient has a closed form: with the softmax's outputs p of a
    batch of n and their one-hot classes y, (p - y).T @ x / n, no graph and nothing but two matrix
    products a step. A batch norm without affine part (eps 1e-6) may stand before the layer: as
    `nn.BatchNorm1d` it takes a batch's own statistics in training, and in evaluation running ones
    (momentum 0.1). SGD is `torch.optim.SGD`'s: weight decay is added to the gradient, momentum
    gathers both, the bias is treated as the weights are.

    Weights start as N(0, 0.01), biases as 0. MAMP's truncated normal cuts at 200 deviations, so it
    is PCM3's normal too.

    Attributes:
        weight_CD, bias_C: Of the layer.
        mean_D, variance_D: Running statistics of the features.
    """

    def __init__(self, like_MD: Tensor, classes: int, *, batch: int, norm: bool, seed: int) -> None:
        dim = like_MD.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weight_CD = trunc_normal_(torch.empty(classes, dim), std=0.01)
        self.norm = norm
        self.weight_CD = weight_CD.to(like_MD)
        self.bias_C = like_MD.new_zeros(classes)
        self.mean_D, self.variance_D = like_MD.new_zeros(dim), like_MD.new_ones(dim)
        self._moved_CD, self._moved_C = self.weight_CD * 0, self.bias_C * 0
        self._batch_BD, self._square_BD = like_MD.new_empty(2, batch, dim)  # taken once

    def step(
        self,
        features_ND: Tensor,
        label_N: Tensor,
        rows_B: Tensor,
        *,
        rate: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        """One step of SGD on the mean cross-entropy of a batch, whose rows are named."""
        x_BD = torch.index_select(features_ND, 0, rows_B, out=self._batch_BD)
        if self.norm:
            self._normalise(x_BD)
        error_BC = torch.addmm(self.bias_C, x_BD, self.weight_CD.T).softmax(1)
        error_BC.scatter_add_(1, label_N[rows_B, None], error_BC.new_full((len(x_BD), 1), -1.0))
        error_BC /= len(x_BD)
        self._moved_CD.addmm_(error_BC.T, x_BD, beta=momentum)
        self._moved_C.mul_(momentum).add_(error_BC.sum(0))
        for parameter, moved in ((self.weight_CD, self._moved_CD), (self.bias_C, self._moved_C)):
            if weight_decay:
                moved.add_(parameter, alpha=weight_decay)
            parameter.add_(moved, alpha=-rate)

    def scores(self, x_MD: Tensor) -> Tensor:
        """Logits, shape (M, C)."""
        if not self.norm:
            return torch.addmm(self.bias_C, x_MD, self.weight_CD.T)
        scale_D = (self.variance_D + _EPS).rsqrt()
        score_MC = x_MD.new_empty(len(x_MD), len(self.bias_C))
        for part, score in zip(
            *(x.split(len(self._batch_BD)) for x in (x_MD, score_MC)), strict=True
        ):
            x = torch.sub(part, self.mean_D, out=self._batch_BD[: len(part)]).mul_(scale_D)
            torch.addmm(self.bias_C, x, self.weight_CD.T, out=score)
        return score_MC

    def _normalise(self, x_BD: Tensor) -> None:
        """Standardise a batch in place, and let the running statistics follow it."""
        count = len(x_BD)
        mean_D = x_BD.mean(0)
        x_BD.sub_(mean_D)
        variance_D = torch.mul(x_BD, x_BD, out=self._square_BD).mean(0)
        x_BD.mul_((variance_D + _EPS).rsqrt())
        self.mean_D.lerp_(mean_D, 0.1)
        self.variance_D.lerp_(variance_D * (count / max(count - 1, 1)), 0.1)


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
        seed: Of initial weights, which all sets start from alike, and of the order.
        report: Called with each finished epoch, from 1.
    """
    samples = len(label_N)
    batch = min(batch, samples)
    steps = samples // batch
    models = [
        Classifier(test, classes, batch=batch, norm=norm, seed=seed) for test in test_features
    ]
    best = [(-1.0, 0)] * len(models)
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
            for model, x_ND in zip(models, features, strict=True):
                model.step(
                    x_ND, label_N, rows, rate=rate, momentum=momentum, weight_decay=weight_decay
                )
        scores = [model.scores(test) for model, test in zip(models, test_features, strict=True)]
        for number, score_NC in enumerate(scores):
            accuracy = (score_NC.argmax(1) == test_label_N).double().mean().item()
            best[number] = max(best[number], (accuracy, -(epoch + 1)))
        report(epoch + 1)
    return [
        Trained(score_NC, score_NC.argmax(1), accuracy, -epoch)
        for score_NC, (accuracy, epoch) in zip(scores, best, strict=True)
    ]
