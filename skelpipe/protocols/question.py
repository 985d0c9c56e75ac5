"""What a protocol is asked: an encoder, on a training part and a test part of a prepared set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from skelpipe.checkpoint import (
    Run,
    check_recipe,
    has_network,
    load_network,
    read_json,
)
from skelpipe.config import PCM3Recipe, Recipe
from skelpipe.errors import UserError
from skelpipe.models.encoder import Encoder, build_encoder
from skelpipe.protocols.features import (
    Encode,
    Hide,
    Kind,
    encode_by,
    extract,
    raw_features,
    viewer,
)
from skelpipe.protocols.settings import RandomView
from skelpipe.shards.card import Card
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Source

Subject = Literal["run", "random-init", "raw"]
Network = Literal["student", "teacher"]


@dataclass(frozen=True)
class Question:
    """A subject on a prepared set.

    Attributes:
        subject: "run": the run's student and teacher; "random-init": an encoder with initial
            weights; "raw": the plain resampled skeleton.
        recipe: Gives the encoder's shape and its view.
        run: For subject "run".
        kind: What stands for a sample.
        folder: The prepared set.
        card: Its card; of its skeleton that part which the encoder knows.
        train, test: What is learned from, and what is asked.
        seed: Of initial weights and of all that is trained by labels.
        device: Where everything computes.
        report: Called with what is done and what there is to do in all.
        hide: What is hidden of views before features are made of them; None hides nothing.
    """

    subject: Subject
    recipe: Recipe
    run: Run | None
    kind: Kind
    folder: Path
    card: Card
    train: Source
    test: Source
    seed: int
    device: torch.device
    report: Callable[[int, int], None] = lambda done, total: None
    hide: Hide | None = None

    @property
    def topology(self) -> Topology:
        return self.card.topology

    @property
    def classes(self) -> int:
        return len(self.card.classes)

    def encoder(self) -> Encoder:
        """The encoder itself, to be trained further: the run's student, or an untrained one."""
        if self.subject == "raw":
            raise UserError(
                "the raw skeleton has no encoder to train", remedy="leave out --raw-features"
            )
        if self.subject == "random-init":
            return untrained_encoder(self.recipe, self.topology, self.seed).to(self.device)
        assert self.run is not None
        return load_encoder(self.run, self.topology).to(self.device)

    def networks(self) -> dict[str, Encode]:
        """What makes features, by name; the first is the headline (S28: the student)."""
        if self.subject == "raw":
            return {"raw skeleton": raw_features}
        if self.subject == "random-init":
            return {"untrained encoder": encode_by(self.encoder().eval(), self.kind)}
        assert self.run is not None
        names = ["student", *(["teacher"] if _has_teacher(self.run) else [])]
        return {
            name: encode_by(
                load_encoder(self.run, self.topology, name).to(self.device).eval(), self.kind
            )
            for name in names
        }

    def centre_features(
        self, source: Source, networks: dict[str, Encode], centre: float
    ) -> list[Tensor]:
        """Each network's features of the centre crop, shape (N, D).

        Raises:
            UserError: Some are not finite; their samples are named.
        """
        see = viewer(self.recipe, self.topology, centre, hide=self.hide)
        found = extract(source, list(networks.values()), see)
        check_finite(found, source)
        return found

    def random_features(
        self, source: Source, networks: dict[str, Encode], random: RandomView, key_N: Tensor
    ) -> list[Tensor]:
        """Each network's features of a random view, by the samples' keys."""
        see = viewer(self.recipe, self.topology, 1.0, random, self.hide)
        found = extract(source, list(networks.values()), see, key_N=key_N)
        check_finite(found, source)
        return found


@dataclass(frozen=True)
class Answer:
    """What a network answers on N samples, by each training of whatever is trained by labels.

    Attributes:
        network: Its name.
        scores: Of each training, shape (N, classes).
        predicted: Of each training, shape (N,): the class of the largest score, or by a rule of the
            protocol's own among equal ones.
        more: What its row of the record has beside the accuracy.
    """

    network: str
    scores: Sequence[Tensor]
    predicted: Sequence[Tensor]
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a task found.

    Attributes:
        rows: The record's "results", the headline first.
        record: What else the record has.
        warnings: What the record warns of beside what the set does.
        readings: In place of the recipe's, where a task reads it otherwise.
        files: Stored beside the record, by what their names end with: "scores.parquet".
    """

    rows: list[dict[str, Any]]
    record: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    readings: list[str] | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def recipe_readings(recipe: Recipe, run: Run | None) -> list[str]:
    """How a recipe is read; of an imported run its own readings: it was trained by others."""
    if run is not None and "imported" in run.data:
        return list(run.data["readings"])
    return recipe.readings()


def load_encoder(run: Run, topology: Topology, network: str = "student") -> Encoder:
    """An encoder of a run's newest complete checkpoint, on the CPU.

    Args:
        run: With a checkpoint.
        topology: Of the run, as `transfer.fit_skeleton` finds it in a set.
        network: "student" or "teacher".

    Raises:
        UserError: The topology has other joints than the run's; a teacher that the run never moved;
            a damaged checkpoint.
    """
    recorded = run.data.get("topology")
    joints = recorded["joints"] if recorded else run.data.get("joints")
    if joints not in (None, list(topology.joints), len(topology.joints)):
        raise UserError(
            "the set has another skeleton than the run was trained on",
            found=f"{len(topology.joints)} joints ({topology.name})",
            expected=joints if isinstance(joints, int) else ", ".join(joints),
            remedy="evaluate it with `skelpipe evaluate`, which maps joints by their names, or on "
            "a set of the run's own skeleton",
        )
    checkpoint = run.checkpoint()
    if network == "teacher" and not _has_teacher(run):
        raise UserError(
            "the run has no teacher", file=run.folder, remedy="--network student, or leave it out"
        )
    check_recipe(read_json(checkpoint / "state.json"), run.recipe)
    encoder = build_encoder(run.recipe, topology)
    load_network(checkpoint, network, encoder, part="encoder.")
    return encoder


def untrained_encoder(recipe: Recipe, topology: Topology, seed: int) -> Encoder:
    """The encoder that a run of this seed starts from: methods draw it first.

    An encoder that is only imported has no method here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(recipe, topology)


def _has_teacher(run: Run) -> bool:
    """Whether the run's teacher was ever moved: PCM3's is for its contrast alone."""
    recipe = run.recipe
    moved = not isinstance(recipe, PCM3Recipe) or bool(recipe.loss.positives)
    return moved and has_network(run.checkpoint(), "teacher")


def check_finite(features: list[Tensor], source: Source, first: int = 0) -> None:
    """Raise a UserError that names the samples whose features are not finite.

    Features are those of all samples of the source, or of a block of them from ``first`` on.
    """
    for feature_ND in features:
        wrong = (~feature_ND.isfinite().all(1)).nonzero()[:, 0].tolist()
        if wrong:
            keys = [source.table["key"][first + place].as_py() for place in wrong[:5]]
            raise UserError(
                f"{len(wrong)} samples have features that are not finite",
                found=", ".join(keys),
                remedy="the run diverged, or these samples hold no body in the view",
            )


def labels(source: Source) -> Tensor:
    """Classes of a source's samples, shape (N,), on its device."""
    return torch.as_tensor(source.table["label"].to_numpy().copy(), dtype=torch.int64).to(
        source.device
    )
