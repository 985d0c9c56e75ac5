"""What a downstream protocol says: its numbers, as its manifest has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, TypeAlias

from pydantic import Field, PositiveInt, field_validator, model_validator

from skelpipe.config import Range, Recipe, Settings, SLiMRecipe, apply_changes, build
from skelpipe.errors import UserError
from skelpipe.manifest import read_manifest

Schedule = Literal["cosine", "steps"]
"""Of a rate: along a cosine, or in steps to a tenth."""

PROTOCOLS = (
    "knn",
    "linear",
    "linear-cmd",
    "linear-pcm3",
    "finetune",
    "finetune-cmd",
    "semi",
    "semi-cmd",
    "transfer-finetune",
    "transfer-cmd",
    "transfer-linear",
    "occlusion-spatial",
    "occlusion-temporal",
    "motion",
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

    @property
    def variant(self) -> str:
        """Part of a result's file name, where a protocol has results under several settings."""
        return ""

    def readings(self) -> list[str]:
        """What is our reading of the protocol, for every table; recipes have theirs."""
        return []


class Recognition(AnyProtocol):
    """What a sample is recognised by: its centre crop."""

    centre: float = Field(0.95, gt=0, le=1, description="share of a recording in its centre crop")


class Knn(Recognition):
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
                f"set both, such as --set 'drops=[{max(2 * self.epochs // 3, 1)}]'"
            )
        return self


class Probe(Recognition, Scheduled):
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

    def readings(self) -> list[str]:
        if not self.transfer:
            return []
        return [
            "S30 transfer by a linear layer on the frozen encoder, as SLiM's Table 8 says of "
            "itself; MAMP's and CMD's numbers in that table are of fine-tuned encoders"
        ]


class Occlusion(Probe):
    """Linear evaluation on occluded views, of an encoder that was trained on clean ones.

    ``ratio`` is the share of body parts or of frames that is zeroed.
    """

    task: Literal["occlusion"]
    occluded: Literal["spatial", "temporal"]
    ratio: Range = (0.3, 0.7)

    @field_validator("ratio")
    @classmethod
    def _is_a_share(cls, ratio: Range) -> Range:
        if ratio[1] > 1:
            raise ValueError("a share is at most 1")
        return ratio

    def readings(self) -> list[str]:
        least, most = self.ratio
        what = (
            "parts of the body, throughout"
            if self.occluded == "spatial"
            else "frames, in one block at a random place"
        )
        return [
            f"P15 occlusion: {least:g} to {most:g} of {what}; zeros after crop and resizing and "
            "before bones or motion, by the sample's name, for all bodies, in training and test",
            "P18 the probe is PCM3's without norm"
            if not self.norm
            else "a batch norm in the probe",
            "P21 the drop is clean minus occluded; the paper's is the mean over xsub and xview",
        ]


class Finetune(Recognition, Scheduled):
    """The encoder and a head on it, trained by all labels or some.

    ``share`` and ``subset`` say which samples have labels: the lowest keyed hashes of all names, or
    of each class (`subsets.draw`); ``runs`` of how many trainings, each with a seed and a subset of
    its own, results are the mean. ``warmup`` is a share of the run, so that short runs leave it.
    ``head`` "mamp" is an MLP on what is averaged over time and bodies alone, "linear" a layer on
    the method's features. Layer i of the encoder learns at ``layer_decay`` to the power of how many
    lie above it; that does not hold for an encoder that starts untrained.
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
    warmup: float = Field(0.0, ge=0, lt=1)
    layer_decay: float = Field(1.0, gt=0, le=1)
    random: RandomView

    @model_validator(mode="after")
    def _cosine_is_warmed(self) -> Self:
        if self.schedule == "steps" and (self.warmup or self.min_lr):
            raise ValueError("warmup and min_lr are for schedule cosine: steps have neither")
        return self

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


class Motion(AnyProtocol):
    """Motion prediction: the frames that follow those that an encoder has seen.

    The decoder and its numbers are Martinez's. His rate falls to ``lr_decay`` of itself after every
    ``decay_steps``; ``steps`` is how many there are in all, 100,000 of his. ``joint_hidden`` is for
    a transformer, whose joints share one small GRU. ``encoder`` says whether the encoder is trained
    along with the decoder, which neither paper nor code tells.
    """

    task: Literal["motion"]
    observed: int = Field(50, ge=2, description="frames that the encoder sees")
    predicted: int = Field(10, ge=1, description="frames after them")
    encoder: Literal["frozen", "trained"] = "frozen"
    hidden: int = Field(1024, ge=1, description="of the decoder's GRU")
    joint_hidden: int = Field(256, ge=1, description="of the one that joints share")
    steps: int = Field(100_000, ge=1)
    batch: int = Field(16, ge=1, description="global")
    lr: float = Field(0.005, gt=0, description="of SGD without momentum")
    lr_decay: float = Field(0.95, gt=0, le=1)
    decay_steps: int = Field(10_000, ge=1)
    clip: float = Field(5.0, gt=0, description="largest norm of the gradient")

    @property
    def variant(self) -> str:
        return "" if self.encoder == "frozen" else "trained"


Protocol: TypeAlias = Knn | Linear | Occlusion | Finetune | Detection | Motion
_TASKS: dict[str, type[Protocol]] = {
    "knn": Knn,
    "linear": Linear,
    "occlusion": Occlusion,
    "finetune": Finetune,
    "motion": Motion,
    "detection": Detection,
}


def own_probe(recipe: Recipe) -> str:
    """The linear evaluation of a method's paper, by name."""
    return "linear" if isinstance(recipe, SLiMRecipe) else "linear-pcm3"


def load_protocol(name: str, changes: Sequence[str] = ()) -> Protocol:
    """A packaged protocol with ``key=value`` changes; unknown names suggest the nearest."""
    table: dict[str, Any] = apply_changes(read_manifest("protocol", name), changes)
    task = table.get("task")
    if task not in _TASKS:
        raise UserError(
            f"protocol '{name}' has no such task", place="task", found=task, expected=list(_TASKS)
        )
    return build(_TASKS[task], table, what=f"protocol '{name}'")
