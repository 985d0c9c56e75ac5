"""Skeleton-aware augmentations (SLiM, Appendix 0.D), drawn and applied for a whole batch at once.

Scaling and mirroring act on joints, rotation on coordinates, so a view's augmentation is one joint
matrix and one coordinate matrix: x' = J x R^T. Order: scale, mirror, rotate about the origin, which
pipeline "ctrgcn" puts at the spine (S18, S19). All bodies of a sample share the draws (S8).

Each of the three has the limited form with which Table 7 compares it, as S39 reads it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from skelpipe.random import below, uniform
from skelpipe.skeleton import Topology

Rotation = Literal["skeleton", "axis", "none"]
Mirroring = Literal["skeleton", "index", "none"]
Scaling = Literal["bone", "axes", "none"]

_AXIS_TURN = 30.0  # degrees, SkateFormer's
_AXES_SCALE = 0.2  # SkateFormer's: factors lie in 1 +- 0.2


@dataclass(frozen=True)
class Transform:
    """What augments each view: x' = joints @ x @ turn^T.

    A joint matrix is large beside a short view. It is made of a few matrices that all views share,
    where and when it is used.

    Attributes:
        terms: Weights of the shared matrices, shape (..., K).
        basis: The shared matrices, shape (K, J, J).
        turn: Acts on coordinates, shape (..., 3, 3); a mirrored view's has a reflection in it.
    """

    terms: Tensor
    basis: Tensor
    turn: Tensor

    @property
    def joints(self) -> Tensor:
        """What acts on the joint axis, shape (..., J, J)."""
        joints: Tensor = (self.terms @ self.basis.flatten(1)).unflatten(-1, self.basis.shape[1:])
        return joints

    def __call__(self, x: Tensor) -> Tensor:
        """Augment views of shape (..., W, J, 3), as many leading axes as the matrices have."""
        return self.planar(x.movedim(-1, -3)).movedim(-3, -1)

    def planar(self, x: Tensor) -> Tensor:
        """The same for views whose coordinates come first, shape (..., 3, W, J).

        In this order both products are plain matrix products of contiguous blocks.
        """
        moved = _product(x.flatten(-3, -2), self.joints.mT)
        return _product(self.turn, moved.reshape(*x.shape[:-3], 3, -1)).view(x.shape)

    def __getitem__(self, index: Tensor | slice) -> Transform:
        return Transform(self.terms[index], self.basis, self.turn[index])


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; in float64 in an order of its own, so that no library's choice shows in a bit.

    A matrix library may sum in another order for another number of matrices. float64 is the mode
    of exact comparison: a sample's views must not depend on what is in its batch.
    """
    if a.dtype != torch.float64:
        return a @ b
    total = a[..., :, :1] * b[..., :1, :]
    for term in range(1, a.shape[-1]):
        total += a[..., :, term, None] * b[..., term, None, :]
    return total


def joint_terms(
    topology: Topology, scale: Tensor, mirrored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Joint matrices that scale bones by their parts' factors and then mirror where asked.

    Scaling multiplies bone lengths and keeps directions and root (Algorithm 4). Such a matrix is
    linear in the factors, and each of its entries has at most two terms, both products with 1 or
    -1: so it is the same bits in whatever order they are summed.

    Args:
        topology: The tree; a bone belongs to its child's part (S21).
        scale: Factor of each part, shape (..., P), constant over a clip.
        mirrored: Where joints change places, shape (...), bool; nowhere if None.

    Returns:
        ``terms`` and ``basis`` of a `Transform`.
    """
    terms = torch.cat([torch.ones_like(scale[..., :1]), scale], -1)
    other = torch.zeros_like(terms) if mirrored is None else terms * mirrored[..., None]
    terms = torch.cat([terms - other, other], -1)
    parts = tuple(topology.parts.values())
    basis = _basis(topology.parents, parts, topology.mirror, scale.device, scale.dtype)
    return terms, basis


@lru_cache(maxsize=8)
def _basis(
    parents: tuple[int, ...],
    parts: tuple[tuple[int, ...], ...],
    mirror: tuple[tuple[int, int], ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """The joint matrices of the constant and of each part, then the same ones mirrored.

    Joints are the root plus the scaled bones on the path to it: a part's matrix takes the bones
    of its joints and leads them to all joints below.

    Returns:
        Shape (2 (1 + P), J, J).
    """
    topology = Topology(
        name="", joints=("",) * len(parents), parents=parents, mirror=mirror,
        parts={str(number): part for number, part in enumerate(parts)},
    )  # fmt: skip
    count = len(parents)
    bones = torch.eye(count, dtype=dtype)
    for joint, parent in enumerate(parents):
        if parent >= 0:
            bones[joint, parent] -= 1
    bones[topology.root] = 0
    ancestry = torch.from_numpy(topology.ancestry).to(dtype)
    basis = torch.zeros(1 + len(parts), count, count, dtype=dtype)
    basis[0, :, topology.root] = 1
    for number, part in enumerate(parts):
        basis[1 + number] = ancestry[:, list(part)] @ bones[list(part)]
    return torch.cat([basis, basis[:, torch.from_numpy(topology.mirrored)]]).to(device)


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
    rotation: Rotation,
    mirroring: Mirroring,
    scaling: Scaling,
    dtype: torch.dtype = torch.float32,
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
        rotation: "skeleton", or SkateFormer's "axis": +-30 degrees about one axis drawn at random.
        mirroring: "skeleton", or "index": joints change places, coordinates are not reflected.
        scaling: "bone", or "axes": each coordinate is multiplied by a factor in 1 +- 0.2.
        dtype: Of the matrices; that of the coordinates.
    """
    scaled, mirrored, turned = (uniform(key, "applied", 3) < probability).unbind(-1)
    turn = _turn(key, turned, rotation, vertical, tilt, dtype)
    if mirroring == "none":
        mirrored = torch.zeros_like(mirrored)
    if mirroring == "skeleton":
        turn = torch.cat([torch.where(mirrored, -1, 1)[..., None, None] * turn[..., :1],
                          turn[..., 1:]], -1)  # fmt: skip
    if scaling == "axes":
        factor = 1 + _AXES_SCALE * (2 * uniform(key, "axis scale", 3).to(dtype) - 1)
        turn = turn * torch.where(scaled[..., None], factor, 1)[..., None, :]
    parts = torch.ones(*key.shape, len(topology.parts), dtype=dtype, device=key.device)
    if scaling == "bone":
        drawn = uniform(key, "bone scale", len(topology.parts)).to(dtype)
        factor = drawn * (scale[1] - scale[0]) + scale[0]
        if symmetric:
            partner = topology.part_of[topology.mirrored]
            twin = [int(partner[part[0]]) for part in topology.parts.values()]
            pairs = [min(number, other) for number, other in enumerate(twin)]
            factor = torch.stack([factor[..., number] for number in pairs], -1)
        parts = torch.where(scaled[..., None], factor, parts)
    return Transform(*joint_terms(topology, parts, mirrored), turn)


def _turn(
    key: Tensor,
    turned: Tensor,
    kind: Rotation,
    vertical: float,
    tilt: float,
    dtype: torch.dtype,
) -> Tensor:
    """Rotation matrices, the identity where not turned: shape (..., 3, 3)."""
    if kind == "none":
        angles = torch.zeros(*key.shape, 3, dtype=dtype, device=key.device)
        return rotation(angles)
    drawn = 2 * uniform(key, "angles", 3).to(dtype) - 1
    if kind == "skeleton":
        limits = (tilt, vertical, tilt)
        angles = torch.stack(
            [drawn[..., axis] * math.radians(limit) for axis, limit in enumerate(limits)], -1
        )
    else:
        axis = below(key, "axis", 1, 3)
        chosen = axis == torch.arange(3, device=key.device)
        angles = torch.where(chosen, drawn * math.radians(_AXIS_TURN), 0)
    return rotation(torch.where(turned[..., None], angles, 0))
