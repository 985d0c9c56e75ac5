from __future__ import annotations

import pytest
import torch

from skelpipe.stream.order import Order, permutation


@pytest.mark.parametrize("count", [1, 2, 17, 5000])
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_order_visits_every_sample_once(count: int, epoch: int) -> None:
    order = permutation(count, 1, epoch)
    assert torch.equal(order.sort().values, torch.arange(count))


def test_an_order_is_frozen() -> None:
    assert permutation(8, 0, 0).tolist() == [5, 4, 6, 3, 0, 1, 2, 7]


def test_samples_move_a_third_of_the_length_on_average() -> None:
    count = 30_000
    moved = (permutation(count, 2, 1) - torch.arange(count)).abs().double().mean()
    assert float(moved) == pytest.approx(count / 3, rel=0.02)


def test_every_sample_is_as_likely_in_every_place() -> None:
    places = torch.zeros(6, 6)
    for epoch in range(3000):
        places[torch.arange(6), permutation(6, 4, epoch)] += 1
    assert float((places - 500).abs().max()) < 5 * 500**0.5


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in range(4)}
    assert len(orders) == 8


def test_the_tail_is_dropped() -> None:
    order = Order(17, 5, seed=0)
    assert order.steps(0) == order.steps(3) == 3
    batches = torch.cat([order.places(0, step).place_G for step in range(3)])
    assert torch.equal(batches, permutation(17, 0, 0)[:15])
