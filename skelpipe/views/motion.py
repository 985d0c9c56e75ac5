"""MAMP's motion-aware masking: tokens one by one, those that move first (S39's limited mask)."""

from __future__ import annotations

import torch
from torch import Tensor

from skelpipe.random import uniform
from skelpipe.views.masking import masked_tokens


def motion_masks(
    key: Tensor, x_BWJC: Tensor, patch_frames: int, *, ratio: tuple[float, float], tau: float
) -> Tensor:
    """Draw one mask a key: tokens without repetition, a token's weight exp(motion / (max * tau)).

    A token's motion is the mean absolute difference of neighbouring frames inside its patch; the
    maximum is the view's. The draw is by Gumbel noise, as MAMP's; its softmax adds the same to
    all of a view's tokens and so may be left out. As many tokens are masked as by tubes, by the
    same draw, where MAMP masks 90 %.

    Args:
        key: Keys of the draws, shape (B,).
        x_BWJC: Augmented coordinates.
        patch_frames: Frames of a token; tokens of one frame have no motion and are all alike.
        ratio: Range of the masked share.
        tau: Temperature; MAMP has 0.80 (NTU RGB+D 60, PKU-MMD) and 0.75 (NTU RGB+D 120).

    Returns:
        Shape (B, W / patch_frames, J), bool, True = masked.
    """
    patches = x_BWJC.unflatten(1, (-1, patch_frames))
    moved = (patches[:, :, 1:] - patches[:, :, :-1]).abs().sum((2, 4)).flatten(1)
    # Sum for mean: patches are alike. The smallest number stands for the rest of a still view.
    most = moved.amax(1, keepdim=True).clamp(min=torch.finfo(moved.dtype).tiny)
    tokens = moved.shape[1]
    # In the middle of the grid of 2^-24: the noise is finite.
    noise = -(-(uniform(key, "motion", tokens).double() + 2.0**-25).log()).log()
    order = (moved.double() / most / tau + noise).argsort(dim=1, descending=True, stable=True)
    count = masked_tokens(key, torch.full_like(key, tokens), ratio)
    taken = torch.arange(tokens, device=key.device) < count[:, None]
    mask = torch.zeros_like(taken).scatter(1, order, taken)
    return mask.view(len(key), patches.shape[1], x_BWJC.shape[2])
