"""The streams of a skeleton: joints, bones, motion. They are taken after crop and augmentation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from skelpipe.skeleton import Topology
from skelpipe.views.constants import constant

Modality = Literal["joint", "bone", "motion"]


def stream(x_NMTJC: Tensor, modality: Modality, topology: Topology) -> Tensor:
    """Coordinates as they are, as bones or as motion, of the same shape.

    A bone is a joint minus its `Topology.bone_parents` joint, zero at the root; motion is the next
    frame minus this one, zero in the last frame (both as PCM3, CMD and MAMP have them).
    """
    if modality == "bone":
        parents = constant(topology.bone_parents, x_NMTJC.device)
        return x_NMTJC - x_NMTJC[..., parents, :]
    if modality == "motion":
        moved = torch.zeros_like(x_NMTJC)
        moved[:, :, :-1] = x_NMTJC[:, :, 1:] - x_NMTJC[:, :, :-1]
        return moved
    return x_NMTJC


def channels(x_NMTJC: Tensor, modality: Modality, topology: Topology) -> Tensor:
    """The stream with all of a frame in one axis: joint by joint, in it x, y, z, in them the body.

    Returns:
        Shape (N, T, J * 3 * M), the order of the released code's input (150 of two bodies).
    """
    return stream(x_NMTJC, modality, topology).permute(0, 2, 3, 4, 1).flatten(2)
