"""Whether a training part and a test part may be set against each other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from skelpipe.errors import UserError
from skelpipe.shards.card import Card, apart_of

_SHOWN = 5


def check_apart(folder: Path, card: Card, train: pa.Table, test: pa.Table) -> None:
    """Raise a UserError where something was trained on that must not have been.

    That is a sample by its key; and under a cross-subject (cross-camera, cross-setup) split a
    subject (camera, setup) that the set states, which is known by a number from 1. PKU-MMD I states
    no subjects.

    Args:
        folder, card: The prepared set.
        train, test: Index rows of the parts.
    """
    keys = set(train["key"].to_pylist()) & set(test["key"].to_pylist())
    if keys:
        raise _overlap("samples", folder, card, keys)
    field = apart_of(card)
    if not field:
        return
    values = [{v for v in part[field].unique().to_pylist() if v > 0} for part in (train, test)]
    if both := values[0] & values[1]:
        raise _overlap(f"{field}s", folder, card, both)


def unlearnable(card: Card, train: pa.Table, test: pa.Table) -> list[str]:
    """A warning where classes that are asked for have no training sample; empty otherwise."""
    trained = set(train["label"].unique().to_pylist())
    asked = set(test["label"].unique().to_pylist())
    names = [card.classes[label] for label in sorted(asked - trained)]
    if not names:
        return []
    return [f"{len(names)} of {len(asked)} classes have no training sample: {_some(names)}"]


def _overlap(what: str, folder: Path, card: Card, both: Iterable[str | int]) -> UserError:
    found = sorted(both)
    return UserError(
        f"{len(found)} {what} stand in both the training part and the test part",
        file=folder,
        place=f"split {card.split}",
        found=_some(found),
        expected="none that was trained on",
        remedy="mend the split, and prepare the set again with --force",
    )


def _some(names: Iterable[object]) -> str:
    texts = [str(name) for name in names]
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
