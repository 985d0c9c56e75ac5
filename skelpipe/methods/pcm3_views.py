"""The views of PCM3: query and key, the clip that is masked, and the mixed one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skelpipe.config import PCM3Recipe
from skelpipe.distributed import gather_rows
from skelpipe.errors import UserError
from skelpipe.manifest import load_topology, manifest_names
from skelpipe.random import fold
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Batch
from skelpipe.views.clips import crop_clips
from skelpipe.views.corrupt import shear_or_corrupt
from skelpipe.views.mix import Mixed, check_parts, mix_clips
from skelpipe.views.modality import channels
from skelpipe.views.parts import cell_masks, masked_cells, masked_parts, part_masks
from skelpipe.views.sampling import random_interval

_CORRUPTIBLE = (True, True, False)  # query and key; the masked clip is sheared alone (P8)


@dataclass(frozen=True)
class Views:
    """The views of this rank's N samples, in one stream, as C = J * 3 * M channels a frame.

    Attributes:
        query_NTC, key_NTC: Two augmented crops.
        clip_NTC: A third crop, sheared, whole: what is predicted where it is masked (P3).
        masked_NTC: True for the masked channels of ``clip_NTC``; never those of another body than
            the first (P8). One mask may lie under all samples: do not write to it.
        mixed_NTC: Each query mixed with its partner's; no rows where "inter" is no positive.
        partner_N: Place of each sample's partner among the rows of the global batch, int64.
        share_N: The partner's share of ``mixed_NTC``, lambda, of the coordinates' dtype.
    """

    query_NTC: Tensor
    key_NTC: Tensor
    clip_NTC: Tensor
    masked_NTC: Tensor
    mixed_NTC: Tensor
    partner_N: Tensor
    share_N: Tensor


def draw_views(batch: Batch, recipe: PCM3Recipe, topology: Topology) -> Views:
    """Draw the views of a batch.

    Each of the three crops has its interval and its shear or joint corruption, keyed by (seed,
    epoch, sample, view). Bones or motion are taken after that, before mask and mix. Mask and mix
    are keyed by (seed, epoch, step), one for the global batch, or each sample has its own
    (``views.shared``). So the views are the same for any number of ranks.

    Raises:
        UserError: The skeleton's parts do not suit ``mask.ratio`` or ``mix.parts``.
    """
    spec = recipe.views
    key_NV = fold(batch.key_N[:, None], torch.arange(3, device=batch.key_N.device))
    whole_NV = batch.frames_N[:, None].expand(-1, 3)
    interval = random_interval(
        key_NV, torch.zeros_like(whole_NV), whole_NV, spec.ratio, spec.shortest
    )
    x_NVMTJC = shear_or_corrupt(
        crop_clips(batch, *interval, spec), key_NV, recipe.augment, _CORRUPTIBLE
    )
    query_NTC, key_NTC, clip_NTC = (
        channels(x_NMTJC, spec.modality, topology) for x_NMTJC in x_NVMTJC.unbind(1)
    )
    own_key_N = batch.key.expand(len(batch)) if spec.shared else batch.key_N
    mixed = Mixed(query_NTC[:0], own_key_N[:0], query_NTC[:0, 0, 0])
    if "inter" in recipe.loss.positives:
        mixed = mix_clips(*gather_rows(query_NTC), own_key_N, topology, recipe.mix)
    return Views(
        query_NTC,
        key_NTC,
        clip_NTC,
        mask_channels(batch, recipe, topology),
        mixed.x_NTC,
        mixed.partner_N,
        mixed.share_N,
    )


def check_fit(recipe: PCM3Recipe, topology: Topology) -> None:
    """Raise a UserError, before anything is drawn, where a skeleton does not suit the recipe."""
    if recipe.mask.kind == "topology":
        masked_parts(topology, recipe.mask.ratio)
    else:
        masked_cells(recipe.views.frames * len(topology.joints), recipe.mask.ratio)
    if "inter" in recipe.loss.positives:
        check_parts(topology, recipe.mix)
    packaged = topology.name in manifest_names("topology") and load_topology(topology.name)
    if recipe.views.modality == "bone" and packaged and packaged.bones != topology.bones:
        raise UserError(
            f"the set's skeleton '{topology.name}' has other bones than the packaged one",
            found="a set that an older version prepared",
            remedy="prepare it anew with `skelpipe prepare … --force`, or move it away first",
        )


def mask_channels(batch: Batch, recipe: PCM3Recipe, topology: Topology) -> Tensor:
    """The masked channels of a batch's clips, shape (N, T, J * 3 * M), bool.

    Raises:
        UserError: ``mask.ratio`` is too small for a single part of the skeleton.
    """
    spec, mask = recipe.views, recipe.mask
    key_N = batch.key[None] if spec.shared else batch.key_N
    if mask.kind == "topology":
        masked_NTJ = part_masks(key_N, spec.frames, topology, clips=mask.clips, ratio=mask.ratio)
    else:
        masked_NTJ = cell_masks(key_N, spec.frames, len(topology.joints), ratio=mask.ratio)
    first_M = torch.arange(spec.bodies, device=key_N.device) == 0
    masked_NTC = (masked_NTJ[..., None, None] & first_M).expand(-1, -1, -1, 3, -1).flatten(2)
    return masked_NTC.expand(len(batch), -1, -1)
