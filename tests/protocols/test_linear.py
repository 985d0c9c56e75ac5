from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import pytest
import torch
from torch import Tensor

from skelpipe.protocols.linear import Classifier, Probe, fit

LABEL = torch.arange(66) % 3


def blobs(seed: int, scale: float = 1.0) -> Tensor:
    noise = torch.randn(66, 8, generator=torch.Generator().manual_seed(seed))
    return scale * (noise + 8 * torch.eye(8)[LABEL])


def probe(
    epochs_of_features: Iterator[list[Tensor]], tests: list[Tensor], **changes: float
) -> list[Probe]:
    settings = {"classes": 3, "epochs": 8, "batch": 16, "lr": 0.1, "momentum": 0.9,
                "weight_decay": 0.0, "seed": 0} | changes  # fmt: skip
    return fit(epochs_of_features, LABEL, tests, LABEL, **settings)  # type: ignore[arg-type]


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


def test_the_last_incomplete_batch_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Classifier.forward

    def note(self: Classifier, x_ND: Tensor) -> Tensor:
        if self.training:
            sizes.append(len(x_ND))
        return plain(self, x_ND)

    monkeypatch.setattr(Classifier, "forward", note)
    probe(repeat([blobs(0)]), [blobs(1)], epochs=2)
    assert sizes == [16] * 8
    sizes.clear()
    probe(repeat([blobs(0)]), [blobs(1)], epochs=2, batch=256)
    assert sizes == [66] * 2


def test_each_epoch_has_its_own_features() -> None:
    given = iter([[blobs(seed)] for seed in range(5)])
    probe(given, [blobs(9)], epochs=4)
    assert len(list(given)) == 1


def test_the_best_epoch_is_the_first_of_equals() -> None:
    reported: list[int] = []
    found = fit(repeat([blobs(0)]), LABEL, [blobs(1)], LABEL, classes=3, epochs=6, batch=16,
                lr=0.5, momentum=0.9, weight_decay=0.0, seed=0, report=reported.append)  # fmt: skip
    assert reported == [1, 2, 3, 4, 5, 6]
    assert found[0].best == 1.0
    assert found[0].best_epoch < 6


def test_the_classifier_normalises_without_affine_part() -> None:
    model = Classifier(8, 3)
    assert {name for name, _ in model.named_parameters()} == {"linear.weight", "linear.bias"}
    assert model.norm.eps == 1e-6
    assert not bool(model.linear.bias.any())
    assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.5)
