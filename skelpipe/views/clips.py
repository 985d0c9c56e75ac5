"""Clips: crops of recordings, resized along time, with a slot for every body."""

from __future__ import annotations

import torch
from torch import Tensor

from skelpipe.config.pcm3 import Views
from skelpipe.stream.source import Batch
from skelpipe.views.sampling import fold_bodies, resize_frames, tabulate


def crop_clips(batch: Batch, start_NV: Tensor, length_NV: Tensor, views: Views) -> Tensor:
    """Crops of each sample, each resized to T frames by linear interpolation.

    As released, frames in which a body is absent count as zeros, also in between.

    Args:
        batch: N samples.
        start_NV, length_NV: V crops of each, in frames.
        views: Gives T and M, the slots for bodies; further bodies are left out, absent ones zero.

    Returns:
        Shape (N, V, M, T, J, 3).
    """
    bodies = fold_bodies(batch)
    table = tabulate(batch, bodies)
    frames = resize_frames(start_NV, length_NV, views.frames)
    first_N = batch.bodies_N.cumsum(0) - batch.bodies_N
    slot_M = torch.arange(views.bodies, device=first_N.device)
    body_NM = first_N[:, None] + slot_M
    exists_NM = slot_M < batch.bodies_N[:, None]
    begin_NM = table.start_B[torch.where(exists_NM, body_NM, 0)]
    zeros = len(table.present_R) - 1

    def rows(frame_NVT: Tensor) -> Tensor:
        row_NVMT = begin_NM[:, None, :, None] + frame_NVT[:, :, None]
        return torch.where(exists_NM[:, None, :, None], row_NVMT, zeros)

    x_CRJ = table.x_CRJ
    low, high = x_CRJ[:, rows(frames.low)], x_CRJ[:, rows(frames.high)]
    share = frames.weight.to(x_CRJ.dtype)[:, :, None, :, None]
    return (low + (high - low) * share).movedim(0, -1)
