"""Linear evaluation as MAMP does it: a linear classifier on frozen, batch-normalised features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe.optim import cosine
from skelpipe.random import fold
from skelpipe.stream.order import permutation


@dataclass(frozen=True)
class Probe:
    """A trained classifier's answers.

    Attributes:
        predicted_N: Class of each test sample after the last epoch.
        best: Highest test accuracy of any epoch, which peers report; never headlined.
        best_epoch: That epoch, from 1.
    """

    predicted_N: Tensor
    best: float
    best_epoch: int


class Classifier(nn.Module):
    """Batch norm without affine part (eps 1e-6), then one linear layer (trunc-normal 0.01)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
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
    seed: int,
    report: Callable[[int], None] = lambda epoch: None,
) -> list[Probe]:
    """Train one classifier for each set of features, by SGD with a cosine to 0 per iteration.

    The last incomplete batch of an epoch is dropped, as MAMP does, unless it is the only one.

    Args:
        epochs_of_features: Yields each epoch's training features: one (N, D) for each set.
        label_N: Training classes.
        test_features: One (M, D) for each set.
        test_label_N: Test classes.
        classes: Outputs.
        epochs, batch, lr, momentum, weight_decay: Of the protocol.
        seed: Of initial weights and order.
        report: Called with each finished epoch, from 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = [Classifier(test.shape[1], classes).to(test.device) for test in test_features]
    optimisers = [
        torch.optim.SGD(m.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        for m in models
    ]
    samples = len(label_N)
    batch = min(batch, samples)
    steps = samples // batch
    best = [(0.0, 0)] * len(models)
    predicted: list[Tensor] = []
    for epoch in range(epochs):
        features = next(epochs_of_features)
        order = permutation(samples, int(fold(seed, 1)), epoch).to(label_N.device)
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            rate = cosine(lr, 0.0, (epoch * steps + step) / (epochs * steps))
            for model, optimiser, x_ND in zip(models, optimisers, features, strict=True):
                optimiser.param_groups[0]["lr"] = rate
                loss = F.cross_entropy(model(x_ND[rows]), label_N[rows])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
        predicted = []
        for number, (model, test) in enumerate(zip(models, test_features, strict=True)):
            model.eval()
            with torch.no_grad():
                answer = model(test).argmax(1)
            model.train()
            predicted.append(answer)
            accuracy = (answer == test_label_N).double().mean().item()
            best[number] = max(best[number], (accuracy, -(epoch + 1)))
        report(epoch + 1)
    return [
        Probe(answer, accuracy, -epoch)
        for answer, (accuracy, epoch) in zip(predicted, best, strict=True)
    ]
