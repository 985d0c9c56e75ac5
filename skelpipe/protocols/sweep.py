"""The choice of a protocol's settings on held-out training subjects; the test part is never read.

The linear probe depends on rate and batch, and authors give others for each data set; whoever tries
several must not try them on what is reported.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skelpipe.checkpoint import Run, write_json
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import ask, part_name, result_name, solve
from skelpipe.protocols.features import Encode, Kind
from skelpipe.protocols.question import Question, Subject, recipe_readings
from skelpipe.protocols.settings import load_protocol
from skelpipe.stream.source import Source

Axes = Mapping[str, Sequence[str]]
"""Settings and the values of each that are tried."""


def read_axes(texts: Sequence[str]) -> Axes:
    """The axes in texts such as "lr=0.01,0.1,batch=64,256".

    A word with "=" opens a setting, further words are values of it; commas within brackets part
    nothing.

    Raises:
        UserError: A value without a setting, a setting without a value, or either one twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        key = ""
        for word in _words(text):
            name, equals, value = word.partition("=")
            if equals:
                key = name.strip()
                if key in axes:
                    raise _unread(f"setting '{key}' stands twice", text)
                axes[key] = []
            else:
                value = word
            if not key or not value.strip():
                raise _unread("a sweep is of settings and their values", text)
            if value.strip() in axes[key]:
                raise _unread(f"value {value.strip()} of '{key}' stands twice", text)
            axes[key].append(value.strip())
    return axes


def sweep(
    name: str,
    changes: Sequence[str],
    axes: Axes,
    recipe: Recipe,
    data: Path,
    *,
    subject: Subject,
    device: torch.device,
    val_subjects: tuple[int, ...],
    run: Run | None = None,
    kind: Kind | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Evaluate all combinations of some settings on held-out training subjects.

    Features of one fixed crop are extracted once for all of them.

    Args:
        name: The protocol.
        changes: Settings that hold for all combinations.
        axes: Settings that are tried, of `read_axes`.
        recipe, data, subject, device, val_subjects, run, kind, seed: As of `evaluate`.
        command: The words that evaluate under the packaged settings on the test part.
        report: Called with what is done and in all.

    Returns:
        A record: "tried" has for each combination its "settings", the "value" of its headline and
        its "results"; "chosen" the settings of the best one (of equals the first), "command" the
        one test that is left to do.

    Raises:
        UserError: No subject is held out; settings that do not fit, before any is tried.
    """
    if not val_subjects:
        raise UserError(
            "settings are chosen on held-out training subjects, never on the test part",
            expected="--val-subjects, such as --val-subjects 8,9",
            remedy="name some, best those that pre-training held out too",
        )
    sets = [
        tuple(f"{key}={value}" for key, value in zip(axes, values, strict=True))
        for values in product(*axes.values())
    ]
    protocols = [load_protocol(name, (*changes, *some)) for some in sets]
    tried: list[dict[str, Any]] = []

    def tell(done: int, total: int) -> None:
        report(len(tried) * total + done, len(sets) * total)

    asked = ask(
        protocols[0], recipe, data, subject=subject, device=device, run=run, kind=kind,
        val_subjects=val_subjects, seed=seed, report=tell,
    )  # fmt: skip
    question = _Remembering(**vars(asked))
    head: dict[str, Any] = {}
    for some, protocol in zip(sets, protocols, strict=True):
        found = solve(protocol, question)
        head = found.record["headline"]
        settings = dict(change.split("=", 1) for change in some)
        tried.append({"settings": settings, "value": head["value"], "results": found.rows})
    sign = -1 if head["lower_is_better"] else 1
    best = max(range(len(sets)), key=lambda number: sign * tried[number]["value"])
    words = [word for change in (*changes, *sets[best]) for word in ("--set", change)]
    base = load_protocol(name, changes)
    return {
        "protocol": base.model_dump(mode="json"),
        "variant": base.variant,
        "subject": subject,
        "features": "raw coordinates" if subject == "raw" else asked.kind,
        "recipe": recipe.name,
        "checkpoint": run.checkpoint().name if run and subject == "run" else None,
        "dataset": asked.card.dataset,
        "split": asked.card.split,
        "part": part_name(val_subjects),
        "samples": {"train": len(asked.train), "test": len(asked.test)},
        "data_digest": asked.card.data_digest,
        "warnings": list(asked.card.warnings),
        "readings": recipe_readings(recipe, run),
        "seed": seed,
        "headline": {key: head[key] for key in ("name", "lower_is_better")},
        "tried": tried,
        "chosen": tried[best]["settings"],
        "command": shlex.join([*command, *words]),
    }


def write_sweep(folder: Path, record: Mapping[str, Any]) -> Path:
    """Store a sweep in a run's folder as results/PROTOCOL-sweep.json."""
    name = result_name(
        record["protocol"]["name"],
        record["subject"],
        record["features"],
        "test",
        record["variant"],
    )
    path = folder / "results" / f"{name.removesuffix('.json')}-sweep.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(record))
    return path


@dataclass(frozen=True)
class _Remembering(Question):
    """A question that is asked several times: what is the same each time is computed once."""

    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def networks(self) -> dict[str, Encode]:
        if "networks" not in self._kept:
            self._kept["networks"] = super().networks()
        found: dict[str, Encode] = self._kept["networks"]
        return found

    def centre_features(
        self, source: Source, networks: dict[str, Encode], centre: float
    ) -> list[Tensor]:
        key = id(source), centre
        if networks is not self.networks():
            return super().centre_features(source, networks, centre)
        if key not in self._kept:
            self._kept[key] = super().centre_features(source, networks, centre)
        found: list[Tensor] = self._kept[key]
        return found


def _words(text: str) -> list[str]:
    """Text between commas that stand in no bracket."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return words


def _unread(what: str, text: str) -> UserError:
    return UserError(what, found=text, expected="such as --sweep lr=0.01,0.1,batch=64,256")
