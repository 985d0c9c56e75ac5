"""Clips: crops of recordings, resized along time, with a slot for every body."""

from __future__ import annotations

import torch
from torch import Tensor

from skelpipe.config.pcm3 import Views
from skelpipe.stream.source import Batch
from skelpipe.views.sampling import resize_frames


def crop_clips(batch: Batch, start_NV: Tensor, length_NV: Tensor, views: Views) -> Tensor:
    """Crops of each sample, each resized to T frames by linear interpolation.

    As released, frames in which a body is absent count as zeros, also in between.

    Args:
        batch: N samples.
        start_NV, length_NV: V crops of each, in frames.
        views: Gives T and M, the slots for bodies; further bodies are left out, absent ones zero.

    Returns:
        Shape (N, V, M, T, J, 3), metres.
    """
    frames = resize_frames(start_NV, length_NV, views.frames)
    slot_M = torch.arange(views.bodies, device=start_NV.device)
    exists_NM = slot_M < batch.bodies_N[:, None]
    begin_NM = batch.start_N[:, None] + torch.where(exists_NM, slot_M * batch.frames_N[:, None], 0)

    def gather(frame_NVT: Tensor) -> Tensor:
        row_NVMT = begin_NM[:, None, :, None] + frame_NVT[:, :, None]
        return batch.flat_RJC.index_select(0, row_NVMT.flatten()).view(*row_NVMT.shape, -1, 3)

    low, high = gather(frames.low), gather(frames.high)
    share = frames.weight.to(low.dtype)[:, :, None, :, None, None]
    # Operation by operation: what is fused may round otherwise here than there.
    low += high.sub_(low).mul_(share)
    return low.masked_fill_(~exists_NM[:, None, :, None, None, None], 0)
