"""Fusion of streams: the scores of several runs are added up, aligned by the samples' keys.

Scores are those that `skelpipe evaluate` stored beside its records: logits after the last epoch of
a linear probe or a fine-tuned network, or k-NN's `class_scores`. They are added as they are, each
stream's times a weight, as the two- and three-stream methods of the field add the outputs of their
classifiers (2s-AGCN, CrosSCLR); no softmax comes before. PCM3's weights are not published: they are
equal if not given. Where a protocol trains several times, training r of a stream is added to
training r of the others.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from skelpipe.checkpoint import Run, read_json
from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import Evaluation, part_name, result_name
from skelpipe.protocols.features import Kind
from skelpipe.protocols.metrics import accuracy, of_repeats
from skelpipe.protocols.scores import Scores, read_scores
from skelpipe.protocols.settings import Recognition, load_protocol
from skelpipe.protocols.transfer import is_transfer

Record = dict[str, Any]
_SAME = ("dataset", "split", "part", "classes")
_SCORES = "scores.parquet"
_SHOWN = 5
"""Keys that an error names."""


@dataclass(frozen=True)
class Wanted:
    """Which stored scores of a run are meant.

    Attributes:
        protocol: Its name.
        kind: What stood for a sample; the method's own features if None.
        val_subjects: That were queried; the test part if empty.
        changes: Settings ``key=value`` that they were made under: those that choose among a
            protocol's variants, such as a share of labels, and others too.
    """

    protocol: str
    kind: Kind | None = None
    val_subjects: tuple[int, ...] = ()
    changes: tuple[str, ...] = ()

    def settings(self) -> Record:
        """Of the protocol, as changed, by ``section.key``."""
        return flat_settings(load_protocol(self.protocol, self.changes).model_dump(mode="json"))

    def file(self, run: Run) -> Path:
        """The record of a run that has the scores beside it."""
        part, variant = part_name(self.val_subjects), load_protocol(self.protocol, self.changes)
        name = result_name(self.protocol, "run", self.kind or "", part, variant.variant)
        return run.folder / "results" / name

    def command(self, run: Run, like: Record | None = None) -> str:
        """What stores them, under the protocol settings of ``like`` if those are not packaged.

        A transfer's names "DIR": only the user knows where the other set lies.
        """
        words = ["skelpipe", "evaluate", "--protocol", self.protocol, "--run", str(run.folder)]
        if self.kind:
            words += ["--features", self.kind]
        if self.val_subjects:
            words += ["--val-subjects", ",".join(map(str, self.val_subjects))]
        if like and like.get("seed"):  # a fusion has none
            words += ["--seed", str(like["seed"])]
        packaged = flat_settings(load_protocol(self.protocol).model_dump(mode="json"))
        for key, value in (flat_settings(like["protocol"]) if like else self.settings()).items():
            if value != packaged.get(key):
                words += ["--set", f"{key}={json.dumps(value)}"]
        if is_transfer(load_protocol(self.protocol)):
            words += ["--data", "DIR"]
        return shlex.join(words)


def fuse(runs: Sequence[Run], wanted: Wanted, weights: Sequence[float] = ()) -> Evaluation:
    """Add up the stored scores of some runs.

    Args:
        runs: One a stream, two at least.
        wanted: Which of their scores.
        weights: One a run, in their order; all 1 if empty.

    Returns:
        A record like an evaluation's, of subject "fused", in which "streams" tells the runs, their
        weights and accuracies, and what their scores are.

    Raises:
        UserError: A protocol that recognises nothing; fewer than two runs or one twice; weights
            that do not fit; a run without scores of its newest checkpoint (with the command that
            makes them), or damaged ones; other protocol settings, data, part, classes, samples or
            labels than the first run's.
    """
    if not isinstance(load_protocol(wanted.protocol), Recognition):
        raise UserError(
            f"protocol '{wanted.protocol}' recognises nothing: there are no scores to add up",
            remedy="fuse by a protocol that does, such as knn",
        )
    weights = _weights(runs, weights)
    records: list[Record] = []
    scores: list[Scores] = []
    for run in runs:
        record, found = _stored(run, wanted, records[0] if records else None)
        if records:
            _check_same(runs[0], records[0], run, record, wanted)
            _check_aligned(runs[0], scores[0], run, found)
        records.append(record)
        scores.append(found)
    first = records[0]
    total_RNC = torch.zeros_like(scores[0].score_RNC, dtype=torch.float64)
    for weight, found in zip(weights, scores, strict=True):
        total_RNC += weight * found.score_RNC
    right = [accuracy(total_NC.argmax(1), scores[0].label_N) for total_NC in total_RNC]
    features = dict.fromkeys(record["features"] for record in records)
    record = {
        **{key: first[key] for key in ("protocol", *_SAME, "samples", "data_digest")},
        "variant": first.get("variant", ""),
        "subject": "fused",
        "features": " + ".join(features),
        "warnings": _united(records, "warnings"),
        "readings": _united(records, "readings"),
        "streams": [
            {
                "run": run.folder.resolve().name,
                "recipe": run.recipe.name,
                "seed": run.data["seed"],
                **{key: record[key] for key in ("checkpoint", "features", "data_digest")},
                "scores_sha256": record["files"][_SCORES],
                "weight": weight,
                "accuracy": record["results"][0]["accuracy"],
            }
            for run, record, weight in zip(runs, records, weights, strict=True)
        ],
        "results": [
            {
                "network": f"fusion of {len(runs)} streams",
                "accuracy": fmean(right),
                **of_repeats(right),
            }
        ],
        "versions": {name: version(name) for name in ("skelpipe", "torch", "pyarrow")},
    }
    return Evaluation(record)


def _weights(runs: Sequence[Run], weights: Sequence[float]) -> list[float]:
    if len(runs) < 2:
        raise UserError(
            "a fusion takes two runs at least",
            found=f"{len(runs)}",
            remedy="--fuse RUN RUN RUN",
        )
    folders = [run.folder.resolve() for run in runs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise UserError("a run stands in the fusion twice", file=folder)
    if weights and len(weights) != len(runs):
        raise UserError(
            "a fusion takes one weight for each run",
            found=f"{len(weights)} weights",
            expected=f"{len(runs)}",
        )
    if any(not (0 <= weight < math.inf) for weight in weights) or (weights and not any(weights)):
        raise UserError(
            "weights of a fusion are numbers from 0 up, not all of them 0",
            found=", ".join(f"{weight:g}" for weight in weights),
        )
    return list(weights) or [1.0] * len(runs)


def _stored(run: Run, wanted: Wanted, like: Record | None) -> tuple[Record, Scores]:
    """A run's record and scores, of its newest checkpoint."""
    file, remedy = wanted.file(run), wanted.command(run, like)
    checkpoint, part = run.checkpoint().name, part_name(wanted.val_subjects)
    what = f"run {run.folder.name} has no stored scores by protocol '{wanted.protocol}'"
    if not file.is_file():
        raise UserError(what, file=file, remedy=remedy)
    record = read_json(file)
    changed = [change.partition("=")[0].strip() for change in wanted.changes]
    asked = {
        key: value
        for key, value in wanted.settings().items()
        if any(key == name or key.startswith(f"{name}.") for name in changed)
    }
    expected = {"checkpoint": checkpoint, "part": part} | asked
    has = record | flat_settings(record["protocol"])
    for key, value in expected.items():
        if has.get(key) != value:
            raise UserError(
                f"{what} for {key} {value}",
                file=file,
                found=f"{key} {has.get(key)}",
                remedy=remedy,
            )
    if _SCORES not in record.get("files", {}):
        raise UserError(what, file=file, found="a record without scores", remedy=remedy)
    scores = read_scores(
        file.with_suffix(f".{_SCORES}"),
        sha256=record["files"][_SCORES],
        classes=len(record["classes"]),
        remedy=remedy,
    )
    return record, scores


def _check_same(first: Run, one: Record, run: Run, other: Record, wanted: Wanted) -> None:
    """Raise a UserError where a run was evaluated on other data or otherwise than the first."""
    settings, others = flat_settings(one["protocol"]), flat_settings(other["protocol"])
    for key in settings | others:
        if settings.get(key) != others.get(key):
            raise UserError(
                f"run {run.folder.name} was evaluated under other settings than "
                f"{first.folder.name}",
                place=key,
                found=others.get(key),
                expected=settings.get(key),
                remedy=wanted.command(run, one),
            )
    if _subsets(one) != _subsets(other):
        raise UserError(
            f"run {run.folder.name} has learnt from other labels than {first.folder.name}",
            found=f"subsets of seed {other['seed']}",
            expected=f"subsets of seed {one['seed']}",
            remedy=wanted.command(run, one),
        )
    for key in _SAME:
        if one[key] != other[key]:
            raise UserError(
                f"run {run.folder.name} was evaluated on another {key} than {first.folder.name}",
                found=other[key],
                expected=one[key],
                remedy=f"{wanted.command(run, one).removesuffix(' --data DIR')} --data DIR, DIR "
                f"being the set of {one['dataset']} {one['split']}",
            )


def _check_aligned(first: Run, one: Scores, run: Run, other: Scores) -> None:
    """Raise a UserError where samples or their labels are not the same; both are sorted by key."""
    for has, lacks, whole, short in ((first, run, one, other), (run, first, other, one)):
        missing = sorted(set(whole.keys) - set(short.keys))
        if missing:
            raise UserError(
                f"run {lacks.folder.name} has no scores of {len(missing)} samples that run "
                f"{has.folder.name} has",
                found=_some(missing),
                remedy="evaluate both on the same prepared set",
            )
    wrong = (one.label_N != other.label_N).nonzero()[:, 0].tolist()
    if wrong:
        raise UserError(
            f"{len(wrong)} samples have other labels in run {run.folder.name} than in run "
            f"{first.folder.name}",
            found=_some([one.keys[place] for place in wrong]),
            remedy="evaluate both on the same prepared set",
        )


def _subsets(record: Record) -> list[str]:
    """Digests of the subsets that were learnt from; none where all labels were."""
    return [subset["digest"] for subset in record.get("subsets", [])]


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _united(records: Sequence[Record], key: str) -> list[str]:
    return list(dict.fromkeys(text for record in records for text in record[key]))


def flat_settings(table: Record, prefix: str = "") -> Record:
    """Settings of a protocol by ``section.key``, without what only describes it."""
    found: Record = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat_settings(value, f"{prefix}{key}.")
        elif key != "title":
            found[prefix + key] = value
    return found
