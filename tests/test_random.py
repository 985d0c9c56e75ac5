from __future__ import annotations

import pytest
import torch

from skelpipe.random import below, bits, fold, uniform

KEYS = fold(3, 1, torch.arange(20_000))
FROZEN_KEYS: list[int] = [-4064821976848772673, 2884503229358293835]
FROZEN_BITS: list[list[int]] = [
    [-1182692285189327951, 2623825048850351471],
    [6468812877422919397, -1981763783506822787],
]
FROZEN_BELOW: list[list[int]] = [[573, 625, 585], [160, 470, 842]]
FROZEN_UNIFORM: list[list[float]] = [
    [0.43718451261520386, 0.9558499455451965],
    [0.5665855407714844, 0.42839568853378296],
]


def chi_square(counts: torch.Tensor, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_values_are_frozen() -> None:
    key = fold(1, 2, torch.tensor([0, 5]))
    assert key.tolist() == FROZEN_KEYS
    assert bits(key, "order", 2).tolist() == FROZEN_BITS
    assert below(key, "start", 3, 1000).tolist() == FROZEN_BELOW
    assert uniform(key, "angles", 2).tolist() == FROZEN_UNIFORM


def test_keys_match_splitmix64() -> None:
    # First outputs of SplitMix64 seeded with 0.
    words = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert int(fold(0)) % 2**64 == words[0]


def test_integers_and_tensors_fold_alike() -> None:
    assert fold(1, torch.tensor([2, 3]), 4).tolist() == [int(fold(1, n, 4)) for n in (2, 3)]
    assert fold(torch.tensor(-1), 2**62).tolist() == fold(-1, torch.tensor(2**62)).tolist()


def test_order_of_folded_parts_matters() -> None:
    assert int(fold(1, 2)) != int(fold(2, 1))
    assert int(fold(0)) != int(fold(0, 0))


def test_folded_keys_do_not_collide() -> None:
    grid = fold(torch.arange(300)[:, None], torch.arange(300))
    assert len(grid.unique()) == 90_000


@pytest.mark.parametrize("order", ["reversed", "one by one", "as a column"])
def test_draws_do_not_depend_on_batching(order: str) -> None:
    keys = KEYS[:40]
    whole = bits(keys, "gap", 5)
    if order == "reversed":
        assert torch.equal(bits(keys.flip(0), "gap", 5).flip(0), whole)
    elif order == "one by one":
        assert torch.equal(torch.stack([bits(key, "gap", 5) for key in keys]), whole)
    else:
        assert torch.equal(bits(keys[:, None], "gap", 5)[:, 0], whole)


def test_fewer_words_are_the_first_of_more() -> None:
    assert torch.equal(bits(KEYS[:9], "gap", 3), bits(KEYS[:9], "gap", 8)[:, :3])


@pytest.mark.parametrize("bits_from", [0, 12, 31, 52])
def test_every_bit_is_balanced(bits_from: int) -> None:
    words = bits(KEYS, "order", 1)[:, 0]
    for bit in range(bits_from, bits_from + 12):
        ones = int(((words >> bit) & 1).sum())
        assert abs(ones - 10_000) < 5 * 71  # 5 standard deviations


@pytest.mark.parametrize("count", [2, 7, 25])
def test_below_is_uniform(count: int) -> None:
    counts = torch.bincount(below(KEYS, "start", 2, count).flatten(), minlength=count)
    freedom = count - 1
    assert chi_square(counts, 40_000 / count) < freedom + 5 * (2 * freedom) ** 0.5


def test_uniform_is_uniform() -> None:
    draws = uniform(KEYS, "angles", 3)
    assert draws.dtype == torch.float32
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    counts = torch.bincount((draws * 100).long().flatten(), minlength=100)
    assert chi_square(counts, 600) < 99 + 5 * 198**0.5


@pytest.mark.parametrize(("first", "second"), [("angles", "applied"), ("gap", "frame of bin")])
def test_names_draw_independently(first: str, second: str) -> None:
    cell = below(KEYS, first, 1, 8) * 8 + below(KEYS, second, 1, 8)
    assert chi_square(torch.bincount(cell.flatten(), minlength=64), 312.5) < 63 + 5 * 126**0.5


def test_neighbouring_keys_and_words_are_independent() -> None:
    draws = uniform(KEYS, "gap", 4).double()
    columns = torch.cat([draws, draws.roll(1, 0)], 1)
    off_diagonal = torch.corrcoef(columns.T) - torch.eye(8, dtype=torch.float64)
    assert float(off_diagonal.abs().max()) < 5 / 20_000**0.5


@pytest.mark.parametrize("bound", [1, 2, 1000, 2**31 - 1])
def test_below_keeps_its_bound(bound: int) -> None:
    draws = below(KEYS, "start", 2, bound)
    assert int(draws.min()) >= 0
    assert int(draws.max()) < bound
    assert int(draws.max()) >= (bound - 1) * 0.99


def test_below_takes_a_bound_for_each_draw() -> None:
    bound = torch.arange(1, 11).expand(50, 10)
    draws = below(KEYS[:50], "start", 10, bound)
    assert bool((draws < bound).all())
    assert torch.equal(draws[:, 4], below(KEYS[:50], "start", 10, 5)[:, 4])
