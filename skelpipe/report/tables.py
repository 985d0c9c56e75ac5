"""Evaluation records as plain tables, for the screen and for pages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from skelpipe.checkpoint import read_json

Record = dict[str, Any]

_FLOORS = ("random-init", "raw")
_FEATURES = {
    "patch": "patch mean",
    "class": "class token",
    "both": "patch mean + class token",
    "last": "last frame",
}


@dataclass(frozen=True)
class Table:
    """Networks under one protocol, on one part of one prepared set.

    Attributes:
        title: The protocol's.
        subtitle: The data: set, split, part, and how many samples.
        columns: Headings; the first two columns are text, the others numbers.
        rows: Cells: the run's networks first, then the floors.
        numbers: The protocol's settings.
        warnings: What the prepared set lacks.
        readings: The paper's gaps as the recipe reads them.
    """

    title: str
    subtitle: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: str
    warnings: tuple[str, ...]
    readings: tuple[str, ...]


@dataclass(frozen=True)
class Gain:
    """The headline network beside one floor, top-1 accuracy in per cent."""

    network: str
    features: str
    accuracy: float
    floor: str
    floor_accuracy: float

    @property
    def points(self) -> float:
        return self.accuracy - self.floor_accuracy


@dataclass(frozen=True)
class Headline:
    """The number that a record is about: top-1 accuracy in per cent, or what its task has instead.

    Attributes:
        name: "accuracy", "mpjpe" and the like.
        value: Of the record's first network.
        lower_is_better: Such as an error.
    """

    name: str
    value: float
    lower_is_better: bool

    @property
    def text(self) -> str:
        """Such as "87.5 %"; of other numbers, with their names."""
        if self.name == "accuracy":
            return f"{self.value:.1f} %"
        return f"{MEASURES.get(self.name, self.name)} {self.value:.1f}"


MEASURES = {"accuracy": "accuracy, %", "mpjpe": "MPJPE, mm", "map_a": "mAP_a, %"}
"""Names of headlines, as they are shown."""


def headline(record: Record) -> Headline:
    """What a record says first."""
    accuracy = {"name": "accuracy", "lower_is_better": False}
    found = record.get("headline") or accuracy | {"value": record["results"][0]["accuracy"]}
    return Headline(found["name"], found["value"], found["lower_is_better"])


DAMAGED = "delete it, and evaluate again"


def result_files(run: Path) -> list[Path]:
    """Files of a run folder's evaluation records, by name. Sweeps are none: they chose settings."""
    paths = sorted((run / "results").glob("*.json"))
    return [path for path in paths if not path.stem.endswith("-sweep")]


def read_results(run: Path) -> list[Record]:
    """All evaluation records of a run folder, by file name; none where nothing was evaluated."""
    return [read_json(path, DAMAGED) for path in result_files(run)]


def result_tables(records: Iterable[Record]) -> list[Table]:
    """One table for each protocol and part, then one for each fusion; only like is beside like.

    Accuracies are the last epoch's. The best epoch on the test part, which peers report, stands
    in a column of its own and is never what a gain is taken from.
    """
    records = list(records)
    fused = [fusion_table(record) for record in records if record["subject"] == "fused"]
    return [result_table(group) for group in comparable(records)] + fused


def comparable(records: Iterable[Record]) -> list[list[Record]]:
    """Records grouped by protocol with all its settings, data and part: the run before floors.

    Within a group the kinds of features follow one another: patch mean, class token, both. Fusions
    are of several runs and stand in no group.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["subject"] == "fused":
            continue
        same = [record[name] for name in ("protocol", "dataset", "split", "data_digest", "part")]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(record)
    order = ("run", *_FLOORS)
    kinds = list(_FEATURES)

    def place(record: Record) -> tuple[int, int]:
        kind = record["features"]
        return order.index(record["subject"]), kinds.index(kind) if kind in kinds else 0

    return [sorted(group, key=place) for group in groups.values()]


def gains(group: Sequence[Record]) -> list[Gain]:
    """The run's first network (the student) over each of its floors in a group of `comparable`.

    None where the group is not about accuracies.
    """
    return [
        Gain(
            row["network"], features_name(record), row["accuracy"],
            floor["network"], floor["accuracy"],
        )
        for record in group
        if record["subject"] == "run" and headline(record).name == "accuracy"
        for row in record["results"][:1]
        if "accuracy" in row
        for floor in _floors(record, group).values()
    ]  # fmt: skip


def features_name(record: Record) -> str:
    """What stands for a sample in a record, in words."""
    kind: str = record["features"]
    return _FEATURES.get(kind, kind)


def _floors(record: Record, group: Sequence[Record]) -> dict[str, Record]:
    """First rows of the floors a record is set against, by subject: those of its own features."""
    return {
        floor["subject"]: floor["results"][0]
        for floor in group
        if floor["subject"] == "raw"
        or (floor["subject"] == "random-init" and floor["features"] == record["features"])
    }


def settings_line(protocol: Record) -> str:
    """A protocol's settings as one line, such as "k 1, centre 0.95"."""
    hidden = {"kind", "name", "title", "task"}
    if protocol.get("train_view") == "centre":
        hidden.add("random")  # settings of a view that is not drawn
    if protocol.get("schedule") == "cosine":
        hidden.add("drops")  # it has none
    if protocol.get("schedule") == "steps":
        hidden |= {"warmup", "min_lr"}
    if protocol.get("optimiser") == "adamw":
        hidden.add("momentum")
    if protocol.get("head") == "linear":
        hidden.add("hidden")
    if protocol.get("share") == 1:
        hidden |= {"share", "subset"}
    parts = []
    for name, value in protocol.items():
        if name in hidden:
            continue
        label = name.replace("_", " ")
        if isinstance(value, dict):
            inner = ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
            parts.append(f"{label} ({inner})")
        elif name in ("drops", "strides"):
            parts.append(f"{label} {'/'.join(map(str, value))}")
        else:
            parts.append(f"{label} {_plain(value)}")
    return ", ".join(parts)


def result_table(group: Sequence[Record]) -> Table:
    """The table of one group of `comparable`.

    Records that have them show the bootstrap's interval, the deviation over several trainings, and
    one-person and mutual classes apart.
    """
    first = group[0]
    if headline(first).name == "mpjpe":
        return motion_table(group)
    if first["protocol"].get("task") == "detection":
        return detection_table(group)
    subjects = {record["subject"]: record["results"][0]["network"] for record in group}
    floors = [name for name in _FLOORS if name in subjects]
    trained = any(record["subject"] == "run" for record in group)
    with_best = any("best_epoch_peer_convention" in row for r in group for row in r["results"])
    results = [row for record in group for row in record["results"]]
    with_interval = any("interval" in row for row in results)
    with_groups = any(row.get("mutual") is not None for row in results)
    columns = ["network", "features", "last epoch, %" if with_best else "accuracy, %"]
    if with_interval:
        columns.append("95 % interval")
    with_drop = any("drop" in row for r in group for row in r["results"])
    if with_drop:
        columns += ["clean, %", "Δ↓, points"]
    if trained:
        columns += [f"over {subjects[name]}, points" for name in floors]
    if with_groups:
        columns += ["one person, %", "mutual, %"]
    if with_best:
        columns.append("best epoch, % (peer convention)")

    rows = []
    for record in group:
        beneath = _floors(record, group)
        for result in record["results"]:
            floor_row = record["subject"] in _FLOORS
            cells = [
                result["network"] + (" (floor)" if floor_row else ""),
                features_name(record),
                _accuracy(result),
            ]
            if with_interval:
                cells.append("–".join(f"{end:.1f}" for end in result.get("interval", ())))
            if with_drop:
                cells += [f"{result['clean_accuracy']:.1f}", f"{result['drop']:.1f}"]
            if trained:
                cells += [
                    ""
                    if floor_row or name not in beneath
                    else f"{result['accuracy'] - beneath[name]['accuracy']:+.1f}"
                    for name in floors
                ]
            if with_groups:
                cells += [_percent(result.get(name)) for name in ("one_person", "mutual")]
            if with_best:
                best = result.get("best_epoch_peer_convention")
                cells.append(
                    f"{best['accuracy']:.1f} (epoch {_epochs(best['epoch'])})" if best else ""
                )
            rows.append(tuple(cells))
    return Table(
        title=first["protocol"]["title"],
        subtitle=_data_line(first),
        columns=tuple(columns),
        rows=tuple(rows),
        numbers=settings_line(first["protocol"]),
        warnings=united(record["warnings"] for record in group),
        readings=united(record["readings"] for record in group),
    )


def motion_table(group: Sequence[Record]) -> Table:
    """The table of a group of motion predictions: distances in mm, in all and by how far ahead.

    Networks come first, an untrained one last, then what needs no network. Of the horizons at most
    five are shown, evenly apart, the last among them.
    """
    first = group[0]
    still = first["baselines"][0]
    untrained = next((r["results"][0] for r in group if r["subject"] == "random-init"), None)
    over = {"zero velocity": still}
    if untrained and any(record["subject"] == "run" for record in group):
        over["untrained encoder"] = untrained
    named = [
        (row["network"] + (" (floor)" if floor else ""), row)
        for rows, floor in (
            *((record["results"], record["subject"] != "run") for record in group),
            (first["baselines"], True),
        )
        for row in rows
    ]
    horizons = list(still["by_horizon"])
    horizons = horizons[:: -ceil(len(horizons) / 5)][::-1]
    rows = [
        (
            name,
            f"{row['mpjpe']:.1f}",
            *("" if row is other else f"{row['mpjpe'] - other['mpjpe']:+.1f}"
              for other in over.values()),
            *(f"{row['by_horizon'][horizon]:.1f}" for horizon in horizons),
        )
        for name, row in named
    ]  # fmt: skip
    windows = first["windows"]
    short = sum(len(part["left_out"]) for part in windows.values())
    return Table(
        title=first["protocol"]["title"],
        subtitle=f"{_data_line(first)}; {windows['test']['samples']:,} and "
        f"{windows['train']['samples']:,} of them have a window, {short:,} have none",
        columns=(
            "network",
            MEASURES["mpjpe"],
            *(f"over {name}" for name in over),
            *(f"{horizon} ms" for horizon in horizons),
        ),
        rows=tuple(rows),
        numbers=settings_line(first["protocol"]),
        warnings=united(record["warnings"] for record in group),
        readings=united(record["readings"] for record in group),
    )


def detection_table(group: Sequence[Record]) -> Table:
    """Detection in a group of `comparable`: the headlines first, then each convention by itself.

    A gain is one of mAP_a over the untrained encoder, in points.
    """
    first = group[0]
    with_floor = len({record["subject"] for record in group}) > 1
    columns = ["network", "features", "mAP_a", "mAP_v"]
    columns += ["gain"] if with_floor else []
    columns += ["official, mAP_a", "VOC, mAP_v", "F1", "2D-AP", "frames right"]
    rows = []
    for record in group:
        (row,) = record["results"]
        floor = _floors(record, group).get("random-init", row)
        numbers = [
            row["official"]["0.5"]["map_a"],
            row["voc"]["0.5"]["map_v"],
            *(row[name] for name in ("f1", "ap_2d", "frame_accuracy")),
        ]
        gain = ""
        if record["subject"] == "run" and floor is not row:
            gain = f"{row['map_a'] - floor['map_a']:+.1f}"
        rows.append(
            (
                row["network"],
                features_name(record),
                f"{row['map_a']:.1f}",
                f"{row['map_v']:.1f}",
                *([gain] if with_floor else []),
                *(f"{number:.1f}" for number in numbers),
            )
        )
    samples = first["samples"]
    return Table(
        title=first["protocol"]["title"],
        subtitle=f"{first['dataset']} {first['split']}, {first['part']}: {samples['test']:,} "
        f"recordings, learned from {samples['train']:,}. In per cent, at overlap 0.5; as PCM3 has "
        "them, mAP_a is VOC's and mAP_v the official one",
        columns=tuple(columns),
        rows=tuple(rows),
        numbers=settings_line(first["protocol"]),
        warnings=united(record["warnings"] for record in group),
        readings=united(record["readings"] for record in group),
    )


def fusion_table(record: Record) -> Table:
    """The table of a fusion: its streams with their weights, then the sum."""
    rows = [
        (
            f"{stream['run']}, step {stream['checkpoint']}",
            _FEATURES.get(stream["features"], stream["features"]),
            f"{stream['weight']:g}",
            f"{stream['accuracy']:.1f}",
        )
        for stream in record["streams"]
    ]
    (total,) = record["results"]
    return Table(
        title=f"Fusion: {record['protocol']['title']}",
        subtitle=_data_line(record),
        columns=("stream", "features", "weight", "accuracy, %"),
        rows=(*rows, (total["network"], features_name(record), "", _accuracy(total))),
        numbers=settings_line(record["protocol"]),
        warnings=tuple(record["warnings"]),
        readings=tuple(record["readings"]),
    )


def sweep_table(record: Record) -> Table:
    """The table of a sweep: all combinations that were tried, the chosen one marked."""
    head = record["headline"]
    direction = "the lowest" if head["lower_is_better"] else "the highest"
    measure = MEASURES.get(head["name"], head["name"])
    rows = [
        (
            "chosen" if row["settings"] == record["chosen"] else "",
            *row["settings"].values(),
            f"{row['value']:.2f}",
        )
        for row in record["tried"]
    ]
    return Table(
        title=f"Sweep: {record['protocol']['title']}",
        subtitle=_data_line(record),
        columns=("", *record["chosen"], f"{measure} ({direction} is chosen)"),
        rows=tuple(rows),
        numbers=settings_line(record["protocol"]),
        warnings=tuple(record["warnings"]),
        readings=tuple(record["readings"]),
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _data_line(record: Record) -> str:
    samples = record["samples"]
    line = (
        f"{record['dataset']} {record['split']}, {record['part']}: {samples['test']:,} samples "
        f"against {samples['train']:,} training samples"
    )
    if source := record.get("transfer", {}).get("from"):
        line += f"; pre-trained on {_source(source)}"
    return line


def _source(source: Record) -> str:
    """What a run was trained on, by the "from" of a record's "transfer"."""
    if "imported" in source:
        return f"what {source['imported']} was"
    return f"{source['dataset']} {source['split']}"


def united(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All texts of some lists, each once, in the order met."""
    return tuple(dict.fromkeys(text for texts in lists for text in texts))


def _accuracy(row: Record) -> str:
    """With the deviation of several trainings, where there are any."""
    return f"{row['accuracy']:.1f}" + (f" ± {row['std']:.1f}" if "std" in row else "")


def _epochs(value: int | list[int]) -> str:
    """One, or that of each training: "88/93/91"."""
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: object) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
