"""Skeleton-aware augmentations (SLiM, Appendix 0.D), drawn and applied for a whole batch at once.

Scaling and mirroring act on joints, rotation on coordinates, so a view's augmentation is one joint
matrix and one coordinate matrix: x' = J x R^T. Order: scale, mirror, rotate about the origin, which
pipeline "ctrgcn" puts at the spine (S18, S19). All bodies of a sample share the draws (S8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skelpipe.random import uniform
from skelpipe.skeleton import Topology


@dataclass(frozen=True)
class Transform:
    """What augments each view: x' = joints @ x @ turn^T.

    Attributes:
        joints: Acts on the joint axis, shape (..., J, J).
        turn: Acts on coordinates, shape (..., 3, 3); a mirrored view's has a reflection in it.
    """

    joints: Tensor
    turn: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Augment views of shape (..., W, J, 3), as many leading axes as the matrices have."""
        turned = x @ self.turn.mT[..., None, :, :]
        frames_last = turned.transpose(-3, -2).flatten(-2)
        moved = self.joints @ frames_last
        return moved.view(*moved.shape[:-1], x.shape[-3], 3).transpose(-3, -2)

    def __getitem__(self, index: Tensor) -> Transform:
        return Transform(self.joints[index], self.turn[index])


def bone_scaling(topology: Topology, scale: Tensor) -> Tensor:
    """Joint matrices that multiply bone lengths and keep directions and root (Algorithm 4).

    Args:
        topology: The tree; a bone belongs to its child's part (S21).
        scale: Factor of each part, shape (..., P), constant over a clip.

    Returns:
        Shape (..., J, J).
    """
    device = scale.device
    count = len(topology.joints)
    bones = torch.eye(count, device=device)
    for joint, parent in enumerate(topology.parents):
        if parent >= 0:
            bones[joint, parent] -= 1
    root = torch.zeros(count, count, device=device)
    root[:, topology.root] = 1
    bones[topology.root] = 0
    ancestry = torch.from_numpy(topology.ancestry).to(device)
    scale_J = scale[..., torch.from_numpy(topology.part_of).to(device)]
    return root + (ancestry * scale_J[..., None, :]) @ bones


def mirroring(topology: Topology, device: torch.device) -> tuple[Tensor, Tensor]:
    """Joint permutation and lateral reflection of Algorithm 3: shapes (J, J) and (3, 3)."""
    swap = torch.eye(len(topology.joints), device=device)
    swap = swap[torch.from_numpy(topology.mirrored).to(device)]
    return swap, torch.diag(torch.tensor([-1.0, 1.0, 1.0], device=device))


def rotation(angles: Tensor) -> Tensor:
    """R = Rz Ry Rx of Algorithm 2 from (alpha, beta, gamma) in radians: (..., 3) -> (..., 3, 3)."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, -1).view(*angles.shape[:-1], 3, 3)


def skeleton_aware(
    key: Tensor,
    topology: Topology,
    *,
    probability: float,
    vertical: float,
    tilt: float,
    scale: tuple[float, float],
    symmetric: bool,
) -> Transform:
    """Draw SLiM's three augmentations, each on its own with the same probability.

    Args:
        key: Keys of the draws, one a view, shape (...).
        topology: Tree, parts and mirror pairs; y must be up.
        probability: Of each augmentation; the paper has 0.5.
        vertical: Rotation about y is uniform in +-vertical degrees; the paper has 180.
        tilt: Rotations about x and z are uniform in +-tilt degrees; the paper has 30.
        scale: Range of a part's bone scale; the paper has (0.85, 1.15).
        symmetric: Give mirrored parts one factor. The paper draws left and right apart (S22).
    """
    device = key.device
    scaled, mirrored, turned = (uniform(key, "applied", 3) < probability).unbind(-1)

    factor = uniform(key, "bone scale", len(topology.parts)) * (scale[1] - scale[0]) + scale[0]
    if symmetric:
        partner = topology.part_of[topology.mirrored]
        twin = [int(partner[part[0]]) for part in topology.parts.values()]
        factor = factor[..., [min(number, other) for number, other in enumerate(twin)]]
    factor = torch.where(scaled[..., None], factor, 1.0)
    joints = bone_scaling(topology, factor)
    swap, reflect = mirroring(topology, device)
    joints = torch.where(mirrored[..., None, None], swap @ joints, joints)

    limit = torch.tensor([tilt, vertical, tilt], device=device) * (math.pi / 180)
    angles = (2 * uniform(key, "angles", 3) - 1) * limit
    turn = rotation(torch.where(turned[..., None], angles, 0.0))
    turn = torch.where(mirrored[..., None, None], turn @ reflect, turn)
    return Transform(joints, turn)
