"""Masks of PCM3 (Sec. 3.2): body parts over stretches of frames, or single joints of frames.

True means masked. They are made for body 0 alone; others stay visible (P8).
"""

from __future__ import annotations

from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.random import uniform
from skelpipe.skeleton import Topology
from skelpipe.views.constants import part_of
from skelpipe.views.sampling import lowest


def masked_parts(topology: Topology, ratio: float) -> int:
    """How many of a skeleton's P parts are masked: int(P * ratio), of five at 0.6 three (P5).

    Raises:
        UserError: The ratio is too small for a single part.
    """
    parts = len(topology.parts)
    count = int(parts * ratio + 1e-6)
    if count == 0:
        raise UserError(
            f"mask.ratio {ratio:g} masks no part of skeleton '{topology.name}'",
            place="mask.ratio",
            found=f"int({parts} parts x {ratio:g}) = 0",
            expected=f"at least 1/{parts}",
            remedy=f"--set mask.ratio={1 / parts + 0.01:.2f}, or --set mask.kind=random"
            if parts > 1
            else "--set mask.kind=random, or divide the skeleton into parts in its manifest",
        )
    return count


def part_masks(
    key_N: Tensor, frames: int, topology: Topology, *, clips: int, ratio: float
) -> Tensor:
    """Topology-based masks: in each clip the joints of other parts, drawn independently (P8).

    Args:
        key_N: Keys of the draws.
        frames: T, divided evenly into clips.
        topology: Gives the parts.
        clips: Stretches of frames.
        ratio: Of parts, as in `masked_parts`.

    Returns:
        Shape (N, T, J), bool.

    Raises:
        UserError: As `masked_parts`.
    """
    parts = len(topology.parts)
    draws = uniform(key_N, "masked parts", clips * parts).unflatten(-1, (clips, parts))
    masked = lowest(draws, masked_parts(topology, ratio))
    part_J = part_of(topology, key_N.device)
    return masked[..., part_J].repeat_interleave(frames // clips, dim=1)


def masked_cells(cells: int, ratio: float) -> int:
    """How many of all (frame, joint) cells a random mask hides: the nearest to their share (P20).

    Raises:
        UserError: The ratio is too small for a single cell.
    """
    count = round(ratio * cells)
    if count == 0:
        raise UserError(
            f"mask.ratio {ratio:g} masks nothing",
            place="mask.ratio",
            found=f"{cells} cells of frames and joints",
            expected=f"at least {1 / cells:.2g}",
        )
    return count


def cell_masks(key_N: Tensor, frames: int, joints: int, *, ratio: float) -> Tensor:
    """Random masks of `masked_cells` cells each (P20).

    Returns:
        Shape (N, T, J), bool.

    Raises:
        UserError: As `masked_cells`.
    """
    cells = frames * joints
    masked = lowest(uniform(key_N, "masked cells", cells), masked_cells(cells, ratio))
    return masked.view(-1, frames, joints)
