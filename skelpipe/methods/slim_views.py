"""The views of SLiM: two globals, and the locals of each size drawn from their interval.

Letters: N samples, B bodies of all samples, V views, W frames of a view, J joints, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from skelpipe.config import SLiMRecipe
from skelpipe.config.slim import MaskKind
from skelpipe.random import fold, uniform
from skelpipe.skeleton import Topology
from skelpipe.stream.source import Batch
from skelpipe.views.augment import skeleton_aware
from skelpipe.views.masking import Subsets, tube_masks
from skelpipe.views.motion import motion_masks
from skelpipe.views.sampling import (
    Bodies,
    Rows,
    Table,
    fold_bodies,
    random_interval,
    resize_frames,
    sample_frames,
    tabulate,
)

_CHUNK = 1024 * 1024  # bytes of views at once on a CPU: what they pass through stays in its cache


@dataclass(frozen=True)
class ViewGroup:
    """Views of one length: rows of (body, view), absent bodies left out.

    Attributes:
        x_BWJC: Augmented coordinates. In memory coordinate by coordinate, not contiguous: an
            encoder orders them by patches anyway.
        mask_BSJ: Masked tokens; all False where a view is not masked.
        body_B: Body of each row, of the batch's bodies.
        view_B: View of each row: 0 and 1 are the globals, then each anchor's locals.
        anchor_B: The global view a row is compared with.
    """

    x_BWJC: Tensor
    mask_BSJ: Tensor
    body_B: Tensor
    view_B: Tensor
    anchor_B: Tensor

    def __getitem__(self, rows: slice) -> ViewGroup:
        return ViewGroup(
            self.x_BWJC[rows],
            self.mask_BSJ[rows],
            self.body_B[rows],
            self.view_B[rows],
            self.anchor_B[rows],
        )


def draw_views(
    batch: Batch, recipe: SLiMRecipe, topology: Topology, subsets: Subsets
) -> tuple[Bodies, ViewGroup, list[ViewGroup]]:
    """Draw all views of a batch: the two globals, and the locals of each size.

    Every draw is keyed by (seed, epoch, sample, view). Locals are drawn from their anchor's
    interval (Appendix 0.B) and share nothing else with it: augmentations are per view (S18).
    Where coordinates are float64, a view is the same bits whatever batch its sample is in.
    """
    bodies = fold_bodies(batch, recipe.views.absent_body)
    table = tabulate(batch, bodies)
    placed = place_views(batch, bodies, table, recipe)
    x = augment_views(placed, table, recipe, topology)
    masks = mask_views(placed, x, bodies, recipe, subsets)
    globals_, *locals_ = (
        ViewGroup(x_BWJC, mask_BSJ, rows.body_B, rows.view_B, rows.anchor_B)
        for x_BWJC, mask_BSJ, rows in zip(x, masks, placed, strict=True)
    )
    return bodies, globals_, locals_


@dataclass(frozen=True)
class Placed:
    """Views of one length before their coordinates are gathered.

    Attributes:
        rows: Where their frames lie, shape (B, W).
        key_B: Key of the draws of each row's (sample, view).
        body_B, view_B, anchor_B: As in `ViewGroup`.
    """

    rows: Rows
    key_B: Tensor
    body_B: Tensor
    view_B: Tensor
    anchor_B: Tensor


def place_views(batch: Batch, bodies: Bodies, table: Table, recipe: SLiMRecipe) -> list[Placed]:
    """Draw the intervals and frames of the globals, and of the locals of each size."""
    spec = recipe.views

    def place(
        key_NV: Tensor, interval: tuple[Tensor, Tensor], frames: int, view: Tensor, anchor: Tensor
    ) -> Placed:
        plain = spec.resample == "linear"
        picked = (
            resize_frames(*interval, frames) if plain else sample_frames(*interval, frames, key_NV)
        )
        rows = table.rows(bodies, picked, blend=plain)
        stands = rows.present.any(-1) | (spec.absent_body != "skip")
        body_B, number = stands.nonzero(as_tuple=True)
        key_B = key_NV[bodies.sample_B[body_B], number]
        return Placed(rows[body_B, number], key_B, body_B, view[number], anchor[number])

    view = torch.arange(2, device=batch.key_N.device)
    key_NV = fold(batch.key_N[:, None], view)
    whole = batch.frames_N[:, None].expand(-1, 2)
    start, length = random_interval(
        key_NV, torch.zeros_like(whole), whole, spec.ratio, spec.shortest
    )
    placed = [place(key_NV, (start, length), spec.frames, view, view)]
    anchor = view[: spec.anchors].repeat_interleave(spec.crops)
    first = len(view)
    for local in spec.local if spec.crops else ():
        view = torch.arange(first, first + len(anchor), device=anchor.device)
        key_NV = fold(batch.key_N[:, None], view)
        inner = random_interval(
            key_NV, start[:, anchor], length[:, anchor], local.ratio, spec.shortest
        )
        placed.append(place(key_NV, inner, local.frames, view, anchor))
        first += len(anchor)
    return placed


def augment_views(
    placed: list[Placed], table: Table, recipe: SLiMRecipe, topology: Topology
) -> list[Tensor]:
    """Gather and augment the coordinates of views of each length, shapes (B, W, J, 3)."""
    transform = skeleton_aware(
        torch.cat([views.key_B for views in placed]),
        topology,
        **recipe.augment.model_dump(),
        dtype=table.x_CRJ.dtype,
    )
    found, first = [], 0
    for views in placed:
        count, length = views.rows.low.shape
        x_BCWJ = table.x_CRJ.new_empty(count, 3, length, table.x_CRJ.shape[2])
        size = count
        if x_BCWJ.device.type == "cpu":
            size = max(_CHUNK // (x_BCWJ.stride(0) * x_BCWJ.itemsize), 1)
        for begin in range(0, count, max(size, 1)):
            part = slice(begin, min(begin + size, count))
            own = transform[first + part.start : first + part.stop]
            x_BCWJ[part] = own.planar(table.coordinates(views.rows[part]))
        found.append(x_BCWJ.movedim(1, -1))
        first += count
    return found


def mask_views(
    placed: list[Placed], x: list[Tensor], bodies: Bodies, recipe: SLiMRecipe, subsets: Subsets
) -> list[Tensor]:
    """Draw the masks of views of each length, shapes (B, S, J).

    Both bodies of a sample share the interval and augmentation, not the mask (S8).
    """
    settings, patch = recipe.mask, recipe.encoder.patch_frames
    sizes, steps = [len(views) for views in x], [views.shape[1] // patch for views in x]
    kinds = [settings.global_kind, *[settings.local_kind] * (len(x) - 1)]
    chances = [1.0, *[settings.local_probability] * (len(x) - 1)]

    body = torch.cat([views.body_B for views in placed])
    number = body - torch.searchsorted(bodies.sample_B, bodies.sample_B)[body]
    key = fold(torch.cat([views.key_B for views in placed]), number)
    draws = uniform(key, "masked", 1)[:, 0].split(sizes)
    mask = torch.zeros(len(key), max(steps), x[0].shape[2], dtype=torch.bool, device=key.device)
    masks = [views[:, :count] for views, count in zip(mask.split(sizes), steps, strict=True)]

    def masked(kind: MaskKind) -> list[Tensor]:
        """Of views of each length those that get a mask of a kind."""
        return [
            draw < (chance if own == kind else 0.0)
            for draw, chance, own in zip(draws, chances, kinds, strict=True)
        ]

    if "tube" in kinds:
        rows = torch.cat(masked("tube")).nonzero()[:, 0]
        steps_B = torch.cat([torch.full_like(views.body_B, count)
                             for views, count in zip(placed, steps, strict=True)])  # fmt: skip
        tubes = tube_masks(
            key[rows],
            steps_B[rows],
            subsets,
            ratio=settings.ratio,
            min_area=settings.min_area,
            max_area=settings.max_area,
            overshoot=settings.overshoot,
        )
        mask[rows, : tubes.shape[1]] = tubes
    if "motion" in kinds:
        own_keys = key.split(sizes)
        for views, own, chosen, own_key in zip(x, masks, masked("motion"), own_keys, strict=True):
            own[chosen] = motion_masks(
                own_key[chosen], views[chosen], patch, ratio=settings.ratio, tau=settings.motion_tau
            )
    return [own.contiguous() for own in masks]
