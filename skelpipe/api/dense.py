"""Ragged batches as dense tensors, and back.

Letters: N samples, M bodies, T frames, J joints, C the coordinates, R rows of a ragged batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.stream.source import Batch
from skelpipe.views.sampling import centre_interval, fold_bodies, gather_views, sample_frames


def pad(batch: Batch, bodies: int) -> tuple[Tensor, Tensor]:
    """Whole recordings, with zeros where a sample has no such body or no such frame.

    Args:
        batch: N samples.
        bodies: M, at least as many as any sample has.

    Returns:
        Coordinates (N, M, T, J, 3), T of the longest; and whether a body is there, (N, M, T).
    """
    frames_N = batch.frames_N[:, None, None]
    frame_T = torch.arange(int(batch.frames_N.max()), device=frames_N.device)
    body_M = torch.arange(bodies, device=frames_N.device)[:, None]
    stored_NMT = (body_M < batch.bodies_N[:, None, None]) & (frame_T < frames_N)
    row_NMT = batch.start_N[:, None, None] + body_M * frames_N + frame_T
    row_NMT = torch.where(stored_NMT, row_NMT, 0)
    x_NMTJC = batch.flat_RJC[row_NMT].masked_fill(~stored_NMT[..., None, None], 0)
    return x_NMTJC, batch.present_R[row_NMT] & stored_NMT


def resample(batch: Batch, bodies: int, frames: int, centre: float) -> tuple[Tensor, Tensor]:
    """The middle of each recording in so many frames, as a test view has them (S14).

    Args:
        batch: N samples.
        bodies: M, at least as many as any sample has.
        frames: W.
        centre: Share of the recording that is kept.

    Returns:
        Coordinates (N, M, W, J, 3), zeros where no body is; and whether one is, (N, M, W).
    """
    folded = fold_bodies(batch)
    picked = sample_frames(*centre_interval(batch.frames_N, centre), frames, None)
    x, present = gather_views(batch, folded, picked)
    first_N = batch.bodies_N.cumsum(0) - batch.bodies_N
    number_B = torch.arange(len(x), device=x.device) - first_N[folded.sample_B]
    place = folded.sample_B, number_B
    x_NMWJC = x.new_zeros(len(batch), bodies, *x.shape[2:])
    x_NMWJC[place] = x[:, 0]
    present_NMW = present.new_zeros(len(batch), bodies, frames)
    present_NMW[place] = present[:, 0]
    return x_NMWJC, present_NMW


def unpad(x_NMTJC: Tensor, frames_N: Tensor | None = None) -> Batch:
    """Dense samples as a ragged batch.

    A sample has as many bodies as the last one that is not all zero says, and at least one.

    Args:
        x_NMTJC: Coordinates; zeros where no body is.
        frames_N: Frames of each sample, where it has fewer than T.

    Raises:
        UserError: A sample with fewer frames than one, or more than T.
    """
    samples, bodies, longest = x_NMTJC.shape[:3]
    device = x_NMTJC.device
    if frames_N is None:
        frames_N = torch.full((samples,), longest)
    frames_N = frames_N.to(device, torch.int64)
    if frames_N.shape != (samples,) or not ((frames_N >= 1) & (frames_N <= longest)).all():
        raise UserError(
            "frames do not fit the samples",
            found=f"{frames_N.tolist()}",
            expected=f"{samples} numbers, from 1 to {longest}",
        )
    within_NT = torch.arange(longest, device=device) < frames_N[:, None]
    present_NMT = (x_NMTJC != 0).flatten(3).any(-1) & within_NT[:, None]
    number_M = torch.arange(1, bodies + 1, device=device)
    bodies_N = (present_NMT.any(-1) * number_M).amax(1).clamp(min=1)
    stored_NMT = (number_M <= bodies_N[:, None])[..., None] & within_NT[:, None]
    rows_N = bodies_N * frames_N
    nothing = torch.zeros_like(frames_N)
    return Batch(
        flat_RJC=x_NMTJC[stored_NMT],
        present_R=present_NMT[stored_NMT],
        start_N=rows_N.cumsum(0) - rows_N,
        frames_N=frames_N,
        bodies_N=bodies_N,
        label_N=nothing,
        row_N=nothing,
        key_N=nothing,
        key=nothing.new_zeros(()),
        valid_N=torch.ones_like(frames_N, dtype=torch.bool),
    )
