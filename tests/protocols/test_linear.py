from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor

from skelpipe.bench.linear import fit_by_autograd
from skelpipe.errors import UserError
from skelpipe.protocols.linear import Classifier, Trained, fit
from skelpipe.protocols.settings import Linear, load_protocol
from skelpipe.random import fold
from skelpipe.stream.order import permutation

LABEL = torch.arange(66) % 3


def blobs(seed: int, scale: float = 1.0) -> Tensor:
    noise = torch.randn(66, 8, generator=torch.Generator().manual_seed(seed))
    return scale * (noise + 8 * torch.eye(8)[LABEL])


def probe(
    epochs_of_features: Iterator[list[Tensor]], tests: list[Tensor], **changes: Any
) -> list[Trained]:
    settings: dict[str, Any] = {"classes": 3, "epochs": 8, "batch": 16, "lr": 0.1, "momentum": 0.9,
                "weight_decay": 0.0, "norm": True, "schedule": "cosine", "drops": (),
                "seed": 0} | changes  # fmt: skip
    return fit(epochs_of_features, LABEL, tests, LABEL, **settings)


def test_a_separable_problem_is_learnt() -> None:
    (found,) = probe(repeat([blobs(0)]), [blobs(1)])
    assert torch.equal(found.predicted_N, LABEL)
    assert found.best == 1.0
    assert 1 <= found.best_epoch <= 8


def test_the_scale_of_features_does_not_matter() -> None:
    (one,) = probe(repeat([blobs(0)]), [blobs(1)], epochs=3)
    (other,) = probe(repeat([blobs(0, 1000.0)]), [blobs(1, 1000.0)], epochs=3)
    assert torch.equal(one.predicted_N, other.predicted_N)


def test_the_result_is_a_function_of_the_seed() -> None:
    noise = [torch.randn(66, 8, generator=torch.Generator().manual_seed(5))]
    first = probe(repeat(noise), noise, epochs=1)[0].predicted_N
    torch.manual_seed(99)
    assert torch.equal(probe(repeat(noise), noise, epochs=1)[0].predicted_N, first)
    assert not torch.equal(probe(repeat(noise), noise, epochs=1, seed=1)[0].predicted_N, first)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    probe(repeat([blobs(0)]), [blobs(1)], epochs=1)
    assert torch.equal(torch.rand(2), wanted)


def test_probes_do_not_influence_each_other() -> None:
    both = probe(repeat([blobs(0), blobs(2)[:, :4]]), [blobs(1), blobs(3)[:, :4]], epochs=2)
    (alone,) = probe(repeat([blobs(0)]), [blobs(1)], epochs=2)
    assert torch.equal(both[0].predicted_N, alone.predicted_N)


@pytest.mark.parametrize("batch", [16, 20, 256])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("schedule", ["cosine", "steps"])
@pytest.mark.parametrize("norm", [True, False])
def test_it_is_what_autograd_and_torchs_sgd_give(
    norm: bool, schedule: str, weight_decay: float, batch: int
) -> None:
    far = 30 if norm else 0  # from 0, so that badly rounded statistics would show
    features = [blobs(0, 0.2) + far, blobs(2, 0.2)[:, :5]]
    tests = [blobs(1, 0.2) + far, blobs(3, 0.2)[:, :5]]
    settings: dict[str, Any] = {
        "classes": 3, "epochs": 5, "batch": batch, "lr": 0.05, "momentum": 0.9, "norm": norm,
        "weight_decay": weight_decay, "schedule": schedule, "seed": 3,
        "drops": (2, 4) if schedule == "steps" else (),
    }  # fmt: skip
    found = fit(repeat(features), LABEL, tests, LABEL, **settings)
    for one, x, test in zip(found, features, tests, strict=True):
        wanted = fit_by_autograd(x, LABEL, test, **settings)
        torch.testing.assert_close(one.score_NC, wanted, rtol=1e-4, atol=1e-4)


def test_without_momentum_it_is_plain_descent() -> None:
    (found,) = probe(repeat([blobs(0)]), [blobs(1)], momentum=0.0)
    settings: dict[str, Any] = {"classes": 3, "epochs": 8, "batch": 16, "lr": 0.1, "momentum": 0.0,
                "weight_decay": 0.0, "norm": True, "schedule": "cosine", "drops": (),
                "seed": 0}  # fmt: skip
    wanted = fit_by_autograd(blobs(0), LABEL, blobs(1), **settings)
    torch.testing.assert_close(found.score_NC, wanted, rtol=1e-4, atol=1e-4)


def test_the_last_incomplete_batch_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[int]] = []
    plain = Classifier.step

    def note(self: Classifier, x: Tensor, label: Tensor, rows_B: Tensor, **rates: float) -> None:
        batches.append(rows_B.tolist())
        plain(self, x, label, rows_B, **rates)

    monkeypatch.setattr(Classifier, "step", note)
    probe(repeat([blobs(0)]), [blobs(1)], epochs=2)
    assert [len(rows) for rows in batches] == [16] * 8
    assert len({row for rows in batches[:4] for row in rows}) == 64
    batches.clear()
    probe(repeat([blobs(0)]), [blobs(1)], epochs=2, batch=256)
    assert [sorted(rows) for rows in batches] == [list(range(66))] * 2


def test_each_epoch_has_its_own_features() -> None:
    given = iter([[blobs(seed)] for seed in range(5)])
    probe(given, [blobs(9)], epochs=4)
    assert len(list(given)) == 1


def test_the_best_epoch_is_the_first_of_equals() -> None:
    reported: list[int] = []
    found = fit(repeat([blobs(0)]), LABEL, [blobs(1)], LABEL, classes=3, epochs=6, batch=16,
                lr=0.5, momentum=0.9, weight_decay=0.0, norm=True, schedule="cosine", drops=(),
                seed=0, report=reported.append)  # fmt: skip
    assert reported == [1, 2, 3, 4, 5, 6]
    assert found[0].best == 1.0
    assert found[0].best_epoch < 6


def test_weights_start_small_and_biases_at_zero() -> None:
    model = Classifier(blobs(0), 3, batch=4, norm=True, seed=0)
    assert model.weight_CD.shape == (3, 8)
    assert not bool(model.bias_C.any())
    assert model.weight_CD.std().item() == pytest.approx(0.01, rel=0.5)
    other = Classifier(blobs(0), 3, batch=4, norm=True, seed=1)
    assert not torch.equal(model.weight_CD, other.weight_CD)


def test_pcm3s_probe_has_the_published_numbers() -> None:
    protocol = load_protocol("linear-pcm3")
    assert isinstance(protocol, Linear)
    assert (protocol.norm, protocol.epochs, protocol.batch) == (False, 100, 1024)
    assert (protocol.schedule, protocol.lr, protocol.drops) == ("steps", 0.1, (20, 50, 80))
    assert (protocol.momentum, protocol.weight_decay) == (0.9, 0)
    assert (protocol.centre, protocol.train_view) == (0.95, "centre")
    pku = load_protocol("linear-pcm3", ["train_view=random"])
    assert isinstance(pku, Linear)
    assert (pku.random.ratio, pku.random.shortest, pku.random.rotation) == ((0.5, 1.0), 64, 0)


def test_cmds_probe_has_the_published_numbers() -> None:
    protocol = load_protocol("linear-cmd")
    assert isinstance(protocol, Linear)
    assert (protocol.norm, protocol.epochs, protocol.batch) == (False, 80, 64)
    assert (protocol.schedule, protocol.lr, protocol.drops) == ("steps", 0.1, (50, 70))
    assert (protocol.momentum, protocol.weight_decay) == (0.9, 0)
    assert (protocol.centre, protocol.train_view) == (0.95, "random")
    assert (protocol.random.ratio, protocol.random.rotation) == ((0.5, 1.0), 0)


def test_pcm3s_probe_is_plain_sgd_with_drops() -> None:
    """Softmax regression by hand, with momentum, in batches of 20 of 66, dropped at 2 and 5."""
    features, test = blobs(0).double(), blobs(1).double()
    steps = {"norm": False, "schedule": "steps", "drops": (2, 5), "epochs": 7, "batch": 20}
    (found,) = probe(repeat([features]), [test], **steps)
    start = Classifier(test, 3, batch=20, norm=False, seed=0)
    weight, bias = start.weight_CD.clone(), start.bias_C.clone()
    assert not bool(bias.any())
    moved = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(7):
        rate = 0.1 if epoch < 2 else 0.01 if epoch < 5 else 0.001
        order = permutation(66, int(fold(0, 1)), epoch)
        for first in (0, 20, 40):
            rows = order[first : first + 20]
            error = torch.softmax(features[rows] @ weight.T + bias, 1)
            error = (error - torch.eye(3, dtype=torch.float64)[LABEL[rows]]) / 20
            gradients = [error.T @ features[rows], error.sum(0)]
            moved = [0.9 * old + new for old, new in zip(moved, gradients, strict=True)]
            weight -= rate * moved[0]
            bias -= rate * moved[1]
    wanted = test @ weight.T + bias
    torch.testing.assert_close(found.score_NC, wanted)
    assert torch.equal(found.predicted_N, wanted.argmax(1))


def test_without_norm_the_scale_of_features_matters() -> None:
    plain = {"norm": False, "schedule": "steps", "drops": (2,), "epochs": 3}
    (one,) = probe(repeat([blobs(0)]), [blobs(1)], **plain)
    (other,) = probe(repeat([blobs(0, 1e-4)]), [blobs(1, 1e-4)], **plain)
    assert not torch.allclose(one.score_NC, other.score_NC, rtol=0.1)


@pytest.mark.parametrize(
    "change", ["drops=[20, 100]", "epochs=50", "schedule=cosine", "drops=[0]", "schedule=step"]
)
def test_a_schedule_that_does_not_fit_is_refused(change: str) -> None:
    with pytest.raises(UserError, match=r"drops|schedule"):
        load_protocol("linear-pcm3", [change])
