from __future__ import annotations

import csv
import hashlib
from io import StringIO
from typing import Any

import pytest

from skelpipe.errors import UserError
from skelpipe.protocols.subsets import Subset, draw, pack

GOLDEN = ("S000000", "S000117", "S000282")
DIGEST = "7402abc70c0f7cad010d46aa565c90f231754cec42a9a8c5988b7f624d356ac1"
CLASSES = [f"class {number}" for number in range(60)]


def drawn(count: int, labels: int = 60, **changes: Any) -> Subset:
    keys = [f"S{number:06d}" for number in range(count)]
    settings: dict[str, Any] = {"share": 0.01, "kind": "random", "seed": 0, "classes": CLASSES}
    return draw(keys, [number % labels for number in range(count)], **(settings | changes))


def by_hand(keys: list[str], seed: int, count: int) -> list[str]:
    """Names of the lowest hashes, one after the other."""
    left, found = {hashlib.sha256(f"{seed}:{key}".encode()).digest(): key for key in keys}, []
    for _ in range(count):
        found.append(left.pop(min(left)))
    return sorted(found)


@pytest.mark.parametrize(
    ("count", "share", "taken"),
    [(40_091, 0.01, 400), (40_091, 0.1, 4009), (37_646, 0.01, 376), (37_646, 0.1, 3764),
     (100, 0.29, 29), (12, 0.25, 3)],
)  # fmt: skip
def test_random_subsets_have_the_published_sizes(count: int, share: float, taken: int) -> None:
    assert len(drawn(count, share=share).places) == taken


def test_a_balanced_subset_has_a_share_of_each_class() -> None:
    found = drawn(40_091, kind="balanced")
    counts = [sum(place % 60 == label for place in found.places) for label in range(60)]
    assert counts == [7] * 60  # 6.68, as many as Hi-TRS
    # 5 of 10 and 1.5 of 3, rounded up.
    odd = draw(
        [f"{n}" for n in range(13)], [0] * 10 + [1] * 3, share=0.5, kind="balanced", seed=0,
        classes=CLASSES,
    )  # fmt: skip
    assert [sum(p < 10 for p in odd.places), sum(p >= 10 for p in odd.places)] == [5, 2]


@pytest.mark.parametrize("seed", [0, 4])
@pytest.mark.parametrize("kind", ["random", "balanced"])
def test_the_lowest_hashes_are_taken(seed: int, kind: str) -> None:
    found = drawn(200, 4, share=0.1, seed=seed, kind=kind)
    keys = [f"S{number:06d}" for number in range(200)]
    wanted = by_hand(keys, seed, 20)
    if kind == "balanced":
        wanted = sorted(key for label in range(4) for key in by_hand(keys[label::4], seed, 5))
    assert list(found.keys) == wanted
    assert [keys[place] for place in found.places] == wanted
    assert found.digest == hashlib.sha256("\n".join(wanted).encode()).hexdigest()


def test_subsets_are_those_of_other_machines() -> None:
    # printf '0:S000117' | sha256sum, and so on.
    assert drawn(300, share=0.01).keys == GOLDEN
    assert drawn(300, share=0.01).digest == DIGEST
    assert drawn(300, share=0.01, seed=1).keys != GOLDEN


def test_the_order_of_samples_does_not_matter() -> None:
    keys = [f"S{number}" for number in range(40)]
    given: dict[str, Any] = {"share": 0.2, "kind": "random", "seed": 2, "classes": CLASSES}
    one = draw(keys, [0] * 40, **given)
    assert draw(keys[::-1], [0] * 40, **given).keys == one.keys
    left = [key for key in keys if key not in one.keys[:2]]  # another part: the same order
    assert set(one.keys[2:]) < set(draw(left, [0] * 38, **(given | {"share": 0.21})).keys)


@pytest.mark.parametrize(
    ("count", "changes", "said"),
    [
        (150, {"share": 0.01}, "found: 1 samples"),
        (150, {"share": 0.01}, "--set share=0.0134 or more"),
        (50, {"share": 0.01}, "found: 0 samples"),
        (1, {"share": 0.5}, "a prepared set with more samples"),
        (300, {"kind": "balanced"}, "less than one sample of 60 classes"),
        (300, {"kind": "balanced"}, "found: 5 training samples of 'class 0'"),
        (300, {"kind": "balanced"}, "--set share=0.2 or more, or --set subset=random"),
    ],
)
def test_too_few_are_refused_with_a_share_that_serves(
    count: int, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        drawn(count, **changes)
    assert said in str(error.value)


def test_the_share_that_is_named_serves() -> None:
    assert len(drawn(150, share=0.0134).places) == 2
    assert len(drawn(300, share=0.2, kind="balanced").places) == 60


def test_packed_subsets_name_seed_and_sample() -> None:
    subsets = [drawn(300, share=0.01, seed=seed) for seed in (0, 1)]
    rows = list(csv.DictReader(StringIO(pack(subsets).decode())))
    assert rows == [{"seed": str(s.seed), "key": key} for s in subsets for key in s.keys]
    assert len(rows) == 6
