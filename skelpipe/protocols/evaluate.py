"""Run a protocol on a prepared set and record the result with everything that decided it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from skelpipe.checkpoint import Run, check_recipe, load_network, read_json, write_json
from skelpipe.config import Recipe, Settings, apply_changes, build
from skelpipe.errors import UserError
from skelpipe.files import write_whole
from skelpipe.manifest import read_manifest
from skelpipe.methods import Method, build_method
from skelpipe.protocols import knn, linear
from skelpipe.protocols.features import (
    Encode,
    Kind,
    RandomView,
    See,
    default_kind,
    encoders,
    extract,
    raw_features,
    viewer,
)
from skelpipe.protocols.linear import Schedule
from skelpipe.protocols.scores import digest, pack_scores
from skelpipe.random import fold
from skelpipe.shards.card import Card, read_fitting_card
from skelpipe.stream.source import Source, open_source, select

Subject = Literal["run", "random-init", "raw"]
ProtocolName = Literal["knn", "linear", "linear-pcm3"]
PROTOCOLS: tuple[ProtocolName, ...] = ("knn", "linear", "linear-pcm3")


class Knn(Settings):
    """Retrieval with k = 1, test against train, centre crop on both."""

    kind: Literal["protocol"]
    name: Literal["knn"]
    title: str
    k: int = Field(ge=1)
    centre: float = Field(gt=0, le=1)


class Linear(Settings):
    """Linear evaluation: "linear" is MAMP's, "linear-pcm3" PCM3's.

    ``train_view = "centre"`` caches the features of one fixed crop. PCM3 has it on NTU RGB+D; on
    PKU-MMD it takes a random half or more: ``train_view = "random"``.
    """

    kind: Literal["protocol"]
    name: Literal["linear", "linear-pcm3"]
    title: str
    epochs: int = Field(ge=1)
    norm: bool = Field(description="batch norm without affine part before the layer")
    batch: int = Field(ge=2, description="batch norm needs two")
    lr: float = Field(gt=0)
    schedule: Schedule = Field(description="of lr: cosine to 0, or steps to a tenth at drops")
    drops: tuple[int, ...] = Field((), description="epochs, counted from 0, of steps")
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    centre: float = Field(gt=0, le=1)
    train_view: Literal["random", "centre"]
    random: RandomView

    @model_validator(mode="after")
    def _drops_happen(self) -> Self:
        if self.schedule == "cosine" and self.drops:
            raise ValueError("drops are for schedule steps: a cosine has none")
        if any(not 0 < drop < self.epochs for drop in self.drops):
            raise ValueError(
                f"drops at epochs {list(self.drops)} do not all lie within {self.epochs} epochs; "
                "set both"
            )
        return self


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        record: What is written as JSON: protocol, data, and for each network its accuracy.
        scores: Of a run's first network (the student), as `pack_scores` has them; None of floors.
    """

    record: dict[str, Any]
    scores: bytes | None


def load_protocol(name: str, changes: Sequence[str] = ()) -> Knn | Linear:
    """A packaged protocol with ``key=value`` changes; unknown names suggest the nearest."""
    table = apply_changes(read_manifest("protocol", name), changes)
    model: type[Knn] | type[Linear] = Knn if table["name"] == "knn" else Linear
    return build(model, table, what=f"protocol '{name}'")


def evaluate(
    protocol: Knn | Linear,
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
    """Evaluate frozen features on a prepared set.

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
        seed: Of initial weights and of the probe.
        report: Called with epochs done and in all.
    """
    card = read_fitting_card(data, recipe.pipeline)
    train_table = select(data, "train", without=val_subjects)
    if val_subjects:
        test_table = select(data, "train", subjects=val_subjects)
    else:
        test_table = select(data, "test")
    train_set = open_source(data, train_table, device, recipe.train.source)
    test_set = open_source(data, test_table, device, recipe.train.source)

    kind = kind or default_kind(recipe)
    networks = _networks(subject, recipe, card, run, kind, seed, device)
    see = viewer(recipe, card.topology, protocol.centre)

    def centre_features(source: Source) -> list[Tensor]:
        found = extract(source, list(networks.values()), see)
        _check_finite(found, source)
        return found

    test_features = centre_features(test_set)
    train_label, test_label = labels(train_set), labels(test_set)
    classes = len(card.classes)
    rows: list[dict[str, Any]] = []
    predictions: list[Tensor] = []
    if isinstance(protocol, Knn):
        knn.check_gallery(protocol.k, len(train_set))
        galleries = centre_features(train_set)
        if subject == "run":
            score_NC = knn.class_scores(
                test_features[0], galleries[0], train_label, classes, protocol.k
            )
        for name, query, gallery in zip(networks, test_features, galleries, strict=True):
            neighbours = knn.nearest(query, gallery, protocol.k)
            predictions.append(knn.predict(train_label[neighbours], classes))
            rows.append({"network": name, "accuracy": accuracy(predictions[-1], test_label)})
    else:
        random = viewer(recipe, card.topology, protocol.centre, protocol.random)
        probes = linear.fit(
            _epochs(protocol, list(networks.values()), train_set, see, random, seed),
            train_label,
            test_features,
            test_label,
            classes=classes,
            epochs=protocol.epochs,
            batch=protocol.batch,
            lr=protocol.lr,
            momentum=protocol.momentum,
            weight_decay=protocol.weight_decay,
            norm=protocol.norm,
            schedule=protocol.schedule,
            drops=protocol.drops,
            seed=seed,
            report=lambda epoch: report(epoch, protocol.epochs),
        )
        score_NC = probes[0].score_NC
        for name, probe in zip(networks, probes, strict=True):
            predictions.append(probe.predicted_N)
            rows.append(
                {
                    "network": name,
                    "accuracy": accuracy(probe.predicted_N, test_label),
                    "best_epoch_peer_convention": {
                        "accuracy": 100 * probe.best,
                        "epoch": probe.best_epoch,
                    },
                }
            )
    scores = None
    if subject == "run":
        scores = pack_scores(test_set.table["key"].to_pylist(), test_label, score_NC)
    record = {
        "protocol": protocol.model_dump(mode="json"),
        "subject": subject,
        "features": "raw coordinates" if subject == "raw" else kind,
        "recipe": recipe.name,
        "checkpoint": run.checkpoint().name if run and subject == "run" else None,
        "dataset": card.dataset,
        "split": card.split,
        "part": part_name(val_subjects),
        "samples": {"train": len(train_set), "test": len(test_set)},
        "data_digest": card.data_digest,
        "warnings": list(card.warnings),
        "readings": recipe.readings(),
        "seed": seed,
        "results": rows,
        "scores_sha256": digest(scores) if scores else None,
        "classes": list(card.classes),
        "confusion": _confusion(predictions[0], test_label, classes),
        "device": str(device),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("skelpipe", "torch", "numpy")},
    }
    return Evaluation(record, scores)


def part_name(val_subjects: Sequence[int]) -> str:
    """Which samples are queried, as records name them."""
    return f"validation subjects {list(val_subjects)}" if val_subjects else "test"


def load_student(run: Run, card: Card, device: torch.device) -> Method:
    """The run's method with the student and teacher of its newest complete checkpoint.

    Raises:
        UserError: The set has another skeleton than the run was trained on; a damaged checkpoint.
    """
    joints = len(card.topology.joints)
    if run.data.get("joints", joints) != joints:
        raise UserError(
            "the set has another skeleton than the run was trained on",
            found=f"{joints} joints ({card.topology.name}) in {card.dataset}",
            expected=f"{run.data['joints']} joints",
            remedy="evaluate on a set of the run's own skeleton",
        )
    method = build_method(run.recipe, card.topology, int(run.data["seed"]))
    checkpoint = run.checkpoint()
    check_recipe(read_json(checkpoint / "state.json"), run.recipe)
    load_network(checkpoint, "student", method.student)
    load_network(checkpoint, "teacher", method.teacher)
    return method.to(device).eval()


def _networks(
    subject: Subject,
    recipe: Recipe,
    card: Card,
    run: Run | None,
    kind: Kind,
    seed: int,
    device: torch.device,
) -> dict[str, Encode]:
    """What makes features, by name; the first is the headline (S28: the student)."""
    if subject == "raw":
        return {"raw skeleton": raw_features}
    if subject == "random-init":
        method = build_method(recipe, card.topology, seed).to(device).eval()
        return {"untrained encoder": encoders(method, kind)["student"]}
    if run is None:
        raise ValueError("subject 'run' needs a run")
    return encoders(load_student(run, card, device), kind)


def _epochs(
    protocol: Linear, encode: list[Encode], source: Source, see: See, random: See, seed: int
) -> Iterator[list[Tensor]]:
    """Training features of each epoch: of fresh random views, or of one fixed crop, once."""
    row_N = torch.as_tensor(source.table["row"].to_numpy().copy())
    if protocol.train_view == "centre":
        features = extract(source, encode, see)
        while True:
            yield features
    for epoch in range(protocol.epochs):
        yield extract(source, encode, random, key_N=fold(seed, epoch, row_N))


def labels(source: Source) -> Tensor:
    """Classes of a source's samples, shape (N,), on its device."""
    return torch.as_tensor(source.table["label"].to_numpy().copy(), dtype=torch.int64).to(
        source.device
    )


def _check_finite(features: list[Tensor], source: Source) -> None:
    for feature_ND in features:
        wrong = (~feature_ND.isfinite().all(1)).nonzero()[:, 0].tolist()
        if wrong:
            keys = [source.table["key"][place].as_py() for place in wrong[:5]]
            raise UserError(
                f"{len(wrong)} samples have features that are not finite",
                found=", ".join(keys),
                remedy="the run diverged, or these samples hold no body in the view",
            )


def accuracy(predicted_N: Tensor, label_N: Tensor) -> float:
    """Top-1 accuracy in per cent."""
    return 100 * (predicted_N == label_N).double().mean().item()


def _confusion(predicted_N: Tensor, label_N: Tensor, classes: int) -> list[list[int]]:
    """Counts: rows are true classes, columns predicted ones."""
    cells = torch.bincount(label_N * classes + predicted_N, minlength=classes**2)
    table: list[list[int]] = cells.view(classes, classes).tolist()
    return table


def write_result(folder: Path, found: Evaluation) -> Path:
    """Store an evaluation in a run's folder as results/NAME.json, NAME of `result_name`.

    Scores go first, to NAME.scores.parquet beside it: the record has their digest. What stands
    there of another data set or split is kept as NAME-DATASET-SPLIT.json.
    """
    record = found.record
    name = result_name(
        record["protocol"]["name"], record["subject"], record["features"], record["part"]
    )
    path = folder / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    _set_aside(path, record)
    if found.scores is not None:
        write_whole(path.with_suffix(".scores.parquet"), found.scores)
    write_json(path, record)
    return path


def _set_aside(path: Path, record: dict[str, Any]) -> None:
    """Rename what stands at the path if it is of other data than a record that goes there."""

    def beside(other: dict[str, Any]) -> Path:
        return path.with_stem(f"{path.stem}-{other['dataset']}-{other['split']}")

    before = read_json(path) if path.exists() else record
    for suffix in (".scores.parquet", ".json"):
        beside(record).with_suffix(suffix).unlink(missing_ok=True)  # the new record replaces it
        if beside(before) != beside(record) and path.with_suffix(suffix).exists():
            path.with_suffix(suffix).replace(beside(before).with_suffix(suffix))


def result_name(protocol: str, subject: str, features: str, part: str) -> str:
    """File name of a record: PROTOCOL.json of a run; floors, fusions and validation beside it.

    Such as knn.json, knn-random-init.json, knn-raw.json, fused-knn.json; with "-class" or "-both"
    for features other than the default, with "-val" for validation subjects.
    """
    name = {"run": protocol, "fused": f"fused-{protocol}"}.get(subject, f"{protocol}-{subject}")
    if features in ("class", "both"):
        name += f"-{features}"
    return f"{name}{'' if part == 'test' else '-val'}.json"
