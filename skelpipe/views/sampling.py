"""Temporal intervals, uniform sampling within them, and the gather of views from a ragged batch.

All draws are integers keyed by (seed, epoch, sample, view), so intervals and frames are the same
on every device. Letters: N samples, B bodies of all samples, V views, W frames of a view, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skelpipe.random import below, uniform
from skelpipe.stream.source import Batch

_PPM = 1_000_000


@dataclass(frozen=True)
class Frames:
    """Where the W frames of each view lie: between two frames of the recording.

    Attributes:
        low, high: Neighbouring frames, counted from the recording's first, shape (N, V, W), int64.
        weight: Share of ``high``, in [0, 1), shape (N, V, W), float32.
    """

    low: Tensor
    high: Tensor
    weight: Tensor


def random_interval(
    key_NV: Tensor, start: Tensor, length: Tensor, ratio: tuple[float, float], shortest: int
) -> tuple[Tensor, Tensor]:
    """A random interval within another one (SLiM, Appendix 0.B).

    The length is floor(p * length) with p uniform in the closed range ``ratio`` (S13), at least
    ``shortest`` frames and at most all; the start is uniform among those that fit.

    Args:
        key_NV: Keys of the draws, shape (N, V).
        start, length: The outer interval in frames, broadcasting against (N, V).
        ratio: Smallest and largest share of the outer interval.
        shortest: Fewest frames, where the outer interval has as many.

    Returns:
        Start and length, shape (N, V), int64.
    """
    lowest, highest = (round(share * _PPM) for share in ratio)
    share = lowest + below(key_NV, "interval length", 1, highest - lowest + 1)[..., 0]
    inner = (length * share // _PPM).clamp(min=shortest).minimum(length)
    offset = below(key_NV, "interval start", 1, (length - inner + 1)[..., None])[..., 0]
    return start + offset, inner


def centre_interval(frames_N: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The middle of each recording: int((1 - share) * L / 2) frames trimmed at both ends.

    MAMP's and PCM3's test view has share = 0.95.

    Returns:
        Start and length, shape (N, 1), int64.
    """
    trim = (frames_N * round((1 - share) * _PPM) // (2 * _PPM))[:, None]
    return trim, frames_N[:, None] - 2 * trim


def sample_frames(start: Tensor, length: Tensor, frames: int, key_NV: Tensor | None) -> Frames:
    """Uniform sampling of W frames from an interval of L (SLiM, Appendix 0.B, read as S14).

    SkateFormer's sampler: linear interpolation (pixel centres aligned) where L < W; where
    W <= L < 2 W, all but L - W frames, left out at random places; where L >= 2 W, a random frame
    of each of W equal bins. Without keys (evaluation) the first frame of each bin, for any L >= W.

    Args:
        start, length: Intervals in frames, shape (N, V), int64.
        frames: W.
        key_NV: Keys of the draws, shape (N, V), or None for the deterministic form.
    """
    length, first = length[..., None], start[..., None]
    place = torch.arange(frames, device=length.device)
    bin_start = place * length // frames
    picked = bin_start
    if key_NV is not None:
        bin_size = (place + 1) * length // frames - bin_start
        within = below(key_NV, "frame of bin", frames, bin_size.clamp(min=1))
        # W + 1 places for a gap of one frame; the L - W lowest hashes get one.
        rank = uniform(key_NV, "gap", frames + 1).argsort(dim=-1, stable=True).argsort(-1)
        gaps = (rank < length - frames).long().cumsum(-1)[..., :frames]
        picked = torch.where(length >= 2 * frames, bin_start + within, place + gaps)
    # Interpolation in integers: the place between two frames, in units of 1 / (2 W).
    between = ((2 * place + 1) * length - frames).clamp(min=0)
    low = between // (2 * frames)
    weight = (between % (2 * frames)).to(torch.float32) / (2 * frames)
    short = length < frames
    last = length - 1
    return Frames(
        low=first + torch.where(short, low, picked),
        high=first + torch.where(short, (low + 1).minimum(last), picked),
        weight=torch.where(short & (low < last), weight, 0.0),
    )


@dataclass(frozen=True)
class Bodies:
    """The bodies of a batch, folded into one axis.

    Attributes:
        sample_B: The batch's sample each body belongs to.
        start_B: First row of each body in the batch's flat rows.
        real_B: False for a body that only stands in for an absent one (zeros).
    """

    sample_B: Tensor
    start_B: Tensor
    real_B: Tensor


def fold_bodies(batch: Batch, absent_body: Literal["skip", "zeros", "copy"] = "skip") -> Bodies:
    """Fold the bodies of all samples into one axis (S8).

    Args:
        batch: N samples.
        absent_body: What stands for the second body of a sample with one: nothing, zeros (MAMP on
            NTU-60) or a copy of the first (MAMP on NTU-120).
    """
    count_N = batch.bodies_N if absent_body == "skip" else batch.bodies_N.clamp(min=2)
    sample_B = torch.repeat_interleave(count_N)
    first_B = (count_N.cumsum(0) - count_N)[sample_B]
    number_B = torch.arange(len(sample_B), device=sample_B.device) - first_B
    exists_B = number_B < batch.bodies_N[sample_B]
    number_B = torch.where(exists_B, number_B, 0)
    start_B = batch.start_N[sample_B] + number_B * batch.frames_N[sample_B]
    return Bodies(sample_B, start_B, exists_B | (absent_body == "copy"))


def gather_views(batch: Batch, bodies: Bodies, frames: Frames) -> tuple[Tensor, Tensor]:
    """The views' coordinates, interpolated between present frames only.

    A frame in which a body is absent stays zero; between an absent and a present frame the
    present one is taken, so that no body shrinks towards the origin.

    Returns:
        Coordinates, shape (B, V, W, J, 3), and presence, shape (B, V, W), bool.
    """
    begin = bodies.start_B[:, None, None]
    low, high = begin + frames.low[bodies.sample_B], begin + frames.high[bodies.sample_B]
    weight = frames.weight[bodies.sample_B]
    seen_low = batch.present_R[low] & bodies.real_B[:, None, None]
    seen_high = batch.present_R[high] & bodies.real_B[:, None, None]
    part_low, part_high = (1 - weight) * seen_low, weight * seen_high
    total = part_low + part_high
    present = total > 0
    scale = torch.where(present, 1 / total.clamp(min=1e-12), 0.0)
    shape = (*low.shape, *batch.flat_RJC.shape[1:])
    x = batch.flat_RJC[low.flatten()].view(shape) * (part_low * scale)[..., None, None]
    between = (weight > 0).nonzero(as_tuple=True)
    share = (part_high * scale)[between][:, None, None]
    x[between] += batch.flat_RJC[high[between]] * share
    return x, present
