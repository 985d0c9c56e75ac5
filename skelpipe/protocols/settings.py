"""What a downstream protocol says: its numbers, as its manifest has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias

from pydantic import Field, PositiveInt, model_validator

from skelpipe.config import Range, Settings, apply_changes, build
from skelpipe.errors import UserError
from skelpipe.manifest import read_manifest

Schedule = Literal["cosine", "steps"]
"""Of a rate: along a cosine, or in steps to a tenth."""

PROTOCOLS = (
    "knn",
    "linear",
    "linear-pcm3",
    "detection",
)
"""Those that are packaged, by name."""


class RandomView(Settings):
    """A training view of a probe: a random crop, turned about all three axes.

    MAMP's by default. ``shortest`` is its clamp of the crop to 64 frames; ``rotation`` is in
    radians.
    """

    ratio: Range = (0.5, 1.0)
    shortest: int = 64
    rotation: float = 0.3


class AnyProtocol(Settings):
    """What all protocols say.

    ``task`` decides what is done, ``name`` by whose numbers.
    """

    kind: Literal["protocol"]
    name: str
    title: str
    centre: float = Field(0.95, gt=0, le=1, description="share of a recording in its centre crop")

    @property
    def variant(self) -> str:
        """Part of a result's file name, where a protocol has results under several settings."""
        return ""


class Knn(AnyProtocol):
    """Retrieval: test samples are queries, training samples the gallery."""

    task: Literal["knn"]
    k: int = Field(ge=1)


class Scheduled(AnyProtocol):
    """What is trained by labels: for how long, and at which rate.

    A cosine goes to ``min_lr`` with every step, after a linear warm-up; steps are a tenth from the
    start of each epoch of ``drops`` (counted from 0) on.
    """

    epochs: int = Field(ge=1)
    batch: int = Field(ge=2, description="global; batch norm needs two")
    lr: float = Field(gt=0)
    schedule: Schedule
    drops: tuple[int, ...] = Field((), description="epochs, counted from 0, of steps")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0, ge=0)

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


class Probe(Scheduled):
    """One linear layer on frozen features, trained by SGD.

    ``train_view = "centre"`` caches the features of one fixed crop. PCM3 has it on NTU RGB+D; on
    PKU-MMD it takes a random half or more: ``train_view = "random"``.
    """

    norm: bool = Field(description="batch norm without affine part before the layer")
    train_view: Literal["random", "centre"]
    random: RandomView


class Linear(Probe):
    """Linear evaluation.

    ``transfer`` says that the set is another than the one the run was trained on.
    """

    task: Literal["linear"]
    transfer: bool = False


class Occlusion(Probe):
    """Linear evaluation on occluded views, of an encoder that was trained on clean ones.

    ``ratio`` is the share of body parts or of frames that is zeroed.
    """

    task: Literal["occlusion"]
    occluded: Literal["spatial", "temporal"]
    ratio: Range = (0.3, 0.7)


class Finetune(Scheduled):
    """The encoder and a head on it, trained by all labels or some.

    ``share`` and ``subset`` say which samples have labels: the lowest keyed hashes of all names, or
    of each class; ``runs`` how many such subsets results are the mean of. ``warmup`` is in epochs.
    ``head`` "mamp" is an MLP on what is averaged over time and bodies alone, "linear" a layer on
    the method's features. ``layer_decay`` does not hold for an encoder that starts untrained.
    """

    task: Literal["finetune"]
    transfer: bool = False
    share: float = Field(1.0, gt=0, le=1)
    subset: Literal["random", "balanced"] = "random"
    runs: int = Field(1, ge=1)
    head: Literal["mamp", "linear"]
    hidden: int = Field(2048, ge=1, description="of head mamp")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what enters the head")
    drop_path: float = Field(0.0, ge=0, lt=1, description="of the last block, linear from 0")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    optimiser: Literal["adamw", "sgd"]
    min_lr: float = Field(0.0, ge=0)
    warmup: float = Field(0.0, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    random: RandomView

    @property
    def variant(self) -> str:
        if self.share == 1:
            return ""
        return f"{100 * self.share:g}-{self.subset}"


class Detection(Scheduled):
    """Actions in whole recordings: a layer on the encoder, trained on windows, asked every frame.

    Windows have ``window`` frames at a stride drawn from ``strides``, or at ``test_stride``.
    ``encoder`` "frozen" trains the layer alone. ``origin`` "window" moves the topology's centre, of
    the main body in the window's first frame, to 0; "camera" leaves metres as recorded, which suits
    an encoder with an input norm. At the ``borders`` of a test recording windows are shifted
    inside, or their first or last frame is repeated, which is not known of PCM3's; training windows
    are shifted. ``smooth`` is the radius of `detection_segments.smooth`, "as_published" leaves out
    the last frame. Frames of a probability of ``threshold`` or more that anything is done make
    segments.
    """

    task: Literal["detection"]
    centre: float = Field(1.0, ge=1, le=1, description="whole recordings are seen")
    encoder: Literal["trained", "frozen"]
    window: int = Field(ge=1)
    strides: tuple[PositiveInt, ...] = Field(min_length=1)
    test_stride: int = Field(ge=1)
    per_recording: int = Field(ge=1, description="windows of a recording in an epoch")
    origin: Literal["camera", "window"] = "camera"
    borders: Literal["shift", "repeat"] = "shift"
    nesterov: bool = True
    smooth: int = Field(ge=0)
    smoothing: Literal["whole", "as_published"] = "whole"
    threshold: float = Field(gt=0, le=1)

    @property
    def variant(self) -> str:
        told = {"frozen": self.encoder == "frozen", "window": self.origin == "window"}
        return "-".join(name for name, is_so in told.items() if is_so)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        return self


Protocol: TypeAlias = Knn | Linear | Occlusion | Finetune | Detection
_TASKS: dict[str, type[Protocol]] = {
    "knn": Knn,
    "linear": Linear,
    "occlusion": Occlusion,
    "finetune": Finetune,
    "detection": Detection,
}


def load_protocol(name: str, changes: Sequence[str] = ()) -> Protocol:
    """A packaged protocol with ``key=value`` changes; unknown names suggest the nearest."""
    table: dict[str, Any] = apply_changes(read_manifest("protocol", name), changes)
    task = table.get("task")
    if task not in _TASKS:
        raise UserError(
            f"protocol '{name}' has no such task", place="task", found=task, expected=list(_TASKS)
        )
    return build(_TASKS[task], table, what=f"protocol '{name}'")
