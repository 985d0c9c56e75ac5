from __future__ import annotations

import pytest
import torch
from builders import recording
from torch import Tensor

from skelpipe.config.pcm3 import Augment
from skelpipe.random import fold, uniform
from skelpipe.views.corrupt import corruption_matrices, shear_matrices, shear_or_corrupt

PAPER = Augment()
OPEN = (True, True, False)
MANY = fold(5, torch.arange(6000))


def clips(samples: int = 12) -> Tensor:
    """Three views of each of a few samples, two bodies, shape (N, V, M, T, J, 3), float64."""
    poses = [recording(seed, 18, 2).reshape(2, 3, 6, 25, 3) for seed in range(samples)]
    return torch.stack([torch.from_numpy(x).transpose(0, 1) for x in poses]).double()


def literal_view(x_MTJC: Tensor, key: Tensor, augment: Augment, corruptible: bool) -> Tensor:
    """Facts of the released code, one joint of one frame of one body at a time."""
    corrupt = corruptible and float(uniform(key, "corruption", 1)) < augment.corruption
    chosen: set[int] = set()
    if corrupt:
        draws = uniform(key, "corrupted joints", 25).tolist()
        count = round(augment.corrupted * 25)
        chosen = set(sorted(range(25), key=draws.__getitem__)[:count])
        entries = [2 * draw - 1 for draw in uniform(key, "corrupting matrix", 9).tolist()]
        if float(uniform(key, "zeroed", 1)) < augment.zeroed:
            entries = [0.0] * 9
    else:
        chosen = set(range(25))
        entries = [augment.shear * (2 * draw - 1) for draw in uniform(key, "shear", 9).tolist()]
        entries[0] = entries[4] = entries[8] = 1.0
    out = x_MTJC.clone()
    for body in range(x_MTJC.shape[0]):
        for frame in range(x_MTJC.shape[1]):
            for joint in chosen:
                point = x_MTJC[body, frame, joint].tolist()
                for row in range(3):
                    out[body, frame, joint, row] = sum(
                        entries[3 * row + column] * point[column] for column in range(3)
                    )
    return out


@pytest.mark.parametrize(
    "augment", [PAPER, Augment(corruption=0.3, corrupted=0.2, zeroed=0.9, shear=0.5)]
)
def test_views_equal_a_literal_loop(augment: Augment) -> None:
    x, key = clips(), fold(torch.arange(12)[:, None], torch.arange(3))
    found = shear_or_corrupt(x, key, augment, OPEN)
    for sample in range(12):
        for view in range(3):
            wanted = literal_view(x[sample, view], key[sample, view], augment, OPEN[view])
            torch.testing.assert_close(found[sample, view], wanted, rtol=0, atol=1e-14)


def test_a_view_is_sheared_or_some_of_its_joints_are_corrupted() -> None:
    x = clips(1).expand(400, -1, -1, -1, -1, -1)
    out = shear_or_corrupt(x, fold(1, torch.arange(400)[:, None], torch.arange(3)), PAPER, OPEN)
    spared = (out == x).all(-1).all(2).all(2)  # bit for bit, in all frames of all bodies
    zero = (out == 0).all(-1).all(2).all(2)
    corrupted = spared.any(-1)
    assert set(spared.sum(-1)[corrupted].tolist()) == {10}
    assert set(zero.sum(-1)[corrupted].tolist()) == {0, 15}
    assert not bool(corrupted[:, 2].any())
    assert not bool(zero[~corrupted].any())
    assert float(corrupted[:, :2].double().mean()) == pytest.approx(0.5, abs=0.06)
    share = zero.any(-1).double().sum() / corrupted.sum()
    assert float(share) == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("largest", [0.5, 1.0])
def test_shears_have_ones_on_the_diagonal_and_uniform_entries_off_it(largest: float) -> None:
    matrices = shear_matrices(MANY, largest, torch.float64)
    assert bool((matrices.diagonal(dim1=-2, dim2=-1) == 1).all())
    off = matrices.flatten(1)[:, [1, 2, 3, 5, 6, 7]]
    assert -largest <= float(off.min()) < -0.99 * largest
    assert 0.99 * largest < float(off.max()) <= largest
    assert bool((off.mean(0).abs() < 0.04 * largest).all())
    spread = off.T.cov() / (largest**2 / 3)
    torch.testing.assert_close(spread, torch.eye(6).double(), rtol=0, atol=0.06)


def test_every_joint_is_corrupted_as_often_by_one_matrix_a_view() -> None:
    matrices = corruption_matrices(MANY, 25, PAPER, torch.float64)
    changed = (matrices != torch.eye(3)).flatten(2).any(-1)
    assert bool((changed.sum(1) == 15).all())
    assert bool((changed.double().mean(0) - 0.6).abs().max() < 0.03)
    for row in range(50):
        assert len(matrices[row, changed[row]].unique(dim=0)) == 1
    linear = matrices[:, 0][changed[:, 0]]
    linear = linear[linear.flatten(1).any(1)].flatten(1)
    assert float(linear.min()) >= -1
    assert float(linear.max()) < 1
    assert bool((linear.mean(0).abs() < 0.06).all())
    torch.testing.assert_close(linear.var(0), torch.full((9,), 1 / 3).double(), rtol=0, atol=0.04)


def test_a_view_does_not_depend_on_its_batch() -> None:
    x, key = clips().float(), fold(torch.arange(12)[:, None], torch.arange(3))
    found = shear_or_corrupt(x, key, PAPER, OPEN)
    for sample in range(12):
        row = slice(sample, sample + 1)
        assert torch.equal(shear_or_corrupt(x[row], key[row], PAPER, OPEN)[0], found[sample])
