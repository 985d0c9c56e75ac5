"""The views of SLiM: two globals, and the locals of each size drawn from their interval.

Letters: N samples, B bodies of all samples, V views, W frames of a view, J joints, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skelpipe.config import Recipe
from skelpipe.random import fold, uniform
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Batch
from skelpipe.views.augment import skeleton_aware
from skelpipe.views.masking import Subsets, tube_masks
from skelpipe.views.sampling import (
    Bodies,
    fold_bodies,
    gather_views,
    random_interval,
    sample_frames,
)


@dataclass(frozen=True)
class ViewGroup:
    """Views of one length: rows of (body, view), absent bodies left out.

    Attributes:
        x_BWJC: Augmented coordinates.
        mask_BSJ: Tube mask; all False where a view is not masked.
        body_B: Body of each row, of the batch's bodies.
        view_B: View of each row: 0 and 1 are the globals, then each anchor's locals.
        anchor_B: The global view a row is compared with.
    """

    x_BWJC: Tensor
    mask_BSJ: Tensor
    body_B: Tensor
    view_B: Tensor
    anchor_B: Tensor


def draw_views(
    batch: Batch, recipe: Recipe, topology: Topology, subsets: Subsets
) -> tuple[Bodies, ViewGroup, list[ViewGroup]]:
    """Draw all views of a batch: the two globals, and the locals of each size.

    Every draw is keyed by (seed, epoch, sample, view). Locals are drawn from their anchor's
    interval (Appendix 0.B) and share nothing else with it: augmentations are per view (S18).
    """
    spec = recipe.views
    device = batch.key_N.device
    bodies = fold_bodies(batch, spec.absent_body)

    view = torch.arange(2, device=device)
    key_NV = fold(batch.key_N[:, None], view)
    start, length = random_interval(
        key_NV,
        torch.zeros_like(key_NV),
        batch.frames_N[:, None].expand(-1, 2),
        spec.ratio,
        spec.shortest,
    )

    def group(
        key_NV: Tensor,
        start: Tensor,
        length: Tensor,
        frames: int,
        view: Tensor,
        anchor: Tensor,
        mask_probability: float,
    ) -> ViewGroup:
        """Sample, augment and mask the views of one length."""
        picked = sample_frames(start, length, frames, key_NV)
        x, present = gather_views(batch, bodies, picked)
        x = skeleton_aware(
            key_NV,
            topology,
            **recipe.augment.model_dump(exclude={"rotation", "mirroring", "scaling"}),
        )[bodies.sample_B](x)
        stands = present.any(-1) | ~bodies.real_B[:, None]
        body_B, place = stands.nonzero(as_tuple=True)

        settings = recipe.mask
        # Both bodies share the interval and augmentation, not the mask (S8).
        number = body_B - torch.searchsorted(bodies.sample_B, bodies.sample_B)[body_B]
        mask_key = fold(key_NV[bodies.sample_B[body_B], place], number)
        mask = tube_masks(
            mask_key,
            frames // recipe.encoder.patch_frames,
            subsets.to(x.device),
            ratio=settings.ratio,
            min_area=settings.min_area,
            max_area=settings.max_area,
            overshoot=settings.overshoot,
        )
        masked = uniform(mask_key, "masked", 1) < mask_probability
        mask = mask & masked[..., None]
        return ViewGroup(x[body_B, place], mask, body_B, view[place], anchor[place])

    globals_ = group(key_NV, start, length, spec.frames, view, view, 1.0)
    locals_ = []
    first = 2
    for local in spec.local if spec.crops else ():
        anchor = torch.arange(spec.anchors, device=device).repeat_interleave(spec.crops)
        view = torch.arange(first, first + len(anchor), device=device)
        first += len(anchor)
        key_NV = fold(batch.key_N[:, None], view)
        inner = random_interval(
            key_NV, start[:, anchor], length[:, anchor], local.ratio, spec.shortest
        )
        locals_.append(
            group(
                key_NV,
                *inner,
                local.frames,
                view,
                anchor,
                recipe.mask.local_probability,
            )
        )
    return bodies, globals_, locals_
