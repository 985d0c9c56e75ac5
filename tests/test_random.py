from __future__ import annotations

import zlib

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


MASK = 2**64 - 1


def plain_mix(word: int) -> int:
    """SplitMix64's finaliser in whole numbers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def plain_fold(*parts: int) -> int:
    key = 0
    for part in parts:
        key = plain_mix((key * 0x94D049BB133111EB + part + 0x9E3779B97F4A7C15) & MASK)
    return key


def plain_bits(key: int, name: str, place: int) -> int:
    """The word at a place, from 0."""
    start = plain_mix(key ^ zlib.crc32(name.encode()))
    return plain_mix((start + (place + 1) * 0x9E3779B97F4A7C15) & MASK)


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["order", "gap", "tube part", "masked tokens"])
def test_draws_equal_plain_whole_numbers(device: str, name: str) -> None:
    samples = [0, 1, 77, 113_944, -3, 2**40]
    key = fold(11, 150, torch.tensor(samples, device=device), 13)
    plain = [plain_fold(11, 150, sample, 13) for sample in samples]
    assert key.tolist() == [signed(word) for word in plain]
    words = [[plain_bits(word, name, place) for place in range(70)] for word in plain]
    assert bits(key, name, 70).tolist() == [[signed(word) for word in row] for row in words]
    assert bits(key, name, 9, 61).tolist() == [[signed(word) for word in row[61:]] for row in words]
    for bound in (1, 25, 500_001, 2**31 - 1):
        wanted = [[((word >> 32) * bound) >> 32 for word in row[:5]] for row in words]
        assert below(key, name, 5, bound).tolist() == wanted
    wanted_share = [[(word >> 40) / 2**24 for word in row[3:8]] for row in words]
    assert uniform(key, name, 5, 3).tolist() == wanted_share


def test_the_plain_whole_numbers_are_the_frozen_ones() -> None:
    keys = [plain_fold(1, 2, part) for part in (0, 5)]
    assert [signed(key) for key in keys] == FROZEN_KEYS
    assert [[signed(plain_bits(key, "order", n)) for n in (0, 1)] for key in keys] == FROZEN_BITS


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
