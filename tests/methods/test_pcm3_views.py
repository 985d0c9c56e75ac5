from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import KINECT, Poses, batch_of, mixed_samples, recording, tiny_pcm3_recipe
from safetensors.torch import load_file
from test_distributed import torchrun
from torch import Tensor

from skelpipe.config import PCM3Recipe
from skelpipe.methods.pcm3_views import Views, draw_views
from skelpipe.random import fold
from skelpipe.stream.source import Batch
from skelpipe.views.clips import crop_clips
from skelpipe.views.corrupt import shear_or_corrupt
from skelpipe.views.mix import mix_clips
from skelpipe.views.modality import stream
from skelpipe.views.parts import cell_masks, part_masks
from skelpipe.views.sampling import random_interval

SAMPLES = [*mixed_samples(), recording(6, 33, 3), recording(7, 120)]


def recipe_of(**sections: dict[str, Any]) -> PCM3Recipe:
    """The paper's recipe with other settings."""
    return PCM3Recipe.model_validate({"name": "other", **sections})


def batch_at(step: int, samples: list[Poses] = SAMPLES) -> Batch:
    """A global batch of another step: all its keys are others."""
    batch = batch_of(samples, range(100 * step, 100 * step + len(samples)))
    return replace(batch, key=fold(7, -1, 0, step))


def literal_clip(batch: Batch, sample: int, view: int, recipe: PCM3Recipe) -> Tensor:
    """One view of one sample by itself, one channel at a time: shape (T, C)."""
    spec = recipe.views
    alone = batch_of([SAMPLES[sample]])
    key = fold(batch.key_N[sample], view).view(1, 1)
    whole = alone.frames_N[:, None]
    interval = random_interval(key, torch.zeros_like(whole), whole, spec.ratio, spec.shortest)
    clip = crop_clips(alone, *interval, spec)
    clip = shear_or_corrupt(clip, key, recipe.augment, [view < 2])[:, 0]
    x_MTJC = stream(clip, spec.modality, KINECT)[0]
    out = torch.zeros(spec.frames, 25 * 3 * spec.bodies)
    for joint in range(25):
        for axis in range(3):
            for body in range(spec.bodies):
                out[:, (joint * 3 + axis) * spec.bodies + body] = x_MTJC[body, :, joint, axis]
    return out


@pytest.mark.parametrize("modality", ["joint", "bone", "motion"])
@pytest.mark.parametrize("shared", [True, False])
def test_views_are_put_together_from_their_parts(modality: str, shared: bool) -> None:
    recipe = tiny_pcm3_recipe(f"views.modality={modality}", f"views.shared={shared}".lower())
    batch = batch_at(1)
    views = draw_views(batch, recipe, KINECT)
    for view, found in enumerate((views.query_NTC, views.key_NTC, views.clip_NTC)):
        for sample in range(len(SAMPLES)):
            assert torch.equal(found[sample], literal_clip(batch, sample, view, recipe))
    key_N = torch.stack([batch.key] * len(SAMPLES)) if shared else batch.key_N
    mixed = mix_clips(views.query_NTC, 0, key_N, KINECT, recipe.mix)
    assert torch.equal(views.mixed_NTC, mixed.x_NTC)
    assert torch.equal(views.partner_N, mixed.partner_N)
    assert torch.equal(views.share_N, mixed.share_N)
    assert views.share_N.dtype == torch.float32


@pytest.mark.parametrize("kind", ["topology", "random"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bodies", [1, 2])
def test_masks_hide_joints_of_the_first_body_alone(kind: str, shared: bool, bodies: int) -> None:
    recipe = recipe_of(mask={"kind": kind}, views={"shared": shared, "bodies": bodies})
    batch = batch_at(2)
    masked = draw_views(batch, recipe, KINECT).masked_NTC
    assert masked.shape == (len(SAMPLES), 64, 75 * bodies)
    assert masked.dtype == torch.bool
    for sample in range(len(SAMPLES)):
        key = (batch.key if shared else batch.key_N[sample]).view(1)
        if kind == "topology":
            mask_TJ = part_masks(key, 64, KINECT, clips=8, ratio=0.6)[0]
        else:
            mask_TJ = cell_masks(key, 64, 25, ratio=0.6)[0]
        own = masked[sample].view(64, 25, 3, bodies)
        assert not bool(own[..., 1:].any())
        for axis in range(3):
            assert torch.equal(own[:, :, axis, 0], mask_TJ)


def test_a_batch_shares_its_mask_and_mix_unless_told_otherwise() -> None:
    for shared in (True, False):
        recipe = recipe_of(views={"shared": shared})
        batches = [draw_views(batch_at(step), recipe, KINECT) for step in range(12)]
        for views in batches:
            shifts = (views.partner_N - torch.arange(len(SAMPLES))) % len(SAMPLES)
            masks = views.masked_NTC.flatten(1).unique(dim=0)
            assert (len(shifts.unique()) == 1) == shared
            assert (len(views.share_N.unique()) == 1) == shared
            assert (len(masks) == 1) == shared
            assert bool(((shifts >= 1) & (shifts <= len(SAMPLES) - 2)).all())
            ratio = views.masked_NTC[..., ::2].double().mean((1, 2))
            assert bool(((ratio >= 0.52) & (ratio <= 0.68)).all())
        # Every step has others.
        masks = torch.cat([views.masked_NTC[:1] for views in batches]).flatten(1)
        assert len(masks.unique(dim=0)) == 12
        assert len(torch.cat([views.share_N[:1] for views in batches]).unique()) > 4


def test_each_view_has_its_own_crop_and_the_third_is_sheared_alone() -> None:
    plain = recipe_of(augment={"corruption": 0.0, "shear": 0.0})
    views = draw_views(batch_at(0), plain, KINECT)
    for sample, poses in enumerate(SAMPLES):
        crops = [x[sample] for x in (views.query_NTC, views.key_NTC, views.clip_NTC)]
        # 64 frames or fewer are never cropped.
        longer = poses.shape[1] > 64
        assert torch.equal(crops[0], crops[1]) != longer
        assert torch.equal(crops[0], crops[2]) != longer
    zeroed = recipe_of(augment={"corruption": 1.0, "zeroed": 1.0, "shear": 0.0})
    views = draw_views(batch_at(0), zeroed, KINECT)
    joints = [x.unflatten(2, (25, 6)).any(-1).any(1).sum(1).tolist() for x in crops_of(views)]
    assert joints == [[10] * len(SAMPLES), [10] * len(SAMPLES), [25] * len(SAMPLES)]


def crops_of(views: Views) -> list[Tensor]:
    return [views.query_NTC, views.key_NTC, views.clip_NTC]


def test_motion_is_of_the_augmented_clip_and_ends_with_zeros() -> None:
    joint, motion = (
        draw_views(batch_at(0), recipe_of(views={"modality": modality}), KINECT)
        for modality in ("joint", "motion")
    )
    for x, moved in zip(crops_of(joint), crops_of(motion), strict=True):
        assert torch.equal(moved[:, :-1], x.diff(dim=1))
        assert not bool(moved[:, -1].any())
    assert torch.equal(joint.masked_NTC, motion.masked_NTC)
    assert torch.equal(joint.partner_N, motion.partner_N)


def test_nothing_is_mixed_where_inter_is_no_positive() -> None:
    recipe = recipe_of(loss={"positives": ["intra"]})
    views = draw_views(batch_at(0, SAMPLES[:2]), recipe, KINECT)
    assert len(views.query_NTC) == 2
    assert len(views.mixed_NTC) == len(views.partner_N) == len(views.share_N) == 0


@pytest.mark.parametrize("shared", [True, False])
def test_views_of_a_sample_do_not_depend_on_its_batch(shared: bool) -> None:
    recipe, batch = recipe_of(views={"shared": shared}), batch_at(3)
    views = draw_views(batch, recipe, KINECT)
    places = [5, 0, 3]
    some = batch_of([SAMPLES[place] for place in places], [300 + place for place in places])
    part = draw_views(replace(some, key=batch.key), recipe, KINECT)
    for name in ("query_NTC", "key_NTC", "clip_NTC", "masked_NTC"):
        assert torch.equal(getattr(part, name), getattr(views, name)[places])


WORKER = """
import sys
from dataclasses import fields
from pathlib import Path
import torch
from builders import KINECT, batch_of, mixed_samples, tiny_pcm3_recipe
from safetensors.torch import save_file
from skelpipe import distributed
from skelpipe.methods.pcm3_views import draw_views

torch.set_num_threads(1)
with distributed.process_group(torch.device("cpu"), 60):
    rank = distributed.rank()
    mine = slice(3 * rank, 3 * rank + 3)
    batch = batch_of(mixed_samples()[mine], range(6)[mine])
    for shared in ("true", "false"):
        views = draw_views(batch, tiny_pcm3_recipe(f"views.shared={shared}"), KINECT)
        found = {f.name: getattr(views, f.name).contiguous() for f in fields(views)}
        save_file(found, Path(sys.argv[1]) / f"{shared}{rank}.safetensors")
"""


@pytest.mark.slow
def test_two_ranks_draw_the_views_of_one(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    code, out = torchrun(tmp_path / "worker.py", tmp_path)
    assert code == 0, out
    for shared in ("true", "false"):
        recipe = tiny_pcm3_recipe(f"views.shared={shared}")
        views = draw_views(batch_of(mixed_samples()), recipe, KINECT)
        ranks = [load_file(tmp_path / f"{shared}{rank}.safetensors") for rank in (0, 1)]
        for field in fields(views):
            joined = torch.cat([rank[field.name] for rank in ranks])
            assert torch.equal(joined, getattr(views, field.name)), field.name
