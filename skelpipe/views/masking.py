"""Semantic tube masking (SLiM, Algorithm 1), drawn for a whole batch of views at once.

Masks live on tokens: steps of patch_frames frames by joints (S3); True means masked (S2).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skelpipe.errors import UserError
from skelpipe.random import below, uniform
from skelpipe.skeleton import Topology

_MOST_SUBSETS = 20_000  # of one width in one part; all of a 21-joint hand are 3,175


@dataclass(frozen=True)
class Subsets:
    """Every contiguous subset of every body part, with its probability.

    Attributes:
        joints: One subset a row, shape (S, J), bool.
        width: Joints in it, shape (S,), int64.
        cumulative: Cumulative probability, shape (S,), float64: part uniform, width uniform in
            1 ... |part|, then the subset as grown joint by joint from a random seed.
        parts: The body parts themselves, shape (P, J), bool.
    """

    joints: Tensor
    width: Tensor
    cumulative: Tensor
    parts: Tensor

    def to(self, device: torch.device) -> Subsets:
        """The same table on a device."""
        return Subsets(
            self.joints.to(device),
            self.width.to(device),
            self.cumulative.to(device),
            self.parts.to(device),
        )


def contiguous_subsets(topology: Topology, subset: Literal["tree", "slice"]) -> Subsets:
    """The law of Algorithm 1's Step 1 as a table, so that a draw is one look-up.

    "Contiguous" is not defined in the paper (S6). "tree" grows a connected subtree: a uniform seed
    joint, then a uniform neighbour within the part, until the width is reached; joints whose
    parent lies in the part are neighbours of it and of each other through it. "slice" takes a
    slice of the part's list in the manifest's order.
    """
    law: dict[frozenset[int], float] = {}
    for part in topology.parts.values():
        for width in range(1, len(part) + 1):
            share = 1 / len(topology.parts) / len(part)
            tree = subset == "tree"
            grown = _subtrees(part, width, topology) if tree else _slices(part, width)
            for joints, probability in grown.items():
                law[joints] = law.get(joints, 0.0) + share * probability
    table = _table(law, topology)
    cumulative = torch.tensor(list(law.values()), dtype=torch.float64).cumsum(0)
    return Subsets(table, table.sum(1), cumulative, _table(topology.parts.values(), topology))


def _table(rows: Collection[Collection[int]], topology: Topology) -> Tensor:
    table = torch.zeros(len(rows), len(topology.joints), dtype=torch.bool)
    for row, joints in enumerate(rows):
        table[row, list(joints)] = True
    return table


def _slices(part: tuple[int, ...], width: int) -> dict[frozenset[int], float]:
    starts = len(part) - width + 1
    return {frozenset(part[start : start + width]): 1 / starts for start in range(starts)}


def _subtrees(part: tuple[int, ...], width: int, topology: Topology) -> dict[frozenset[int], float]:
    neighbours = {
        joint: {
            other
            for other in part
            if topology.parents[other] == joint or topology.parents[joint] == other
        }
        for joint in part
    }
    law = {frozenset([joint]): 1 / len(part) for joint in part}
    for _ in range(width - 1):
        grown: dict[frozenset[int], float] = {}
        for joints, probability in law.items():
            # A part that is no connected piece of the tree goes on with any of its joints.
            edge = set().union(*(neighbours[j] for j in joints)) - joints or set(part) - joints
            for joint in sorted(edge):
                larger = joints | {joint}
                grown[larger] = grown.get(larger, 0.0) + probability / len(edge)
        if len(grown) > _MOST_SUBSETS:  # the pieces of a star are all its subsets
            names = ", ".join(topology.joints[joint] for joint in part[:3])
            raise UserError(
                "a part of the skeleton has too many connected pieces to draw one of them",
                place=f"the part of {names}, …",
                found=f"more than {_MOST_SUBSETS:,} of {width} joints",
                remedy="divide the part in the manifest, or add --set mask.subset=slice",
            )
        law = grown
    return law


def tube_masks(
    key: Tensor,
    steps: int,
    subsets: Subsets,
    *,
    ratio: tuple[float, float],
    min_area: int,
    max_area: float,
    max_tubes: int = 64,
    overshoot: bool = False,
) -> Tensor:
    """Draw one mask a key (Algorithm 1).

    The number of masked tokens is uniform in [ratio[0] N, ratio[1] N], drawn for each mask (S7),
    and never all N. A tube's area is uniform between ``min_area`` and the larger of it and the
    allowed one (S4); the last tube is trimmed to what is left, later steps first, unless
    ``overshoot`` (S5). After ``max_tubes`` tubes what is left is filled from random parts.

    Args:
        key: Keys of the draws, shape (B,).
        steps: Temporal tokens of a view, T / P_T.
        subsets: Of `contiguous_subsets`.
        ratio: Range of the masked share; the paper has (0.5, 0.9).
        min_area: A_min in tokens; the paper has 8.
        max_area: A_max as a share of N; the paper has 0.5.
        max_tubes: Tubes drawn at most.
        overshoot: Leave the last tube whole, as the paper's algorithm does.

    Returns:
        Shape (B, steps, J), bool, True = masked.
    """
    device = key.device
    views, joints = len(key), subsets.joints.shape[1]
    tokens = steps * joints
    highest = min(math.floor(ratio[1] * tokens + 1e-6), tokens - 1)
    lowest = min(math.ceil(ratio[0] * tokens - 1e-6), highest)
    target = lowest + below(key, "masked tokens", 1, highest - lowest + 1)
    largest = max(int(max_area * tokens), min_area)

    draws = uniform(key, "tube part", max_tubes).to(torch.float64)
    chosen = torch.searchsorted(subsets.cumulative, draws, right=True)
    chosen = chosen.clamp(max=len(subsets.width) - 1)
    width = subsets.width[chosen]
    area_draw = uniform(key, "tube area", max_tubes)
    start_draw = uniform(key, "tube start", max_tubes)
    step = torch.arange(steps, device=device)
    mask = torch.zeros(views, tokens, dtype=torch.bool, device=device)
    count = torch.zeros(views, 1, dtype=torch.int64, device=device)
    for tube in range(max_tubes):
        left = target - count
        if not (left > 0).any():
            break
        roof = left.clamp(max=largest).clamp(min=min_area)
        area = min_area + area_draw[:, tube, None] * (roof - min_area)
        duration = (area / width[:, tube, None]).round().long().clamp(1, steps)
        start = (start_draw[:, tube, None] * (steps - duration + 1)).long()
        within = (step >= start) & (step < start + duration)
        fresh = (within[:, :, None] & subsets.joints[chosen[:, tube]][:, None, :]).flatten(1)
        fresh &= ~mask & (left > 0)
        if not overshoot:
            fresh &= fresh.cumsum(1) <= left
        mask |= fresh
        count += fresh.sum(1, keepdim=True)
    left = target - count
    if (left > 0).any():
        mask |= _fill(key, mask, left, steps, subsets)
    if overshoot:
        # Even then a view keeps one token to be encoded from (S5).
        mask[mask.all(1), -1] = False
    return mask.view(views, steps, joints)


def _fill(key: Tensor, mask: Tensor, left: Tensor, steps: int, subsets: Subsets) -> Tensor:
    """What is left to mask, taken from one body part after another in random order."""
    part_J = subsets.parts.long().argmax(0)
    # The place in the order at which each joint's part comes.
    place = uniform(key, "fill", len(subsets.parts)).argsort(dim=1, stable=True).argsort(1)
    rank = place[:, part_J].repeat(1, steps).masked_fill(mask, len(subsets.parts))
    chosen = rank.argsort(dim=1, stable=True)
    taken = torch.arange(mask.shape[1], device=mask.device) < left
    return torch.zeros_like(mask).scatter(1, chosen, taken)
