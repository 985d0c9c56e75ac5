"""Frozen features of samples: from an encoder's tokens, or the plain resampled skeleton.

Letters: N samples, B bodies, T frames of the view, J joints, S temporal tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from skelpipe import distributed
from skelpipe.config import PCM3Recipe, Recipe, SLiMRecipe
from skelpipe.errors import UserError
from skelpipe.models.encoder import Encoder
from skelpipe.models.gru import SkeletonGRU
from skelpipe.models.vit import SkeletonViT, Tokens
from skelpipe.protocols.settings import RandomView
from skelpipe.random import uniform
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Batch, Source
from skelpipe.views.augment import rotation
from skelpipe.views.clips import crop_clips
from skelpipe.views.modality import channels
from skelpipe.views.sampling import (
    centre_interval,
    fold_bodies,
    gather_views,
    random_interval,
    resize_frames,
    sample_frames,
)

Kind = Literal["patch", "class", "both", "last"]
"""What stands for a row: SLiM's mean of patch tokens (S28, its default), class token, or both;
PCM3's last frame."""
AbsentBody = Literal["skip", "zeros", "copy"]
Resample = Literal["uniform", "linear"]
See = Callable[[Batch], tuple[Tensor, Tensor]]
"""Samples to rows of a view, shape (B, ...), and the sample of each row (B,)."""
Hide = Callable[[Batch], Tensor]
"""Samples to what is hidden of their views, shape (N, T, J), bool."""
Encode = Callable[[Tensor], Tensor]
"""Rows of a view to features (B, D)."""

CENTRE = 0.95
"""Share of a recording in its centre crop: the test view of MAMP and PCM3."""


def token_features(encoder: SkeletonViT, kind: Kind) -> Encode:
    """Features of an encoder: mean of patch tokens (S28, default), class token, or both joined."""

    def encode(x_BTJC: Tensor) -> Tensor:
        return pool_tokens(encoder(x_BTJC.to(encoder.joint_embedding.dtype)), kind)

    return encode


def pool_tokens(tokens: Tokens, kind: Kind) -> Tensor:
    """What stands for a view, shape (B, D), of both joined (B, 2 D): see `token_features`."""
    patch_BD = tokens.patch_BSJD.mean((1, 2))
    if kind == "patch":
        return patch_BD
    return tokens.class_BD if kind == "class" else torch.cat([patch_BD, tokens.class_BD], -1)


def last_frame(encoder: SkeletonGRU) -> Encode:
    """PCM3's features of a clip: those of its last frame."""

    def encode(x_NTC: Tensor) -> Tensor:
        feature_ND: Tensor = encoder.pool(encoder(x_NTC.to(encoder.input_norm.weight.dtype)))
        return feature_ND

    return encode


def width_of(encoder: Encoder, kind: Kind) -> int:
    """D of an encoder's features."""
    if not isinstance(encoder, SkeletonViT):
        return 2 * encoder.hidden
    return encoder.norm.normalized_shape[0] * (2 if kind == "both" else 1)


def raw_features(x: Tensor) -> Tensor:
    """The resampled skeleton itself, flattened: the floor that needs no learning."""
    return x.flatten(1)


def default_kind(recipe: Recipe) -> Kind:
    """The features that a method's paper evaluates."""
    return "patch" if isinstance(recipe, SLiMRecipe) else "last"


def encode_by(encoder: Encoder, kind: Kind) -> Encode:
    """An encoder as a maker of features.

    Raises:
        UserError: Features that it does not have.
    """
    transformer = isinstance(encoder, SkeletonViT)
    if transformer == (kind == "last"):
        raise UserError(
            f"a {'transformer' if transformer else 'GRU'} has no features '{kind}'",
            remedy="leave out --features",
        )
    if isinstance(encoder, SkeletonViT):
        if kind != "patch" and not encoder.class_token:
            raise UserError("this transformer has no class token", remedy="leave out --features")
        return token_features(encoder, kind)
    return last_frame(encoder)


def viewer(
    recipe: Recipe,
    topology: Topology,
    centre: float,
    random: RandomView | None = None,
    hide: Hide | None = None,
) -> See:
    """What makes the view of a recipe's method: see `view` and `clip`."""
    if isinstance(recipe, SLiMRecipe):
        frames, absent_body = recipe.views.frames, recipe.views.absent_body
        return partial(
            view, frames=frames, centre=centre, absent_body=absent_body,
            resample=recipe.views.resample, random=random, hide=hide,
        )  # fmt: skip
    return partial(clip, recipe=recipe, topology=topology, centre=centre, random=random, hide=hide)


def view(
    batch: Batch,
    frames: int,
    *,
    centre: float,
    absent_body: AbsentBody,
    resample: Resample = "uniform",
    random: RandomView | None = None,
    hide: Hide | None = None,
) -> tuple[Tensor, Tensor]:
    """One view of each sample: the centre crop, or a random one by the batch's keys.

    Args:
        batch: N samples.
        frames: T.
        centre: Share of the recording that the centre crop keeps.
        absent_body: See `fold_bodies`.
        resample: "uniform" (`sample_frames`, with keys where random), or "linear" as MAMP: all
            frames are interpolated (`resize_frames`), absent ones as zeros.
        random: Draw a training view instead.
        hide: What becomes zero once the view is made. A body that stands in the view stays a row of
            it even where all of it is hidden: occlusion takes coordinates, not bodies, and a frame
            or joint of zeros is what the encoder knows of a body that is absent for a while.

    Returns:
        Coordinates of present bodies (B, T, J, 3), and the sample of each (B,).
    """
    bodies = fold_bodies(batch, absent_body)
    interval = _interval(batch, centre, random)
    plain = resample == "linear"
    if plain:
        picked = resize_frames(*interval, frames)
    else:
        picked = sample_frames(*interval, frames, None if random is None else batch.key_N[:, None])
    x, present = gather_views(batch, bodies, picked, blend=plain)
    if random is not None:
        x = x @ _turn(batch, random)[bodies.sample_B][:, None, None]
    if hide is not None:
        x = x.masked_fill(hide(batch)[bodies.sample_B][:, None, ..., None], 0)
    stands = present[:, 0].any(-1) | (absent_body != "skip")
    return x[stands, 0], bodies.sample_B[stands]


def clip(
    batch: Batch,
    recipe: PCM3Recipe,
    topology: Topology,
    *,
    centre: float,
    random: RandomView | None = None,
    hide: Hide | None = None,
) -> tuple[Tensor, Tensor]:
    """PCM3's view of each sample, with channels for all bodies: a row is a sample.

    Args:
        batch: N samples.
        recipe: Gives frames, bodies and stream.
        topology: Whose bones the stream may need.
        centre, random: See `view`; a training view is turned before bones or motion are taken.
        hide: What becomes zero, also before bones or motion are taken: the skeleton is occluded,
            and its streams are what comes of that.

    Returns:
        Channels (N, T, C), and 0 ... N - 1.
    """
    x_NMTJC = crop_clips(batch, *_interval(batch, centre, random), recipe.views)[:, 0]
    if random is not None:
        x_NMTJC = x_NMTJC @ _turn(batch, random)[:, None, None]
    if hide is not None:
        x_NMTJC = x_NMTJC.masked_fill(hide(batch)[:, None, ..., None], 0)
    rows = torch.arange(len(batch), device=x_NMTJC.device)
    return channels(x_NMTJC, recipe.views.modality, topology), rows


def _interval(batch: Batch, centre: float, random: RandomView | None) -> tuple[Tensor, Tensor]:
    if random is None:
        return centre_interval(batch.frames_N, centre)
    whole = batch.frames_N[:, None]
    return random_interval(
        batch.key_N[:, None], torch.zeros_like(whole), whole, random.ratio, random.shortest
    )


def _turn(batch: Batch, random: RandomView) -> Tensor:
    """What a random view's coordinates are multiplied with from the right, shape (N, 3, 3)."""
    angles = (2 * uniform(batch.key_N, "probe angles", 3) - 1) * random.rotation
    return rotation(angles).mT


def mean_over_bodies(features_BD: Tensor, sample_B: Tensor, samples: int) -> Tensor:
    """Mean over a sample's bodies (S8), shape (N, D)."""
    total = torch.zeros(samples, features_BD.shape[1], device=features_BD.device)
    total.index_add_(0, sample_B, features_BD)
    return total / torch.bincount(sample_B, minlength=samples)[:, None]


def features_of(batch: Batch, encode: Sequence[Encode], see: See) -> list[Tensor]:
    """Features of a batch by each encoder, shape (N, D), float32; the view is made once for all."""
    x, sample_B = see(batch)
    return [mean_over_bodies(function(x).float(), sample_B, len(batch)) for function in encode]


@torch.no_grad()
def extract(
    source: Source,
    encode: list[Encode],
    see: See,
    *,
    key_N: Tensor | None = None,
    chunk: int = 256,
) -> list[Tensor]:
    """Features of all samples of a source, each once, in its order; ranks share the work.

    Args:
        source: N samples.
        encode: One or more encoders; each view is drawn once for all of them.
        see: Makes the view, of `viewer`.
        key_N: Keys of random views.
        chunk: Samples at once.

    Returns:
        For each encoder, shape (N, D), float32, on the source's device; on every rank.
    """
    parts: list[list[Tensor]] = [[] for _ in encode]
    rank, world = distributed.rank(), distributed.world()
    first, last = (len(source) * number // world for number in (rank, rank + 1))
    for begin in range(first, last, chunk):
        places = torch.arange(begin, min(begin + chunk, last))
        batch = source.take(places, None if key_N is None else key_N[places])
        for part, feature_ND in zip(parts, features_of(batch, encode, see), strict=True):
            part.append(feature_ND)
    return [_of_all_ranks(part, source.device) for part in parts]


def _of_all_ranks(parts: list[Tensor], device: torch.device) -> Tensor:
    """The rows of all ranks; a rank without any learns from the others how wide they are."""
    distributed.wait_for_all()
    width = torch.tensor([parts[0].shape[1] if parts else 0], device=device)
    width = distributed.gather_rows(width)[0].max()
    rows_ND = torch.cat(parts) if parts else torch.zeros(0, int(width), device=device)
    return distributed.gather_rows(rows_ND)[0]
