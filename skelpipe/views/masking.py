"""Semantic tube masking (SLiM, Algorithm 1), drawn for a whole batch of views at once.

Masks live on tokens: steps of patch_frames frames by joints (S3); True means masked (S2).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe.errors import UserError
from skelpipe.random import below, uniform
from skelpipe.skeleton import Topology

_MOST_SUBSETS = 20_000  # of one width in one part; all of a 21-joint hand are 3,175
_HALF = 15  # joints in half a word
_WORD = 2 * _HALF  # joints in a word, an int32
_BLOCK = 8  # tubes between two looks at which views have enough


@dataclass(frozen=True, eq=False)
class Subsets:
    """Every contiguous subset of every body part, with its probability.

    Attributes:
        joints: One subset a row, shape (S, J), bool.
        words: The same joints as the bits of K words, shape (S, K), int32.
        width: Joints in it, shape (S,), int64.
        cumulative: Cumulative probability, shape (S,), float64: part uniform, width uniform in
            1 ... |part|, then the subset as grown joint by joint from a random seed.
        parts: The body parts themselves, shape (P, J), bool.
    """

    joints: Tensor
    words: Tensor
    width: Tensor
    cumulative: Tensor
    parts: Tensor
    _copies: dict[torch.device, Subsets] = field(default_factory=dict, init=False, repr=False)

    def to(self, device: torch.device) -> Subsets:
        """The same table on a device, copied there once."""
        if device == self.joints.device:
            return self
        if device not in self._copies:
            tensors = (self.joints, self.words, self.width, self.cumulative, self.parts)
            self._copies[device] = Subsets(*(tensor.to(device) for tensor in tensors))
        return self._copies[device]


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
    parts = _table(topology.parts.values(), topology)
    return Subsets(table, _pack(table), table.sum(1), cumulative, parts)


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


def _places(device: torch.device) -> Tensor:
    """Bits of a word that stand for joints: no half of it has its sign, so halves are numbers."""
    place = torch.arange(_WORD, dtype=torch.int32, device=device)
    return place + place // _HALF


def _pack(rows: Tensor) -> Tensor:
    """Joints as bits: shape (S, J), bool, to (S, K), int32."""
    spare = -rows.shape[1] % _WORD
    places = F.pad(rows, (0, spare)).unflatten(1, (-1, _WORD)).to(torch.int64)
    words: Tensor = (places << _places(rows.device)).sum(-1).to(torch.int32)
    return words


def _unpack(words: Tensor, joints: int) -> Tensor:
    """Bits as joints: shape (..., K), int32, to (..., J), bool."""
    ones: Tensor = ((words[..., None] >> _places(words.device)) & 1).bool().flatten(-2)
    return ones[..., :joints]


@lru_cache(maxsize=4)
def _ones(device: torch.device) -> Tensor:
    """How many bits are set in each number of half a word."""
    number = torch.arange(2**_HALF, device=device)
    return torch.stack([(number >> place) & 1 for place in range(_HALF)]).sum(0).to(torch.uint8)


@lru_cache(maxsize=16)
def _first_steps(most: int, device: torch.device) -> Tensor:
    """Row n has all bits in the first n steps and none in the others: shape (most + 1, most)."""
    return -torch.ones(most + 1, most, dtype=torch.int32, device=device).tril(-1)


def masked_tokens(key: Tensor, tokens: Tensor, ratio: tuple[float, float]) -> Tensor:
    """How many of a view's N tokens are masked: uniform in [ratio[0] N, ratio[1] N], never all.

    It is drawn for each mask (S7).

    Args:
        key: Keys of the draws, shape (B,).
        tokens: N of each view, shape (B,), int64.
        ratio: Range of the masked share; the paper has (0.5, 0.9).

    Returns:
        Shape (B,), int64.
    """
    highest = (tokens.double() * ratio[1] + 1e-6).floor().long().minimum(tokens - 1)
    lowest = (tokens.double() * ratio[0] - 1e-6).ceil().long().minimum(highest)
    return lowest + below(key, "masked tokens", 1, (highest - lowest + 1)[:, None])[:, 0]


def tube_masks(
    key: Tensor,
    steps: int | Tensor,
    subsets: Subsets,
    *,
    ratio: tuple[float, float],
    min_area: int,
    max_area: float,
    max_tubes: int = 64,
    overshoot: bool = False,
) -> Tensor:
    """Draw one mask a key (Algorithm 1).

    The number of masked tokens is that of `masked_tokens`. A tube's area is uniform between
    ``min_area`` and the larger of it and the allowed one (S4); the last tube is trimmed to what is
    left, later steps first, unless ``overshoot`` (S5). After ``max_tubes`` tubes what is left is
    filled from random parts.

    A step's joints are bits of a word, so that a tube is an OR of words and what it adds is a
    count of bits. All views, of all lengths, get their tubes together, one after the other; now
    and then those that have enough are put aside.

    Args:
        key: Keys of the draws, shape (B,).
        steps: Temporal tokens of a view, T / P_T: of all, or of each, shape (B,), int64.
        subsets: Of `contiguous_subsets`.
        ratio: Range of the masked share; the paper has (0.5, 0.9).
        min_area: A_min in tokens; the paper has 8.
        max_area: A_max as a share of N; the paper has 0.5.
        max_tubes: Tubes drawn at most.
        overshoot: Leave the last tube whole, as the paper's algorithm does.

    Returns:
        Shape (B, most steps, J), bool, True = masked. Steps that a view has not are False.
    """
    subsets = subsets.to(key.device)
    count, joints = len(key), subsets.joints.shape[1]
    steps_B = torch.full_like(key, steps) if isinstance(steps, int) else steps
    most = steps if isinstance(steps, int) else int(steps.max()) if count else 1
    tokens_B = steps_B * joints
    ones, first_steps = _ones(key.device), _first_steps(most, key.device)

    # Numbers are whole and small: float32 holds them exactly.
    limits_B = (tokens_B.double() * max_area).floor().clamp(min=min_area).float()
    left_B = masked_tokens(key, tokens_B, ratio).float()
    everyone = torch.ones(1, joints, dtype=torch.bool, device=key.device)
    free_B = _pack(everyone).expand(count, most, -1).contiguous()
    last_B = torch.zeros_like(free_B)
    open_B = torch.arange(count, device=key.device)
    for first in range(0, max_tubes, _BLOCK):
        if not len(open_B):
            break
        tubes = min(_BLOCK, max_tubes - first)
        own_key, own_steps, limit = key[open_B], steps_B[open_B].float(), limits_B[open_B]
        left, free, last = left_B[open_B], free_B[open_B], last_B[open_B]
        chosen = _subset(own_key, first, tubes, subsets)
        area_draw = uniform(own_key, "tube area", tubes, first)
        start_draw = uniform(own_key, "tube start", tubes, first)
        drawn = subsets.words[chosen], subsets.width[chosen], area_draw, start_draw
        for word, width, share, place in zip(*(draws.unbind(1) for draws in drawn), strict=True):
            roof = left.minimum(limit).clamp_(min=min_area)
            area = roof.sub_(min_area).mul_(share).add_(min_area)
            duration = area.div_(width).round_().clamp_(min=1).minimum(own_steps)
            start = (own_steps - duration).add_(1).mul_(place).floor_()
            going = left > 0
            begin, end = (start * going).int(), ((start + duration) * going).int()
            span = first_steps.index_select(0, end) ^ first_steps.index_select(0, begin)
            fresh = (span[..., None] & word[:, None]).bitwise_and_(free)
            halves = fresh.view(torch.int16).flatten().int()
            left -= ones.index_select(0, halves).view(len(left), -1).sum(1)
            last = torch.where(going[:, None, None], fresh, last)
            free ^= fresh
        left_B[open_B], free_B[open_B], last_B[open_B] = left, free, last
        open_B = open_B[left > 0]

    mask = ~_unpack(free_B, joints).flatten(1)
    token = torch.arange(most * joints, device=key.device)
    mask &= token < tokens_B[:, None]
    if len(open_B):
        own = mask[open_B]
        closed = own | (token >= tokens_B[open_B, None])
        mask[open_B] = own | _fill(key[open_B], closed, left_B[open_B, None], subsets)
    if overshoot:
        # Even then a view keeps one token to be encoded from (S5).
        full = mask.sum(1) == tokens_B
        mask &= ~(full[:, None] & (token == tokens_B[:, None] - 1))
    else:
        last = _unpack(last_B, joints).flatten(1)
        excess = left_B.clamp(max=0)[:, None]
        mask &= ~(last & (last.cumsum(1) > last.sum(1, keepdim=True) + excess))
    return mask.view(count, most, joints)


def _subset(key: Tensor, first: int, count: int, subsets: Subsets) -> Tensor:
    """Rows of the subsets that tubes ``first``, ... have, by the subsets' law: shape (B, count)."""
    draws = uniform(key, "tube part", count, first).to(torch.float64)
    chosen = torch.searchsorted(subsets.cumulative, draws, right=True)
    return chosen.clamp(max=len(subsets.width) - 1)


def _fill(key: Tensor, closed: Tensor, left: Tensor, subsets: Subsets) -> Tensor:
    """What is left to mask, taken from one body part after another in random order."""
    part_J = subsets.parts.long().argmax(0)
    # The place in the order at which each joint's part comes.
    place = uniform(key, "fill", len(subsets.parts)).argsort(dim=1, stable=True).argsort(1)
    rank = place[:, part_J].repeat(1, closed.shape[1] // len(part_J))
    rank = rank.masked_fill(closed, len(subsets.parts))
    chosen = rank.argsort(dim=1, stable=True)
    taken = torch.arange(closed.shape[1], device=closed.device) < left
    return torch.zeros_like(closed).scatter(1, chosen, taken)
