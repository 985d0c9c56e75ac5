"""Shear and joint corruption of clips (PCM3, Sec. 3.1; P7), drawn for a batch of views at once.

Both multiply coordinates by 3 x 3 matrices, one for all joints or one of few for each: so a view
has a matrix for each joint, and all views of a batch are one batched product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from skelpipe.config.pcm3 import Augment
from skelpipe.random import uniform
from skelpipe.views.constants import constant
from skelpipe.views.sampling import lowest


def shear_or_corrupt(
    x_NVMTJC: Tensor, key_NV: Tensor, augment: Augment, corruptible: Sequence[bool]
) -> Tensor:
    """Each view either sheared or with some of its joints corrupted, never both.

    Args:
        x_NVMTJC: V views of N samples; all bodies and frames of a view share its draws.
        key_NV: Keys of the draws.
        augment: The settings.
        corruptible: Which of the V views joint corruption may befall; others are always sheared,
            as PCM3's masked one is (P8).

    Returns:
        The same shape. Joints that a corruption spares keep their value exactly.
    """
    joints, dtype = x_NVMTJC.shape[-2], x_NVMTJC.dtype
    open_V = constant(tuple(corruptible), key_NV.device)
    corrupted_NV = open_V & (uniform(key_NV, "corruption", 1)[..., 0] < augment.corruption)
    sheared = shear_matrices(key_NV, augment.shear, dtype)[..., None, :, :]
    corrupted = corruption_matrices(key_NV, joints, augment, dtype)
    matrix = torch.where(corrupted_NV[..., None, None, None], corrupted, sheared)
    return _multiplied(x_NVMTJC, matrix)


def shear_matrices(key: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    """Ones on the diagonal, uniform in [-largest, largest) off it: shape (..., 3, 3)."""
    entries = _signed(key, "shear", 9, dtype).view(*key.shape, 3, 3) * largest
    return entries.masked_fill(torch.eye(3, dtype=torch.bool, device=key.device), 1)


def corruption_matrices(key: Tensor, joints: int, augment: Augment, dtype: torch.dtype) -> Tensor:
    """The identity for most joints; for a random round(share * J) of them another matrix.

    It is either zero, or one for all of them with entries uniform in [-1, 1).

    Returns:
        Shape (..., J, 3, 3).
    """
    chosen = lowest(uniform(key, "corrupted joints", joints), round(augment.corrupted * joints))
    zeroed = uniform(key, "zeroed", 1) < augment.zeroed
    other = _signed(key, "corrupting matrix", 9, dtype).masked_fill(zeroed, 0)
    other = other.view(*key.shape, 1, 3, 3)
    return torch.where(chosen[..., None, None], other, torch.eye(3, dtype=dtype, device=key.device))


def _signed(key: Tensor, name: str, count: int, dtype: torch.dtype) -> Tensor:
    """Uniform in [-1, 1), exact in any precision from float32 on: shape (..., count)."""
    return uniform(key, name, count).mul_(2).sub_(1).to(dtype)


def _multiplied(x_NVMTJC: Tensor, matrix: Tensor) -> Tensor:
    """x' = matrix x, with a matrix for each joint: shape (N, V, J, 3, 3).

    Sums are taken in one order, a coordinate plane at a time: no library's choice shows in a bit,
    and it is faster than a matrix library is for matrices as small.
    """
    x, y, z = x_NVMTJC.unbind(-1)
    matrix = matrix[:, :, None, None]
    planes = [
        (x * row[..., 0]).add_(y * row[..., 1]).add_(z * row[..., 2]) for row in matrix.unbind(-2)
    ]
    return torch.stack(planes, -1)
