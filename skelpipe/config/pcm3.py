"""PCM³'s settings and recipe: the paper's numbers, the released code's where it is mute."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from skelpipe.config import recipe
from skelpipe.config.settings import Range, Settings, Temperature

Positive = Literal["intra", "inter", "mask", "predict"]
"""A view whose embedding is drawn to the key (Eq. 5)."""


class Views(Settings):
    """What of a recording is seen: each view has a temporal crop of its own (Sec. 4.2)."""

    frames: int = Field(64, ge=2, description="of a view, by linear interpolation of its crop")
    ratio: Range = Field((0.1, 1.0), description="crop's share of the recording")
    shortest: int = Field(64, ge=1, description="fewest frames of a crop, if there are as many")
    bodies: int = Field(2, ge=1, description="that have channels; absent ones are zeros")
    modality: Literal["joint", "bone", "motion"] = "joint"
    shared: bool = Field(
        True, description="one mask and one mix for the whole batch, as released; else a sample"
    )


class Augment(Settings):
    """Joint corruption or shear of intra views, shear of the masked one (P7, P8)."""

    corruption: float = Field(0.5, ge=0, le=1, description="probability; otherwise shear")
    corrupted: float = Field(0.6, gt=0, le=1, description="share of joints: 15 of 25")
    zeroed: float = Field(
        0.5, ge=0, le=1, description="probability that corrupted joints are zero, not transformed"
    )
    shear: float = Field(1.0, ge=0, description="largest entry off the diagonal")


class Mask(Settings):
    """Topology-based masking (Sec. 3.2); the second body stays visible (P8)."""

    kind: Literal["topology", "random"] = Field(
        "topology", description="random: single joints of single frames (P20)"
    )
    ratio: float = Field(0.6, gt=0, lt=1, description="of parts: int(5 ratio) of five (P5)")
    clips: int = Field(8, ge=1, description="stretches of frames that are masked alike")


class Mix(Settings):
    """CutMix, ResizeMix or Mixup with another sample of the batch (Sec. 3.1)."""

    cut: float = Field(0.5, ge=0, le=1, description="probability of CutMix")
    resize: float = Field(0.25, ge=0, le=1, description="of ResizeMix; the rest is Mixup")
    parts: tuple[int, int] = Field((2, 3), description="fewest and most body parts of a region")
    steps: int = Field(16, ge=1, description="that a view's frames are divided into")
    length: tuple[int, int] = Field((7, 11), description="fewest and most steps of a region")


class Encoder(Settings):
    """The GRU encoder (Sec. 4.2, P1)."""

    layers: int = Field(3, ge=1)
    hidden: int = Field(1024, ge=1, description="of each of the two GRUs of a layer")
    direction: Literal["forward", "both"] = Field(
        "forward", description="of the second GRU in time; both: a textbook bidirectional one"
    )


class Decoder(Settings):
    """The decoder of masked prediction (Sec. 4.2)."""

    hidden: int = Field(512, ge=1)
    layers: int = Field(2, ge=1)


class Prompts(Settings):
    """Dual prompts (Sec. 3.4)."""

    domain: Literal["after_bn", "before_bn", "none"] = Field(
        "after_bn", description="of the input norm; before it, as released, they do nothing (P17)"
    )
    task: bool = True
    width: int = Field(128, ge=1, description="channels of each half of the features (P6)")


class Loss(Settings):
    """The objective (Eqs. 1-7)."""

    positives: tuple[Positive, ...] = ("intra", "inter", "mask", "predict")
    mask_weight: float = Field(40.0, ge=0, description="lambda_m, of metres squared (P14)")
    kl_weight: float = Field(1.0, ge=0, description="lambda_kl")
    detach_predicted: bool = Field(
        False, description="no contrastive gradient reaches the decoder (Sec. 3.3)"
    )
    embedding: int = Field(128, ge=1, description="dimensions that are compared")
    temperature: Temperature = 0.07
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.05
    queue: int = Field(16384, ge=1, description="K, keys kept as negatives")


class Optim(Settings):
    """SGD with one drop of the learning rate (Sec. 4.2)."""

    lr: float = Field(0.02, gt=0)
    momentum: float = Field(0.9, gt=0, lt=1, description="SGD's")
    weight_decay: float = Field(1e-4, ge=0)
    drop_after: float = Field(350 / 450, gt=0, le=1, description="share of the run")
    drop_to: float = Field(0.1, gt=0, le=1, description="share of lr after the drop")
    clip: float = Field(0.0, ge=0, description="gradient norm of each sub-network; 0: none")
    key_momentum: float = Field(0.999, ge=0, le=1, description="of the key encoder's average")


class Train(recipe.Train):
    """As long and as large as the paper's (Sec. 4.2)."""

    epochs: int = Field(450, ge=1)
    batch: int = Field(128, ge=1, description="global batch")


class PCM3Recipe(recipe.AnyRecipe):
    """A run of PCM³."""

    method: Literal["pcm3"] = "pcm3"
    pipeline: str = "agcn"
    train: Train = Train()
    views: Views = Views()
    augment: Augment = Augment()
    mask: Mask = Mask()
    mix: Mix = Mix()
    encoder: Encoder = Encoder()
    decoder: Decoder = Decoder()
    prompts: Prompts = Prompts()
    loss: Loss = Loss()
    optim: Optim = Optim()

    @model_validator(mode="after")
    def _frames_divide(self) -> Self:
        frames = self.views.frames
        for name, count in (("mask.clips", self.mask.clips), ("mix.steps", self.mix.steps)):
            if frames % count:
                raise ValueError(f"views of {frames} frames do not divide into {name} {count}")
        fewest, most = self.mix.length
        if not 1 <= fewest <= most <= self.mix.steps:
            raise ValueError(f"mix.length {fewest} to {most} does not fit mix.steps")
        if not 1 <= self.mix.parts[0] <= self.mix.parts[1]:
            raise ValueError("mix.parts is two positive numbers, the smaller one first")
        if self.mix.cut + self.mix.resize > 1:
            raise ValueError("mix.cut and mix.resize are probabilities of a sum of at most 1")
        return self

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        loss, train = self.loss, self.train
        if loss.positives and loss.queue < train.batch:
            raise ValueError(
                f"a queue (loss.queue) of {loss.queue} does not hold the keys of a batch of "
                f"{train.batch}"
            )
        if "inter" in loss.positives and train.batch < 3:
            raise ValueError(f"mixing needs a batch of three at least, not {train.batch}")
        if train.micro_batch and train.micro_batch < train.batch:
            raise ValueError(
                "train.micro_batch must be 0 for PCM3: its batch norms take their statistics of "
                "the whole batch; share it among ranks instead"
            )
        if train.compile:
            raise ValueError("train.compile must be false for PCM3: a GRU gains nothing by it")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        loss = self.loss
        if not loss.positives and not loss.mask_weight:
            raise ValueError(
                "loss.positives is empty and loss.mask_weight 0: there is nothing to learn"
            )
        if len(set(loss.positives)) < len(loss.positives):
            raise ValueError("loss.positives names a view twice")
        if self.prompts.task and self.prompts.width > self.encoder.hidden:
            raise ValueError(
                f"prompts.width {self.prompts.width} is larger than encoder.hidden "
                f"{self.encoder.hidden}"
            )
        return self

    def readings(self) -> list[str]:
        """The paper's gaps as this run reads them ("our reading"), for every table."""
        loss, prompts, optim = self.loss, self.prompts, self.optim
        masked = loss.mask_weight > 0 or bool({"mask", "predict"} & set(loss.positives))
        forward = self.encoder.direction == "forward"
        shared = "the batch" if self.views.shared else "a sample"
        found = {
            "P1 each layer: two GRUs "
            + ("forward in time" if forward else "in opposite directions in time"): True,
            "P2 recordings cut to their first 300 frames": True,
            "P3 masked error a coordinate, against the sheared view": loss.mask_weight > 0,
            "P4 distillation as KL over the whole queue": bool(loss.positives and loss.kl_weight),
            f"P5 {self.mask.kind} mask, ratio {self.mask.ratio:g}": masked,
            f"P6 task prompts: a window of {prompts.width} in each half": prompts.task,
            f"P7 shear or joint corruption (probability {self.augment.corruption:g}), amplitude "
            f"{self.augment.shear:g}": bool(loss.positives),
            f"P8 masked view: own crop, shear alone, second body visible, a mask for {shared}": (
                masked
            ),
            "P13 clean keys alone enter the queue": bool(loss.positives),
            f"P14 lambda_m {loss.mask_weight:g} on metres squared of pipeline {self.pipeline}": (
                loss.mask_weight > 0
            ),
            "P17 domain prompts after the input norm": prompts.domain == "after_bn",
            "P17 domain prompts before the input norm, as released: without effect": (
                prompts.domain == "before_bn"
            ),
            "P20 random mask: joints of single frames": masked and self.mask.kind == "random",
            f"P22 {self.train.epochs} epochs, rate x{optim.drop_to:g} after "
            f"{100 * optim.drop_after:.0f} % of them; published for NTU RGB+D 60 alone": True,
            f"{self.views.modality} stream, taken after crop and augmentation": (
                self.views.modality != "joint"
            ),
        }
        return [reading for reading, active in found.items() if active]
