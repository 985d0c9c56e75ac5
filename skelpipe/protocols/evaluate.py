"""Run a protocol on a prepared set and record the result with everything that decided it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_never

import torch

from skelpipe.checkpoint import Run, read_json, write_json
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.files import write_whole
from skelpipe.protocols import detection, finetune, knn, linear, motion, occlusion
from skelpipe.protocols.features import Kind, default_kind
from skelpipe.protocols.metrics import confusion, headline, per_class, row_of
from skelpipe.protocols.parts import check_apart, unlearnable
from skelpipe.protocols.question import (
    Answer,
    Found,
    Question,
    Subject,
    labels,
    recipe_readings,
)
from skelpipe.protocols.scores import digest, pack_scores
from skelpipe.protocols.settings import (
    Detection,
    Finetune,
    Knn,
    Linear,
    Motion,
    Occlusion,
    Protocol,
)
from skelpipe.protocols.transfer import (
    check_other_set,
    fit_skeleton,
    is_transfer,
    transfer_readings,
    transfer_record,
)
from skelpipe.shards.card import mutual_of, read_card, read_fitting_card
from skelpipe.stream.source import Part, open_source, select

_SCORES = "scores.parquet"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        record: What is written as JSON: protocol, data, and for each network its accuracy.
        files: What is stored beside it, by what their names end with. A run's recognition has
            "scores.parquet": its first network's (the student's), as `pack_scores` has them. Where
            only some labels were learnt from, "subsets.csv" says which.
    """

    record: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


def evaluate(
    protocol: Protocol,
    recipe: Recipe,
    data: Path,
    *,
    subject: Subject,
    device: torch.device,
    run: Run | None = None,
    kind: Kind | None = None,
    val_subjects: tuple[int, ...] = (),
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate an encoder on a prepared set.

    Args:
        protocol: Of `load_protocol`.
        recipe: Gives the encoder's shape and its view; of the run where there is one.
        data: The prepared set.
        subject: "run" evaluates the run's student and teacher; "random-init" an encoder with
            initial weights; "raw" the plain resampled skeleton.
        device: Where everything computes.
        run: The run, for subject "run".
        kind: What stands for a sample; the method's own features if None.
        val_subjects: Query these training subjects, with the others as the training part, and
            leave the test part alone.
        seed: Of initial weights and of all that is trained by labels.
        report: Called with what is done and in all.
    """
    question = ask(
        protocol, recipe, data, subject=subject, device=device, run=run, kind=kind,
        val_subjects=val_subjects, seed=seed, report=report,
    )  # fmt: skip
    # Of the set as it is stored: a question's card has the skeleton that the encoder knows.
    transfer = transfer_record(protocol, run, read_card(data), data) if run else {}
    noted = transfer["transfer"]["differences"] if transfer and subject == "run" else []
    found = solve(protocol, question)
    card, train, test = question.card, question.train, question.test
    files = {
        name: content
        for name, content in found.files.items()
        if subject == "run" or name != _SCORES
    }
    record = {
        "protocol": protocol.model_dump(mode="json"),
        "variant": protocol.variant,
        "subject": subject,
        "features": "raw coordinates" if subject == "raw" else question.kind,
        "recipe": recipe.name,
        "checkpoint": run.checkpoint().name if run and subject == "run" else None,
        "dataset": card.dataset,
        "split": card.split,
        "part": part_name(val_subjects),
        "samples": {"train": len(train), "test": len(test)},
        "data_digest": card.data_digest,
        "warnings": [
            *card.warnings,
            *unlearnable(card, train.table, test.table),
            *noted,
            *found.warnings,
        ],
        "readings": [
            *(recipe_readings(recipe, run) if found.readings is None else found.readings),
            *protocol.readings(),
            *transfer_readings(protocol, card),
        ],
        "seed": seed,
        "results": found.rows,
        "classes": list(card.classes),
        **transfer,
        **found.record,
        "files": {name: digest(content) for name, content in files.items()},
        "device": str(device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("skelpipe", "torch", "numpy")},
    }
    return Evaluation(record, files)


def ask(
    protocol: Protocol,
    recipe: Recipe,
    data: Path,
    *,
    subject: Subject,
    device: torch.device,
    run: Run | None = None,
    kind: Kind | None = None,
    val_subjects: tuple[int, ...] = (),
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Question:
    """What a protocol is asked, checked before anything is computed; arguments as `evaluate`'s."""
    if isinstance(protocol, Detection):
        card = detection.recordings_card(data, val_subjects)
    else:
        card = read_fitting_card(data, recipe.pipeline)
    if subject == "run" and run is None:
        raise ValueError("subject 'run' needs a run")
    if run is not None and subject == "run" and is_transfer(protocol):
        check_other_set(run, card, data)
    topology, joints = fit_skeleton(run, card, data, any_axes=isinstance(protocol, Detection))
    train = select(data, "train", without=val_subjects)
    part: Part = "train" if val_subjects else "test"
    test = select(data, part, subjects=val_subjects)
    check_apart(data, card, train, test)
    return Question(
        subject=subject,
        recipe=recipe,
        run=run,
        kind=kind or default_kind(recipe),
        folder=data,
        card=card.model_copy(update={"topology": topology}),
        train=open_source(data, train, device, recipe.train.source, joints),
        test=open_source(data, test, device, recipe.train.source, joints),
        seed=seed,
        device=device,
        report=report,
    )


def solve(protocol: Protocol, question: Question) -> Found:
    """What a protocol finds for a question."""
    if isinstance(protocol, Knn):
        return _recognition(knn.answer(protocol, question), question)
    if isinstance(protocol, Linear):
        return _recognition(linear.answer(protocol, question), question)
    if isinstance(protocol, Occlusion):
        return _recognition(occlusion.answer(protocol, question), question)
    if isinstance(protocol, Motion):
        return motion.answer(protocol, question)
    if isinstance(protocol, Finetune):
        found = _recognition(finetune.answer(protocol, question), question)
        return finetune.told(protocol, question, found)
    if isinstance(protocol, Detection):
        return detection.answer(protocol, question)
    assert_never(protocol)


def _recognition(answers: Sequence[Answer], question: Question) -> Found:
    """What networks' answers are worth; the first one's scores are stored."""
    label_N = labels(question.test)
    rows = [row_of(answer, label_N, mutual_of(question.card)) for answer in answers]
    counts = confusion(answers[0].predicted, label_N, question.classes)
    record = {
        "headline": headline(rows[0]["accuracy"]),
        "per_class": per_class(counts),
        "confusion": counts.tolist(),
    }
    scores = pack_scores(question.test.table["key"].to_pylist(), label_N, answers[0].scores)
    return Found(rows, record, files={_SCORES: scores})


def part_name(val_subjects: Sequence[int]) -> str:
    """Which samples are queried, as records name them."""
    return f"validation subjects {list(val_subjects)}" if val_subjects else "test"


def write_result(folder: Path, found: Evaluation) -> Path:
    """Store an evaluation in a run's folder as results/NAME.json, NAME of `result_name`.

    Files go first, to NAME.scores.parquet and the like beside it: the record has their digests.
    What stands there of another data set or split is kept as NAME-DATASET-SPLIT.json.
    """
    record = found.record
    name = result_name(
        record["protocol"]["name"],
        record["subject"],
        record["features"],
        record["part"],
        record.get("variant", ""),
    )
    path = folder / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    _set_aside(path, record)
    for ending, content in found.files.items():
        write_whole(path.with_suffix(f".{ending}"), content)
    write_json(path, record)
    return path


def _set_aside(path: Path, record: dict[str, Any]) -> None:
    """Rename what stands at the path if it is of other data than a record that goes there."""
    before = record
    if path.exists():
        with suppress(UserError):  # of a damaged one: the new record replaces it
            before = record | read_json(path)

    def beside(other: dict[str, Any]) -> str:
        return f"{path.stem}-{other['dataset']}-{other['split']}"

    for file in path.parent.glob(f"{beside(record)}.*"):
        file.unlink()  # the new record replaces it
    if beside(before) != beside(record):
        for file in path.parent.glob(f"{path.stem}.*"):
            file.replace(file.with_name(beside(before) + file.name.removeprefix(path.stem)))


def result_name(protocol: str, subject: str, features: str, part: str, variant: str = "") -> str:
    """File name of a record: PROTOCOL.json of a run; floors, fusions and validation beside it.

    Such as knn.json, knn-random-init.json, knn-raw.json, fused-knn.json; with what tells its
    settings apart (semi-1-random.json); with "-class" or "-both" for features other than the
    default, with "-val" for validation subjects.
    """
    if variant:
        protocol = f"{protocol}-{variant}"
    name = {"run": protocol, "fused": f"fused-{protocol}"}.get(subject, f"{protocol}-{subject}")
    if features in ("class", "both"):
        name += f"-{features}"
    return f"{name}{'' if part == 'test' else '-val'}.json"
