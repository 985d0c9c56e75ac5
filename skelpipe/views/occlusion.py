"""Occlusion of views as PCM3 evaluates it (Sec. 4.3): body parts, or a block of frames, are hidden.

The paper says no more than "body parts", "a block of frames", "to zeros" and a ratio from
[0.3, 0.7]; our reading (P15) is in the functions. True means hidden. All bodies of a sample are
hidden alike.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.random import below, uniform
from skelpipe.skeleton import Topology
from skelpipe.views.constants import part_of
from skelpipe.views.sampling import lowest

Occluded = Literal["spatial", "temporal"]

_PPM = 1_000_000


def check_occludable(topology: Topology) -> None:
    """Raise a UserError where a skeleton has no two parts, of which one can be hidden."""
    if len(topology.parts) < 2:
        raise UserError(
            f"skeleton '{topology.name}' has a single part: hidden, it would leave nothing",
            expected="two parts or more",
            remedy="divide the skeleton into parts in its manifest, or use occlusion-temporal",
        )


def occlusion_masks(
    key_N: Tensor,
    occluded: Occluded,
    frames: int,
    topology: Topology,
    ratio: tuple[float, float],
) -> Tensor:
    """What is hidden of views of T frames: `hidden_parts` throughout, or all in `hidden_block`.

    Returns:
        Shape (N, T, J), bool.
    """
    joints = len(topology.joints)
    if occluded == "spatial":
        return hidden_parts(key_N, topology, ratio)[:, None].expand(-1, frames, -1)
    return hidden_block(key_N, frames, ratio)[..., None].expand(-1, -1, joints)


def hidden_parts(key_N: Tensor, topology: Topology, ratio: tuple[float, float]) -> Tensor:
    """The joints of n of a skeleton's P parts, for the whole view.

    n = round(r P), halves up, at least 1 and at most P - 1, with r uniform in the closed range
    ``ratio``: of five parts at 0.3 to 0.7 two or three.

    Args:
        key_N: Keys of the draws.
        topology: Gives the parts, two at least.
        ratio: Smallest and largest share.

    Returns:
        Shape (N, J), bool.
    """
    parts = len(topology.parts)
    count = _rounded_share(key_N, parts, ratio)
    hidden_NP = lowest(uniform(key_N, "occluded parts", parts), count)
    return hidden_NP[:, part_of(topology, key_N.device)]


def hidden_block(key_N: Tensor, frames: int, ratio: tuple[float, float]) -> Tensor:
    """One block of n of T frames at a random place.

    n = round(r T), as in `hidden_parts`; the start is uniform among those at which it fits.

    Returns:
        Shape (N, T), bool.
    """
    length = _rounded_share(key_N, frames, ratio)
    start = below(key_N, "occluded from", 1, frames - length + 1)
    place = torch.arange(frames, device=key_N.device)
    return (place >= start) & (place < start + length)


def _rounded_share(key_N: Tensor, whole: int, ratio: tuple[float, float]) -> Tensor:
    """A random share of a number, rounded, neither none nor all of it: shape (N, 1), int64."""
    least, most = (round(share * _PPM) for share in ratio)
    share = least + below(key_N, "occluded share", 1, most - least + 1)
    return ((share * whole + _PPM // 2) // _PPM).clamp(1, whole - 1)
