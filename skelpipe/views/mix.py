"""CutMix, ResizeMix and Mixup of the clips of a global batch (PCM3, Sec. 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skelpipe.config.pcm3 import Mix
from skelpipe.errors import UserError
from skelpipe.random import below, uniform
from skelpipe.skeleton import Topology
from skelpipe.views.constants import part_of
from skelpipe.views.sampling import lowest


@dataclass(frozen=True)
class Mixed:
    """Mixed clips and what their embedding should be: z(1 - share) + z[partner] share.

    Attributes:
        x_NTC: The clips.
        partner_N: Place of each sample's partner among the rows of the global batch, int64.
        share_N: The partner's share, lambda, of the clips' dtype.
    """

    x_NTC: Tensor
    partner_N: Tensor
    share_N: Tensor


@dataclass(frozen=True)
class Draws:
    """How each sample is mixed.

    Attributes:
        shift_N: Places from a sample to its partner in the global batch, cyclically.
        cut_N, resize_N: True for CutMix and for ResizeMix; where both are False, Mixup.
        joints_NJ: Joints of the region that the former two replace, bool.
        start_N, length_N: Its frames.
        share_N: Mixup's lambda in [0, 1), float32.
    """

    shift_N: Tensor
    cut_N: Tensor
    resize_N: Tensor
    joints_NJ: Tensor
    start_N: Tensor
    length_N: Tensor
    share_N: Tensor


def check_parts(topology: Topology, mix: Mix) -> None:
    """Raise a UserError where the skeleton has fewer parts than a region may have."""
    fewest, most = mix.parts
    parts = len(topology.parts)
    if most > parts:
        raise UserError(
            f"mix.parts asks for more parts than skeleton '{topology.name}' has",
            place="mix.parts",
            found=f"up to {most} of {parts}",
            remedy=f"--set 'mix.parts=[{min(fewest, parts)}, {parts}]'",
        )


def draw_mix(key_N: Tensor, total: int, frames: int, topology: Topology, mix: Mix) -> Draws:
    """Draw how each sample is mixed; samples with the same key are mixed alike.

    Args:
        key_N: Keys of the draws.
        total: G samples of the global batch. The shift is uniform in [1, G - 2], as released; 1
            where G is below 3.
        frames: T of a clip, divided evenly into ``mix.steps``.
        topology: Gives the parts. A region's are a uniform number of them, drawn without
            replacement, over a block of uniform length that starts where it fits.
        mix: The settings.

    Raises:
        UserError: As `check_parts`.
    """
    check_parts(topology, mix)
    fewest, most = mix.parts
    parts = len(topology.parts)
    kind_N = uniform(key_N, "mix kind", 1)[:, 0]
    count_N = fewest + below(key_N, "mix part count", 1, most - fewest + 1)
    part_J = part_of(topology, key_N.device)
    chosen_NP = lowest(uniform(key_N, "mix parts", parts), count_N)
    shortest, longest = mix.length
    length_N = shortest + below(key_N, "mix length", 1, longest - shortest + 1)[:, 0]
    start_N = below(key_N, "mix start", 1, (mix.steps - length_N + 1)[:, None])[:, 0]
    step = frames // mix.steps
    return Draws(
        shift_N=1 + below(key_N, "mix partner", 1, max(total - 2, 1))[:, 0],
        cut_N=kind_N < mix.cut,
        resize_N=(kind_N >= mix.cut) & (kind_N < mix.cut + mix.resize),
        joints_NJ=chosen_NP[:, part_J],
        start_N=start_N * step,
        length_N=length_N * step,
        share_N=uniform(key_N, "mix share", 1)[:, 0],
    )


def mix_clips(x_GTC: Tensor, first: int, key_N: Tensor, topology: Topology, mix: Mix) -> Mixed:
    """Mix N clips of a global batch of G, each with another one.

    CutMix replaces a region, some parts of all bodies over a block of L frames, by the partner's.
    ResizeMix fills it with the partner's first min(2 L, T) frames, resized to L by taking frame
    floor(i min(2 L, T) / L) as the i-th. Mixup is x (1 - lambda) + partner lambda. Of the former
    two, lambda is the region's share of all (step, joint) cells. What is outside a region keeps
    its value, and what is inside has the partner's, bit for bit.

    Args:
        x_GTC: All clips, with channels joint by joint as `modality.channels` has them.
        first: Place of the first of the N that are mixed here.
        key_N: Keys of their draws.
        topology: Gives joints and parts.
        mix: The settings.

    Raises:
        UserError: As `draw_mix`.
    """
    frames, x_NTC = x_GTC.shape[1], x_GTC[first : first + len(key_N)]
    draws = draw_mix(key_N, len(x_GTC), frames, topology, mix)
    here_N = torch.arange(first, first + len(key_N), device=key_N.device)
    partner_N = (here_N + draws.shift_N) % len(x_GTC)

    frame_T = torch.arange(frames, device=key_N.device)
    length_N1 = draws.length_N[:, None]
    place_NT = frame_T - draws.start_N[:, None]
    inside_NT = (place_NT >= 0) & (place_NT < length_N1)
    resized_NT = place_NT * (2 * length_N1).clamp(max=frames) // length_N1
    source_NT = torch.where(inside_NT & draws.resize_N[:, None], resized_NT, frame_T)
    other_NTC = x_GTC[partner_N[:, None], source_NT]

    pasted_N = draws.cut_N | draws.resize_N
    area_N = draws.joints_NJ.sum(1) * draws.length_N
    share_N = torch.where(
        pasted_N,
        area_N.to(x_NTC.dtype) / (draws.joints_NJ.shape[1] * frames),
        draws.share_N.to(x_NTC.dtype),
    )
    width = x_NTC.shape[2] // draws.joints_NJ.shape[1]
    region_NTC = inside_NT[..., None] & draws.joints_NJ.repeat_interleave(width, 1)[:, None]
    pasted_NTC = torch.where(region_NTC, other_NTC, x_NTC)
    share_N11 = share_N[:, None, None]
    blend_NTC = (x_NTC * (1 - share_N11)).add_(other_NTC * share_N11)
    return Mixed(torch.where(pasted_N[:, None, None], pasted_NTC, blend_NTC), partner_N, share_N)
