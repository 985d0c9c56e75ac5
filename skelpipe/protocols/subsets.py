"""Which training samples have labels in semi-supervised evaluation, drawn by their names alone.

A sample's hash under a seed is the sha256 of the UTF-8 text "SEED:NAME", such as
"0:S001C001P001R001A001", as 64 hex digits; its name is its key in the prepared set. Those of the
lowest hashes are taken:

random: of all N samples int(N * share), as many as MAMP and CMD take (NTU-60 xsub: 400 and 4,009).
balanced: of each class of n samples n * share, rounded to the nearest number, halves up (NTU-60
xsub at 1 %: 7 of each class, as many as Hi-TRS takes).

Both are computed in decimals, so that 0.29 of 100 is 29. A subset's digest is the sha256 of its
names, sorted and joined by newlines. So it is the same wherever it is drawn, and anyone can draw it
again.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import StringIO
from math import ceil
from typing import Literal

from skelpipe.errors import UserError


@dataclass(frozen=True)
class Subset:
    """Samples that have labels.

    Attributes:
        seed: That they were drawn with.
        places: Of the samples among those that they were drawn from, in order.
        keys: Their names, sorted.
    """

    seed: int
    places: tuple[int, ...]
    keys: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 of the names, sorted and joined by newlines."""
        return hashlib.sha256("\n".join(self.keys).encode()).hexdigest()


def draw(
    keys: Sequence[str],
    labels: Sequence[int],
    *,
    share: float,
    kind: Literal["random", "balanced"],
    seed: int,
    classes: Sequence[str],
) -> Subset:
    """Draw a subset.

    Args:
        keys, labels: Names of all samples, and their classes.
        share: In (0, 1].
        kind: Of all samples, or of each class that has any.
        seed: Of the hashes.
        classes: Names of the classes, for errors.

    Raises:
        UserError: Less than two samples, or less than one of a class under "balanced"; each with a
            share that would serve.
    """
    part = Fraction(str(share))
    groups: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        groups[label if kind == "balanced" else 0].append(place)
    if kind == "balanced":
        _check_classes({classes[label]: len(group) for label, group in groups.items()}, part)
        counts = {label: int(len(group) * part + Fraction(1, 2)) for label, group in groups.items()}
    else:
        counts = {0: int(len(keys) * part)}
    if sum(counts.values()) < 2:
        raise UserError(
            f"{100 * share:g} % of {len(keys)} training samples are not enough to train on",
            found=f"{sum(counts.values())} samples",
            expected="2 at least, as batch norm needs",
            remedy=_enough(2, len(keys)),
        )
    chosen: list[int] = []
    for label, group in groups.items():
        chosen += sorted(group, key=lambda place: _hash(seed, keys[place]))[: counts[label]]
    return Subset(seed, tuple(sorted(chosen)), tuple(sorted(keys[place] for place in chosen)))


def pack(subsets: Sequence[Subset]) -> bytes:
    """Subsets as a CSV file: a line "seed,key" for each sample of each."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("seed", "key"))
    for subset in subsets:
        writer.writerows((subset.seed, key) for key in subset.keys)
    return text.getvalue().encode()


def _hash(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _check_classes(counts: dict[str, int], part: Fraction) -> None:
    """Raise a UserError where a class would have less than one sample."""
    small = sorted((count, name) for name, count in counts.items() if count * part < 1)
    if small:
        fewest, name = small[0]
        raise UserError(
            f"a balanced subset of {100 * float(part):g} % has less than one sample of "
            f"{len(small)} classes",
            found=f"{fewest} training samples of '{name}'",
            remedy=f"{_enough(1, fewest)}, or --set subset=random, which may leave classes out",
        )


def _enough(wanted: int, samples: int) -> str:
    """A share of four decimals at least that gives as many samples."""
    if wanted > samples:
        return "a prepared set with more samples"
    return f"--set share={ceil(10_000 * wanted / samples) / 10_000:g} or more"
