"""What a card tells, in words."""

from __future__ import annotations

from skelpipe.shards.card import STEP, Card, MissingStamp

# What samples are counted by beside their class: field of a tally, and one of what it counts.
NOT_STATED = "not stated"
NUMBERED = (("subjects", "subject"), ("cameras", "camera"), ("setups", "setup"))


def origin(card: Card) -> dict[str, str]:
    """Where a set came from and how it is stored: names and what they stand for."""
    shards = [name for name in card.files if name.endswith(".tar")]
    switches = ", ".join(f"{name} = {value}" for name, value in card.pipeline.switches.items())
    size = sum(stamp.size for stamp in card.files.values())
    unit = "metres" if card.metric else "unknown unit"
    steps = f", steps of {1000 * STEP:g} mm" if card.precision == "int16" else ""
    return {
        "data set": f"{card.title} ({card.dataset}), split {card.split}",
        "skeleton": f"{card.topology.name}, {len(card.topology.joints)} joints, "
        f"{card.topology.up} up, {unit}",
        "frames a second": f"{card.fps:g}",
        "pipeline": f"{card.pipeline.name} version {card.pipeline.version} {switches}".rstrip(),
        "precision": card.precision + steps,
        "raw recordings": f"{card.source.recordings:,}, digest {card.source.digest[:16]}",
        "missing list": _missing(card.missing_list),
        "size on disk": f"{size / 1e6:,.1f} MB, {len(shards)} shards",
    }


def per_number(card: Card, field: str) -> dict[str, tuple[int, int]]:
    """Samples of each subject, camera or setup: its number -> (train, test).

    Samples of which it is not stated come last, as `NOT_STATED`.
    """
    counts = card.counts
    train, test = getattr(counts.train, field), getattr(counts.test, field)
    numbers = {
        str(number): (train.get(number, 0), test.get(number, 0))
        for number in sorted(train.keys() | test.keys())
    }
    rest = (
        counts.train.samples - sum(train.values()),
        counts.test.samples - sum(test.values()),
    )
    return {**numbers, NOT_STATED: rest} if any(rest) else numbers


def per_class(card: Card) -> dict[int, tuple[int, int]]:
    """Samples of each class that has any: label -> (train, test). Whole recordings have none."""
    train, test = card.counts.train.classes, card.counts.test.classes
    return {
        label: (train.get(label, 0), test.get(label, 0))
        for label in sorted(train.keys() | test.keys())
    }


def _missing(listed: MissingStamp | None) -> str:
    if listed is None:
        return "the data set has none"
    whose = "the official one" if listed.official else "not the official one"
    return f"{listed.count} names, {whose}" if listed.applied else "not applied"
