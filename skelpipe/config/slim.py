"""SLiM's settings; its recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from skelpipe.config.recipe import AnyRecipe
from skelpipe.config.settings import FromTo, Range, Settings, Temperature


class LocalView(Settings):
    """A size of local view: its frames, and its share of the anchor's interval (S15)."""

    frames: int = Field(ge=2)
    ratio: Range


class Views(Settings):
    """Hierarchical temporal sampling (SLiM, Appendix 0.B)."""

    frames: int = Field(64, ge=2, description="frames of a global view")
    ratio: Range = (0.5, 1.0)
    local: tuple[LocalView, ...] = (
        LocalView(frames=32, ratio=(0.35, 0.7)),
        LocalView(frames=16, ratio=(0.15, 0.4)),
        LocalView(frames=8, ratio=(0.05, 0.2)),
    )
    crops: int = Field(2, ge=0, description="crops of each local size and anchor")
    anchors: Literal[1, 2] = Field(2, description="global views that have local views (S11)")
    shortest: int = Field(2, ge=1, description="fewest frames of an interval (S13)")
    absent_body: Literal["skip", "zeros", "copy"] = Field(
        "skip", description="zeros, copy: MAMP's on NTU RGB+D 60 and 120, see fold_bodies"
    )
    resample: Literal["uniform", "linear"] = Field(
        "uniform", description="linear: MAMP's interpolation of all frames of an interval"
    )


class Augment(Settings):
    """Skeleton-aware augmentations (SLiM, Appendix 0.D)."""

    probability: float = Field(0.5, ge=0, le=1)
    vertical: float = Field(180.0, description="degrees about the vertical")
    tilt: float = Field(30.0, description="degrees about the other axes")
    scale: Range = (0.85, 1.15)
    symmetric: bool = Field(False, description="one scale for a left part and its right one (S22)")
    rotation: Literal["skeleton", "axis", "none"] = Field(
        "skeleton", description="axis: the limited one of Table 7, 30 degrees about one axis (S39)"
    )
    mirroring: Literal["skeleton", "index", "none"] = Field(
        "skeleton", description="index: the limited one, left and right exchanged by name alone"
    )
    scaling: Literal["bone", "axes", "none"] = Field(
        "bone", description="axes: the limited one, each coordinate by a factor in 1 +- 0.2"
    )


MaskKind = Literal["tube", "motion", "none"]


class Mask(Settings):
    """Semantic tube masking (SLiM, Algorithm 1), and the masks it is compared with."""

    global_kind: MaskKind = Field(
        "tube", description="motion: the limited one of Table 6, MAMP's independent joints (S39)"
    )
    local_kind: MaskKind = "tube"
    motion_tau: float = Field(
        0.80, gt=0, description="temperature of motion; MAMP has 0.75 on NTU RGB+D 120"
    )
    ratio: Range = (0.5, 0.9)
    min_area: int = Field(8, ge=1)
    max_area: float = Field(0.5, gt=0, le=1, description="share of a view's tokens")
    local_probability: float = Field(0.5, ge=0, le=1, description="that a local view is masked")
    subset: Literal["tree", "slice"] = Field("tree", description="what 'contiguous' means (S6)")
    overshoot: bool = Field(False, description="do not trim the last tube (S5)")


class Encoder(Settings):
    """The transformer (SLiM, Sec. 4.2 and Appendix 0.A)."""

    layers: int = Field(8, ge=1)
    dim: int = Field(256, ge=2)
    heads: int = Field(8, ge=1)
    mlp_ratio: float = Field(4.0, gt=0, description="not in the paper (S26)")
    patch_frames: int = Field(8, ge=1)
    registers: int = Field(4, ge=0)
    rope_base: float = Field(100.0, gt=1, description="not in the paper (S16)")
    class_token: bool = Field(True, description="MAMP has none")
    positions: Literal["rotary", "learned"] = Field(
        "rotary", description="of steps in time; learned: MAMP's, a vector for each"
    )
    norm_eps: float = Field(1e-6, gt=0, description="of layer norms; not in the paper")


class Head(Settings):
    """Both prediction heads (SLiM, Appendix 0.A)."""

    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    prototypes: int = Field(65536, ge=2)
    init_std: float = Field(0.02, gt=0, description="DINOv2's; narrow heads need more (S25)")


class Loss(Settings):
    """The objective (SLiM, Eqs. 4, 6, 7); temperatures and Sinkhorn's count are DINOv2's (S25)."""

    contrast_weight: float = Field(1.0, ge=0, description="lambda of Eq. 7")
    mask_weight: float = Field(1.0, ge=0, description="of masked feature modelling")
    koleo_weight: float = Field(0.1, ge=0)
    koleo_scope: Literal["global", "local"] = Field(
        "global", description="whose neighbours: of the global batch, or of what a device holds"
    )
    student_temperature: float = Field(0.1, ge=0.02)
    teacher_temperature: tuple[Temperature, Temperature] = (0.04, 0.07)
    teacher_warmup: float = Field(30 / 150, ge=0, le=1, description="share of the run")
    sinkhorn_iterations: int = Field(3, ge=1)
    clean_pass: bool = Field(False, description="unmasked student pass for the class token (S9)")


class Optim(Settings):
    """AdamW and its schedules; what the paper leaves out is DINOv2's (S25)."""

    lr: float = Field(2e-4, gt=0)
    min_lr: float = Field(1e-6, ge=0)
    lr_scaling: Literal["none", "sqrt"] = Field("none", description="sqrt: lr * sqrt(batch / 1024)")
    warmup: float = Field(20 / 150, ge=0, le=1, description="share of the run")
    weight_decay: FromTo = (0.04, 0.2)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(3.0, gt=0, description="gradient norm of each sub-network")
    freeze_prototypes: float = Field(1.0, ge=0, description="epochs")
    momentum: FromTo = Field((0.994, 1.0), description="teacher's, cosine (S24)")


class SLiMRecipe(AnyRecipe):
    """A run of SLiM."""

    method: Literal["slim"] = "slim"
    pipeline: str = "ctrgcn"
    views: Views = Views()
    augment: Augment = Augment()
    mask: Mask = Mask()
    encoder: Encoder = Encoder()
    head: Head = Head()
    loss: Loss = Loss()
    optim: Optim = Optim()

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        encoder = self.encoder
        if encoder.dim % encoder.heads:
            raise ValueError(
                f"encoder.dim {encoder.dim} is no multiple of encoder.heads {encoder.heads}"
            )
        if encoder.positions == "rotary" and encoder.dim % (2 * encoder.heads):
            raise ValueError(
                f"encoder.dim {encoder.dim} is no multiple of twice encoder.heads "
                f"{encoder.heads}: RoPE turns a head's features in pairs"
            )
        return self

    @model_validator(mode="after")
    def _class_tokens_exist(self) -> Self:
        loss = self.loss
        if not self.encoder.class_token and (loss.contrast_weight or loss.koleo_weight):
            raise ValueError(
                "encoder.class_token false leaves SLiM's contrast and KoLeo without a token: "
                f"loss.contrast_weight {loss.contrast_weight:g} and loss.koleo_weight "
                f"{loss.koleo_weight:g} must both be 0"
            )
        return self

    @property
    def most_steps(self) -> int:
        """Patches of the longest view along time."""
        sizes = [self.views.frames, *(local.frames for local in self.views.local)]
        return max(sizes) // self.encoder.patch_frames

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        sizes = [self.views.frames, *(local.frames for local in self.views.local)]
        patch = self.encoder.patch_frames
        wrong = [size for size in sizes if size % patch]
        if wrong:
            raise ValueError(
                f"views of {wrong[0]} frames do not divide into patches of {patch} frames "
                "(encoder.patch_frames)"
            )
        return self

    @model_validator(mode="after")
    def _masked_tokens_exist(self) -> Self:
        if self.mask.global_kind == "none" and self.loss.mask_weight:
            raise ValueError(
                "mask.global_kind none leaves masked feature modelling without a token: "
                f"loss.mask_weight must be 0, not {self.loss.mask_weight:g}"
            )
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        loss = self.loss
        if not (loss.mask_weight or loss.contrast_weight or loss.koleo_weight):
            raise ValueError(
                "loss.mask_weight, loss.contrast_weight and loss.koleo_weight are all 0: there is "
                "nothing to learn"
            )
        return self

    def readings(self) -> list[str]:
        return [
            "S4, S5 tube area " + ("overshoots" if self.mask.overshoot else "trimmed to the ratio"),
            f"S6 contiguous = {self.mask.subset}",
            f"S8 absent body: {self.views.absent_body}",
            "S9 student class token from the "
            + ("clean" if self.loss.clean_pass else "masked")
            + " pass",
            "S10 losses averaged, not summed",
            f"S11 local views of {self.views.anchors} anchors",
            f"S16 RoPE base {self.encoder.rope_base:g}, patches only"
            if self.encoder.positions == "rotary"
            else "S16 a learned vector for each step, patches only",
            "S17 mask token before joint embedding",
            f"S22 limbs scaled {'in pairs' if self.augment.symmetric else 'independently'}",
            f"S25 peak lr {self.optim.lr:g}, lr_scaling {self.optim.lr_scaling}, "
            f"clip {self.optim.clip:g}",
            f"S26 GELU MLP, ratio {self.encoder.mlp_ratio:g}",
            "S28 features: mean of patch tokens over "
            + ("real bodies" if self.views.absent_body == "skip" else "all bodies")
            + ", student",
            *self._limited(),
        ]

    def _limited(self) -> list[str]:
        """What S39 reads "limited" as, where this run has it."""
        augment, kinds = self.augment, (self.mask.global_kind, self.mask.local_kind)
        limited = {
            f"motion-aware masking of joints one by one (tau {self.mask.motion_tau:g})": "motion"
            in kinds,
            "rotation of 30 degrees about one axis": augment.rotation == "axis",
            "mirroring of indices alone": augment.mirroring == "index",
            "scaling of each axis by 1 +- 0.2": augment.scaling == "axes",
        }
        return [f"S39 limited = {what}" for what, has in limited.items() if has]
