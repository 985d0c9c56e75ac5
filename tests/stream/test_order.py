from __future__ import annotations

from collections import Counter

import pytest
import torch

from skelpipe.stream.order import Order, Tail, permutation

SIZES = [(count, batch) for count in (1, 7, 1000, 10_007) for batch in (1, 3, 8, 40, 768)]
SIZES = [size for size in SIZES if size not in ((10_007, 1), (10_007, 3))]  # seconds each


@pytest.mark.parametrize("count", [1, 2, 17, 5000])
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_order_visits_every_sample_once(count: int, epoch: int) -> None:
    order = permutation(count, 1, epoch)
    assert torch.equal(order.sort().values, torch.arange(count))


def test_an_order_is_frozen() -> None:
    assert permutation(8, 0, 0).tolist() == [5, 4, 6, 3, 0, 1, 2, 7]


def test_samples_move_a_third_of_the_length_on_average() -> None:
    count, epochs = 10_007, 20
    places = torch.arange(count)
    moved = [
        (permutation(count, 2, epoch) - places).abs().double().mean() for epoch in range(epochs)
    ]
    assert float(torch.stack(moved).mean()) == pytest.approx(count / 3, rel=0.02)


def test_every_sample_is_as_likely_in_every_place() -> None:
    places = torch.zeros(6, 6)
    for epoch in range(3000):
        places[torch.arange(6), permutation(6, 4, epoch)] += 1
    assert float((places - 500).abs().max()) < 5 * 500**0.5


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in range(4)}
    assert len(orders) == 8


def batches(order: Order, epochs: int) -> list[list[tuple[int, int, bool]]]:
    """(place, epoch, counts) of every sample of every global batch of the first epochs."""
    return [
        list(zip(*(part.tolist() for part in order.places(epoch, step)), strict=True))
        for epoch in range(epochs)
        for step in range(order.steps(epoch))
    ]


@pytest.mark.parametrize(("count", "batch"), SIZES)
def test_drop_leaves_out_the_rest_of_an_epoch(count: int, batch: int) -> None:
    order = Order(count, batch, seed=5)
    for epoch in range(2):
        assert order.steps(epoch) == count // batch
        orders = permutation(count, 5, epoch).tolist()
        for step in range(order.steps(epoch)):
            places = order.places(epoch, step)
            assert places.place_G.tolist() == orders[step * batch : (step + 1) * batch]
            assert places.epoch_G.unique().tolist() == [epoch]
            assert bool(places.valid_G.all())


@pytest.mark.parametrize(("count", "batch"), SIZES)
def test_carry_cuts_batches_from_the_joined_orders(count: int, batch: int) -> None:
    order, epochs = Order(count, batch, seed=5, tail="carry"), 4
    joined = [
        (place, epoch, True)
        for epoch in range(epochs)
        for place in permutation(count, 5, epoch).tolist()
    ]
    full = len(joined) // batch
    assert batches(order, epochs) == [joined[b * batch : (b + 1) * batch] for b in range(full)]
    for epoch in range(epochs):
        assert order.steps(epoch) == (epoch * count % batch + count) // batch
        assert order.steps_before(epoch) == sum(map(order.steps, range(epoch)))


@pytest.mark.parametrize(("count", "batch"), SIZES)
def test_pad_counts_each_sample_once_an_epoch(count: int, batch: int) -> None:
    order = Order(count, batch, seed=5, tail="pad")
    for epoch in range(2):
        found = [
            sample
            for step in range(order.steps(epoch))
            for sample in zip(*(part.tolist() for part in order.places(epoch, step)), strict=True)
        ]
        assert len(found) == order.steps(epoch) * batch < count + batch
        counting = [place for place, _, counts in found if counts]
        assert counting == permutation(count, 5, epoch).tolist()
        assert {of for _, of, _ in found} == {epoch}


@pytest.mark.parametrize("tail", ["drop", "carry", "pad"])
def test_a_place_beyond_an_epoch_lies_in_a_later_one(tail: Tail) -> None:
    order = Order(7, 3, 0, tail)
    every = [(epoch, step) for epoch in range(12) for step in range(order.steps(epoch))]
    for number, (epoch, step) in enumerate(every[:-9]):
        assert order.settle(epoch, step) == (epoch, step)
        if step == 0:
            for further in range(9):
                assert order.settle(epoch, further) == every[number + further]


def test_an_epoch_smaller_than_a_batch_may_have_no_step() -> None:
    order = Order(3, 8, 0, "carry")
    assert [order.steps(epoch) for epoch in range(8)] == [0, 0, 1, 0, 0, 1, 0, 1]
    assert order.settle(0, 0) == (2, 0)
    visited = Counter(order.places(2, 0).place_G.tolist())
    assert sorted(visited.values()) == [2, 3, 3]
