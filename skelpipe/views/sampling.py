"""Temporal intervals, uniform sampling within them, and the gather of views from a ragged batch.

All draws are integers keyed by (seed, epoch, sample, view), so intervals and frames are the same
on every device. Letters: N samples, B bodies of all samples, V views, W frames of a view, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.random import below, uniform
from skelpipe.stream.source import Batch

_PPM = 1_000_000


@dataclass(frozen=True)
class Frames:
    """Where the W frames of each view lie: between two frames of the recording.

    Attributes:
        low, high: Neighbouring frames, counted from the recording's first, shape (N, V, W), int64.
        weight: Share of ``high``, in [0, 1), shape (N, V, W), float64.
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
        gaps = lowest(uniform(key_NV, "gap", frames + 1), length - frames)
        skipped = gaps[..., :frames].cumsum(-1)
        picked = torch.where(length >= 2 * frames, bin_start + within, place + skipped)
    short, resized = length < frames, resize_frames(start, length[..., 0], frames)
    return Frames(
        low=torch.where(short, resized.low, first + picked),
        high=torch.where(short, resized.high, first + picked),
        weight=torch.where(short, resized.weight, 0.0),
    )


def resize_frames(start: Tensor, length: Tensor, frames: int) -> Frames:
    """Linear interpolation of intervals of L frames to W, pixel centres aligned.

    As torch.nn.functional.interpolate with align_corners = False, in integers: frame w lies at
    (w + 1/2) L / W - 1/2, at the first or last frame where that is beyond.

    Args:
        start, length: Intervals in frames, shape (N, V), int64.
        frames: W.
    """
    length, first = length[..., None], start[..., None]
    place, last = torch.arange(frames, device=length.device), length - 1
    # In units of 1 / (2 W).
    between = ((2 * place + 1) * length - frames).clamp(min=0)
    low = (between // (2 * frames)).minimum(last)
    weight = (between % (2 * frames)).to(torch.float64) / (2 * frames)
    return Frames(
        low=first + low,
        high=first + (low + 1).minimum(last),
        weight=torch.where(low < last, weight, 0.0),
    )


def lowest(draws: Tensor, count: int | Tensor) -> Tensor:
    """True at the ``count`` lowest of the last axis; of equal draws the earlier is the lower.

    Args:
        draws: Of `uniform`, shape (..., M).
        count: A number, or one for each row, shape (..., 1); all are taken where it is above M.
    """
    size = draws.shape[-1]
    if isinstance(count, int):
        count = torch.full((1,), count, device=draws.device)
    count = count.expand(*draws.shape[:-1], 1)
    # Made distinct by their place: sorted once, the last one taken tells all others.
    place = torch.arange(size, device=draws.device)
    distinct = (draws * 2.0**24).long() * size + place
    last = distinct.sort(dim=-1).values.gather(-1, (count - 1).clamp(0, size - 1))
    return (distinct <= last) & (count > 0)


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
            NTU-60) or a copy of the first (MAMP on NTU-120). But for nothing, a body that is absent
            from a whole view stands in it as zeros too.
    """
    count_N = batch.bodies_N if absent_body == "skip" else batch.bodies_N.clamp(min=2)
    sample_B = torch.repeat_interleave(count_N, output_size=int(count_N.sum()))
    first_B = (count_N.cumsum(0) - count_N)[sample_B]
    number_B = torch.arange(len(sample_B), device=sample_B.device) - first_B
    exists_B = number_B < batch.bodies_N[sample_B]
    number_B = torch.where(exists_B, number_B, 0)
    start_B = batch.start_N[sample_B] + number_B * batch.frames_N[sample_B]
    return Bodies(sample_B, start_B, exists_B | (absent_body == "copy"))


@dataclass(frozen=True)
class Rows:
    """Where the frames of views lie in a `Table`.

    Attributes:
        low, high: Rows of the table, shape (..., W), int64.
        weight: Share of ``high``, shape (..., W), float64.
        present: False where the body is in neither, shape (..., W), bool.
    """

    low: Tensor
    high: Tensor
    weight: Tensor
    present: Tensor

    def __getitem__(self, index: slice | tuple[Tensor, Tensor]) -> Rows:
        return Rows(self.low[index], self.high[index], self.weight[index], self.present[index])


@dataclass(frozen=True)
class Table:
    """The frames of a batch's samples by themselves, body by body, and one of zeros at the end.

    A batch of a resident source holds the whole set's rows. These are the few that its views are
    gathered from again and again, coordinate by coordinate, as the augmentations want them.

    Attributes:
        x_CRJ: Coordinates.
        present_R: False where a body is absent in a frame.
        start_B: First row of each body.
    """

    x_CRJ: Tensor
    present_R: Tensor
    start_B: Tensor

    def rows(self, bodies: Bodies, frames: Frames, *, blend: bool = False) -> Rows:
        """Where the views of each body lie, shape (B, V, W).

        Views are interpolated between present frames only: where a body is absent from one of two
        frames the other is taken, so that nobody shrinks towards the origin. With ``blend`` absent
        frames take part as zeros, as MAMP's do.
        """
        begin, zeros = self.start_B[:, None, None], len(self.present_R) - 1
        real = bodies.real_B[:, None, None]
        weight = frames.weight[bodies.sample_B]
        low = torch.where(real, begin + frames.low[bodies.sample_B], zeros)
        high = torch.where(real, begin + frames.high[bodies.sample_B], zeros)
        high = torch.where(weight > 0, high, low)
        seen_low, seen_high = self.present_R[low], self.present_R[high]
        if blend:
            return Rows(low, high, weight, seen_low | seen_high)
        return Rows(
            torch.where(seen_low, low, high),
            torch.where(seen_high, high, low),
            weight,
            seen_low | seen_high,
        )

    def coordinates(self, rows: Rows) -> Tensor:
        """The frames at rows of shape (..., W), interpolated: shape (..., 3, W, J)."""
        count, joints = self.x_CRJ.shape[1:]
        plane = torch.arange(0, 3 * count, count, device=self.x_CRJ.device)[:, None]
        low, high = (plane + place[..., None, :] for place in (rows.low, rows.high))
        share = rows.weight.to(self.x_CRJ.dtype)[..., None, :].expand_as(low)
        x = self.x_CRJ.flatten(0, 1).index_select(0, low.flatten())
        rise = self.x_CRJ.flatten(0, 1).index_select(0, high.flatten())
        # Operation by operation: what is fused may round otherwise here than there.
        x += rise.sub_(x).mul_(share.reshape(-1, 1))
        return x.view(*low.shape, joints)


def tabulate(batch: Batch, bodies: Bodies) -> Table:
    """The table of a batch's frames."""
    rows_N = batch.bodies_N * batch.frames_N
    own_N = rows_N.cumsum(0) - rows_N
    shift_R = torch.repeat_interleave(batch.start_N - own_N, rows_N, output_size=int(rows_N.sum()))
    row_R = torch.arange(len(shift_R), device=shift_R.device) + shift_R
    x_CRJ = batch.flat_RJC.new_zeros(3, len(row_R) + 1, batch.flat_RJC.shape[1])
    x_CRJ[:, :-1] = batch.flat_RJC.index_select(0, row_R).movedim(-1, 0)
    return Table(
        x_CRJ,
        F.pad(batch.present_R[row_R], (0, 1)),
        bodies.start_B - (batch.start_N - own_N)[bodies.sample_B],
    )


def gather_views(
    batch: Batch, bodies: Bodies, frames: Frames, *, blend: bool = False
) -> tuple[Tensor, Tensor]:
    """The views' coordinates; ``blend`` is `Table.rows`'s.

    Returns:
        Coordinates, shape (B, V, W, J, 3), and presence, shape (B, V, W), bool.
    """
    table = tabulate(batch, bodies)
    rows = table.rows(bodies, frames, blend=blend)
    return table.coordinates(rows).movedim(-3, -1), rows.present
