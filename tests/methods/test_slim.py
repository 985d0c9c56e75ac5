from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from builders import KINECT, Poses, batch_of, mixed_samples, recording, tiny_recipe
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from skelpipe.config import SLiMRecipe
from skelpipe.errors import UserError
from skelpipe.methods import slim_views
from skelpipe.methods.slim import SLiM, chance_loss
from skelpipe.methods.slim_views import ViewGroup
from skelpipe.models.heads import PrototypeHead
from skelpipe.optim import build_optimiser, set_rates
from skelpipe.stream.source import Batch
from skelpipe.views.sampling import Bodies

# The paper's views and masks, with an encoder small enough for a test.
PAPER_VIEWS = (
    "views.frames=64",
    "views.local=[{frames = 32, ratio = [0.35, 0.7]}, {frames = 16, ratio = [0.15, 0.4]}, "
    "{frames = 8, ratio = [0.05, 0.2]}]",
    "encoder.patch_frames=8",
)


# Losses of `train_steps`, as recorded when every part was checked against a literal loop.
RECORDED = [
    13.559487, 13.025725, 14.378399, 11.325781, 9.989428, 8.794314, 7.649159, 6.987664, 5.92798,
    5.69029, 5.547922, 5.335444, 5.316509, 5.212302, 5.081659, 5.124627, 5.033124, 5.127445,
    5.040184, 5.126332,
]  # fmt: skip


def method_of(*changes: str) -> SLiM:
    """A method whose teacher and tokens differ from their initial state, so that all shows."""
    torch.manual_seed(0)
    method = SLiM(tiny_recipe(*changes), KINECT)
    with torch.no_grad():
        for parameter in (*method.student.parameters(), *method.teacher.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    return method


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def scores(head: PrototypeHead, x_ND: Tensor) -> Tensor:
    return (head(x_ND) @ F.normalize(head.prototypes, dim=1).T).double()


def literal_targets(logits: Tensor, temperature: float, iterations: int) -> Tensor:
    """Sinkhorn-Knopp by its fixed-point equations: row and column scalings of exp(logits)."""
    kernel = torch.exp(logits / temperature)
    rows, columns = kernel.shape
    row = torch.ones(rows, 1, dtype=torch.float64)
    for _ in range(iterations):
        column = 1 / (columns * (row * kernel).sum(0, keepdim=True))
        row = 1 / (rows * (kernel * column).sum(1, keepdim=True))
    return row * kernel * column * rows


def cross(target: Tensor, logits: Tensor, temperature: float) -> float:
    return -float((target * (logits / temperature).log_softmax(-1)).sum())


def entropy(p: Tensor) -> float:
    return -sum(x * math.log(x) for x in p.tolist() if x > 0)


@torch.no_grad()
def literal_losses(method: SLiM, batch: Batch, progress: float) -> dict[str, float]:
    """Eqs. 4, 6 and 7 and KoLeo, one view at a time, with S8-S12 and S23."""
    settings, spec = method.recipe.loss, method.recipe.views
    first, last = settings.teacher_temperature
    warm = min(progress / settings.teacher_warmup, 1)
    temperature = first + warm * (last - first)
    bodies, globals_, locals_ = method.views(batch)
    student, teacher = method.student, method.teacher

    rows: list[tuple[int, int, int, int, Tensor, Tensor]] = []
    for group in (globals_, *locals_):
        for row in range(len(group.body_B)):
            body = int(group.body_B[row])
            view, anchor = int(group.view_B[row]), int(group.anchor_B[row])
            sample = int(bodies.sample_B[body])
            rows.append((sample, body, view, anchor, group.x_BWJC[row], group.mask_BSJ[row]))

    # The teacher sees both globals, unmasked.
    seen = [r for r in rows if r[2] < 2]
    class_logits, patch_logits, owner = [], [], []
    for _, body, view, _, x, mask in seen:
        tokens = teacher.encoder(x[None])
        class_logits.append(scores(teacher.class_head, tokens.class_BD)[0])
        for step, joint in mask.nonzero().tolist():
            patch_logits.append(scores(teacher.patch_head, tokens.patch_BSJD[:, step, joint])[0])
            owner.append((body, view, step, joint))
    targets = literal_targets(torch.stack(class_logits), temperature, settings.sinkhorn_iterations)
    class_target = {(r[1], r[2]): t for r, t in zip(seen, targets, strict=True)}
    patch_targets = literal_targets(
        torch.stack(patch_logits), temperature, settings.sinkhorn_iterations
    )
    patch_target = dict(zip(owner, patch_targets, strict=True))

    masked: dict[tuple[int, int], list[float]] = {}
    pairs: dict[tuple[int, int], list[float]] = {}
    features: dict[int, list[tuple[int, Tensor]]] = {0: [], 1: []}
    for sample, body, view, anchor, x, mask in rows:
        tokens = student.encoder(x[None], mask[None])
        if view < 2:
            terms = [
                cross(
                    patch_target[body, view, step, joint],
                    scores(student.patch_head, tokens.patch_BSJD[:, step, joint])[0],
                    settings.student_temperature,
                )
                for step, joint in mask.nonzero().tolist()
            ]
            masked.setdefault((sample, view), []).append(mean(terms))
        own = tokens.class_BD
        if view < 2 and settings.clean_pass:
            own = student.encoder(x[None]).class_BD
        if view < 2:
            features[view].append((sample, F.normalize(own[0].double(), dim=0)))
        against = 1 - view if view < 2 else anchor
        if (body, against) in class_target:
            logits = scores(student.class_head, own)[0]
            term = cross(class_target[body, against], logits, settings.student_temperature)
            pairs.setdefault((sample, view), []).append(term)

    koleo = 0.0
    for rows_of_view in features.values():
        per_sample: dict[int, list[float]] = {}
        for sample, own_feature in rows_of_view:
            distances = [
                float((own_feature - other).norm())
                for stranger, other in rows_of_view
                if stranger != sample
            ]
            distances = [distance for distance in distances if distance > 0]
            if distances:
                per_sample.setdefault(sample, []).append(-math.log(min(distances) + 1e-8))
        koleo += mean(mean(terms) for terms in per_sample.values())
    mfm = mean(mean(terms) for terms in masked.values())
    glcl = mean(mean(terms) for terms in pairs.values())
    assert len(pairs) <= len(batch) * (2 + len(locals_) * spec.anchors * spec.crops)
    return {
        "loss": settings.mask_weight * mfm
        + settings.contrast_weight * glcl
        + settings.koleo_weight * koleo,
        "mfm": mfm,
        "glcl": glcl,
        "koleo": koleo,
        "class_entropy": mean(entropy(t) for t in targets),
        "class_spread": entropy(targets.mean(0)),
        "patch_entropy": mean(
            entropy(target)
            for target, own, before in zip(patch_targets, owner, [None, *owner[:-1]], strict=True)
            if before is None or own[:2] != before[:2]  # a view's first masked token
        ),
    }


@pytest.mark.parametrize(
    ("changes", "progress"),
    [
        ((), 0.0),
        ((), 0.1),
        ((), 0.7),
        (("loss.clean_pass=true", "loss.sinkhorn_iterations=2"), 0.3),
        (("views.anchors=1", "mask.overshoot=true", "loss.contrast_weight=0.5"), 0.3),
        (("views.absent_body=zeros", "mask.subset=slice"), 0.3),
        (("views.absent_body=copy", "loss.mask_weight=2.0", "views.crops=1"), 0.3),
        (("views.crops=0",), 0.3),
        (PAPER_VIEWS, 0.3),
    ],
    ids=lambda value: "paper" if value is PAPER_VIEWS else str(value),
)
def test_losses_equal_a_literal_recomputation(changes: tuple[str, ...], progress: float) -> None:
    method = method_of(*changes)
    batch = batch_of(mixed_samples())
    found = method.learn(batch, progress)
    wanted = literal_losses(method, batch, progress)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value, rel=2e-4, abs=1e-5), name


def rows_of(group: ViewGroup, bodies_sample: Tensor, sample: int) -> dict[tuple[int, int], Tensor]:
    """(body of the sample, view) -> coordinates and mask, flattened."""
    first = int((bodies_sample < sample).sum())
    return {
        (int(body) - first, int(view)): torch.cat([x.flatten(), mask.flatten().float()])
        for x, mask, body, view in zip(
            group.x_BWJC, group.mask_BSJ, group.body_B, group.view_B, strict=True
        )
        if int(bodies_sample[body]) == sample
    }


def test_views_do_not_depend_on_their_batch() -> None:
    method = method_of()
    samples = mixed_samples()
    together = method.views(batch_of(samples))
    order = [5, 1, 3]
    apart = method.views(batch_of([samples[number] for number in order], keys=order))
    for place, number in enumerate(order):
        for whole, part in zip((together[1], *together[2]), (apart[1], *apart[2]), strict=True):
            wanted = rows_of(whole, together[0].sample_B, number)
            found = rows_of(part, apart[0].sample_B, place)
            assert found.keys() == wanted.keys()
            for key, values in wanted.items():
                assert torch.allclose(found[key], values, atol=1e-6)


def in_double(batch: Batch) -> Batch:
    return replace(batch, flat_RJC=batch.flat_RJC.double())


def view_of(views: tuple[Bodies, ViewGroup, list[ViewGroup]]) -> dict[tuple[int, ...], Tensor]:
    """(sample of the batch, body of it, view) -> coordinates and mask, flattened."""
    bodies, globals_, locals_ = views
    first = torch.searchsorted(bodies.sample_B, bodies.sample_B)
    found = {}
    for group in (globals_, *locals_):
        for row, body in enumerate(group.body_B.tolist()):
            sample = int(bodies.sample_B[body])
            key = (sample, body - int(first[body]), int(group.view_B[row]))
            mask = group.mask_BSJ[row].flatten().to(group.x_BWJC.dtype)
            found[key] = torch.cat([group.x_BWJC[row].flatten(), mask])
    return found


SPLITS = {
    "halves": [range(12), range(12, 24)],
    "micro-batches of 5": [range(first, min(first + 5, 24)) for first in range(0, 24, 5)],
    "reversed": [range(23, -1, -1)],
    "one by one": [[number] for number in range(24)],
    "world of 3": [range(rank, 24, 3) for rank in range(3)],
}
LIMITED = (
    "mask.global_kind=motion",
    "mask.local_kind=motion",
    "augment.rotation=axis",
    "augment.mirroring=index",
    "augment.scaling=axes",
)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "changes", [PAPER_VIEWS, (*PAPER_VIEWS, *LIMITED)], ids=["ours", "limited"]
)
def test_in_double_precision_views_are_the_same_bits_in_every_batch(
    split: str, changes: tuple[str, ...]
) -> None:
    method = method_of(*changes)
    samples = mixed_samples() + [recording(seed, 4 + 13 * seed, 1 + seed % 2) for seed in range(18)]
    together = view_of(method.views(in_double(batch_of(samples))))
    assert next(iter(together.values())).dtype == torch.float64
    seen = 0
    for chosen in SPLITS[split]:
        batch = batch_of([samples[number] for number in chosen], keys=list(chosen))
        for (place, body, view), values in view_of(method.views(in_double(batch))).items():
            assert torch.equal(values, together[list(chosen)[place], body, view])
            seen += 1
    assert seen == len(together)


def test_single_precision_views_are_those_of_double_precision() -> None:
    method = method_of(*PAPER_VIEWS)
    batch = batch_of(mixed_samples())
    single, double = view_of(method.views(batch)), view_of(method.views(in_double(batch)))
    assert single.keys() == double.keys()
    for key, values in single.items():
        assert torch.allclose(values.double(), double[key], atol=1e-6)


def test_views_of_a_batch_that_shares_its_rows_with_others_are_the_same() -> None:
    method = method_of(*PAPER_VIEWS)
    samples = mixed_samples()
    whole = batch_of(samples)
    chosen = torch.tensor([4, 1, 5])
    part = replace(
        whole,
        **{name: getattr(whole, name)[chosen]
           for name in ("start_N", "frames_N", "bodies_N", "label_N", "row_N", "key_N")},
    )  # fmt: skip
    own = batch_of([samples[number] for number in chosen], keys=chosen.tolist())
    shared, alone = view_of(method.views(part)), view_of(method.views(own))
    assert shared.keys() == alone.keys()
    assert all(torch.equal(values, alone[key]) for key, values in shared.items())


def test_pieces_that_fit_a_cache_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    method = method_of(*PAPER_VIEWS)
    batch = in_double(batch_of(mixed_samples()))
    whole = view_of(method.views(batch))
    monkeypatch.setattr(slim_views, "_CHUNK", 1)
    pieces = view_of(method.views(batch))
    assert pieces.keys() == whole.keys()
    assert all(torch.equal(values, whole[key]) for key, values in pieces.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_views_on_a_gpu_are_those_on_a_cpu() -> None:
    method = method_of(*PAPER_VIEWS)
    batch = batch_of(mixed_samples())
    moved = replace(batch, **{name: value.cuda() for name, value in vars(batch).items()})
    here, there = method.views(batch), method.views(moved)
    for own, other in zip((here[1], *here[2]), (there[1], *there[2]), strict=True):
        assert torch.equal(own.mask_BSJ, other.mask_BSJ.cpu())
        assert torch.equal(own.body_B, other.body_B.cpu())
        assert torch.allclose(own.x_BWJC, other.x_BWJC.cpu(), atol=1e-5)


KINDS = ("tube", "motion", "none")


@pytest.mark.parametrize("global_kind", KINDS)
@pytest.mark.parametrize("local_kind", KINDS)
def test_kinds_of_masks(global_kind: str, local_kind: str) -> None:
    samples = [recording(seed, 60) for seed in range(12)]
    weight = ["loss.mask_weight=0"] if global_kind == "none" else []
    kinds = [f"mask.global_kind={global_kind}", f"mask.local_kind={local_kind}", *weight]
    tubes = method_of(*PAPER_VIEWS).views(batch_of(samples))
    _, globals_, locals_ = method_of(*PAPER_VIEWS, *kinds).views(batch_of(samples))
    for group, plain, kind in zip(
        (globals_, *locals_), (tubes[1], *tubes[2]), (global_kind, *[local_kind] * 3), strict=True
    ):
        assert torch.equal(group.x_BWJC, plain.x_BWJC)
        if kind == "none":
            assert not bool(group.mask_BSJ.any())
            continue
        # The same views are masked, and as many of their tokens.
        count, plain_count = (mask.flatten(1).sum(1) for mask in (group.mask_BSJ, plain.mask_BSJ))
        assert torch.equal(count, plain_count)
        assert torch.equal(group.mask_BSJ, plain.mask_BSJ) == (kind == "tube")


@pytest.mark.parametrize("kind", ["tube", "motion"])
def test_no_local_is_masked_where_the_chance_is_none(kind: str) -> None:
    method = method_of("mask.local_probability=0.0", f"mask.local_kind={kind}")
    _, globals_, locals_ = method.views(batch_of(mixed_samples()))
    assert bool(globals_.mask_BSJ.flatten(1).any(1).all())
    assert not any(bool(group.mask_BSJ.any()) for group in locals_)


def test_unmasked_globals_leave_no_masked_modelling() -> None:
    with pytest.raises(UserError, match="does not fit") as caught:
        tiny_recipe("mask.global_kind=none")
    assert "loss.mask_weight must be 0, not 1" in str(caught.value)
    assert tiny_recipe("mask.global_kind=none", "loss.mask_weight=0").mask.global_kind == "none"


def test_limited_forms_are_told_as_readings() -> None:
    told = [line for line in tiny_recipe(*LIMITED).readings() if line.startswith("S39")]
    assert len(told) == 4
    assert "tau 0.8" in told[0]
    assert not [line for line in tiny_recipe().readings() if line.startswith("S39")]


def test_the_papers_layout_has_14_pairs_a_sample() -> None:
    method = method_of(*PAPER_VIEWS)
    samples = [recording(seed, 80) for seed in range(3)]
    bodies, globals_, locals_ = method.views(batch_of(samples))
    assert globals_.x_BWJC.shape == (6, 64, 25, 3)
    assert [tuple(group.x_BWJC.shape[:2]) for group in locals_] == [(12, 32), (12, 16), (12, 8)]
    assert [tuple(group.mask_BSJ.shape[1:]) for group in locals_] == [(4, 25), (2, 25), (1, 25)]
    assert len(globals_.body_B) + sum(len(group.body_B) for group in locals_) == 3 * 14
    views = torch.cat([group.view_B for group in (globals_, *locals_)])
    assert torch.bincount(views).tolist() == [3] * 14
    for group in locals_:
        assert torch.bincount(group.anchor_B).tolist() == [6, 6]
    assert len(bodies.sample_B) == 3


def test_globals_are_always_masked_and_locals_half_of_the_time() -> None:
    method = method_of(*PAPER_VIEWS)
    batch = batch_of([recording(seed, 40) for seed in range(60)])
    _, globals_, locals_ = method.views(batch)
    share = globals_.mask_BSJ.flatten(1).float().mean(1)
    assert float(share.min()) >= 0.5
    assert float(share.max()) <= 0.9
    for group in locals_:
        masked = group.mask_BSJ.flatten(1).any(1)
        assert 0.35 < float(masked.float().mean()) < 0.65
        share = group.mask_BSJ[masked].flatten(1).float().mean(1)
        assert float(share.min()) >= 0.5
        assert float(share.max()) <= 0.9


def clock(frames: int, bodies: int = 1) -> Poses:
    """A recording that tells its time: the root's height is the number of the frame, plus 1."""
    poses = np.zeros((bodies, frames, 25, 3), dtype=np.float32)
    poses[..., 1] = np.arange(1, frames + 1)[:, None]
    poses[..., 0] = np.arange(bodies)[:, None, None]
    return poses


def test_locals_lie_inside_their_anchors_interval() -> None:
    method = method_of(*PAPER_VIEWS, "augment.probability=0.0")
    batch = batch_of([clock(20 + 5 * number) for number in range(40)])
    _, globals_, locals_ = method.views(batch)
    span = {
        (body, view): (float(x.min()), float(x.max()))
        for x, body, view in zip(
            globals_.x_BWJC[..., 0, 1], globals_.body_B.tolist(), globals_.view_B.tolist(),
            strict=True,
        )
    }  # fmt: skip
    for group in locals_:
        times = group.x_BWJC[..., 0, 1]
        places = zip(times, group.body_B.tolist(), group.anchor_B.tolist(), strict=True)
        for time, body, anchor in places:
            first, last = span[body, anchor]
            # A sampled global may leave out its interval's first or last frames.
            assert float(time.min()) >= first - 2
            assert float(time.max()) <= last + 2
            assert bool((time.diff() >= 0).all())


def test_both_globals_and_crops_are_drawn_apart() -> None:
    method = method_of("augment.probability=0.0")
    _, globals_, locals_ = method.views(batch_of([clock(200) for _ in range(20)]))
    times = globals_.x_BWJC[:, 0, 0, 1]
    assert len(times.unique()) > 25
    assert len(locals_[0].x_BWJC[:, 0, 0, 1].unique()) > 50
    assert len(globals_.mask_BSJ.flatten(1).unique(dim=0)) == 40


def test_bodies_of_a_sample_share_interval_and_augmentation_but_not_the_mask() -> None:
    method = method_of()
    poses = recording(0, 60)
    _, globals_, locals_ = method.views(batch_of([np.concatenate([poses, poses])]))
    for group in (globals_, *locals_):
        half = len(group.body_B) // 2
        assert torch.equal(group.view_B[:half], group.view_B[half:])
        assert torch.equal(group.x_BWJC[:half], group.x_BWJC[half:])
        assert not torch.equal(group.mask_BSJ[:half], group.mask_BSJ[half:])


def test_a_body_absent_from_a_whole_view_is_left_out_of_it() -> None:
    method = method_of()
    samples = [recording(0, 200, 2, [(1, 10, 200)]), recording(1, 50)]
    bodies, globals_, locals_ = method.views(batch_of(samples))
    assert bodies.sample_B.tolist() == [0, 0, 1]
    for group in (globals_, *locals_):
        assert bool((group.x_BWJC != 0).flatten(1).any(1).all())
    rows = sum(len(group.body_B) for group in (globals_, *locals_))
    assert rows < 3 * 10  # the second body is in few of its ten views
    assert math.isfinite(method.learn(batch_of(samples), 0.2)["loss"].item())


def test_a_sample_weighs_the_same_with_one_body_or_two_alike() -> None:
    method = method_of("mask.local_probability=0.0", "loss.clean_pass=true")
    poses = [recording(seed, 60) for seed in range(4)]
    once = method.learn(batch_of(poses), 0.2)
    doubled = [poses[0], np.concatenate([poses[1], poses[1]]), *poses[2:]]
    # With uniform targets, which doubled rows do not shift, a double must change nothing.
    with torch.no_grad():
        for network in (method.student, method.teacher):
            network.class_head.prototypes.copy_(network.class_head.prototypes[:1].expand(12, -1))
    uniform = method.learn(batch_of(poses), 0.2)["glcl"].item()
    assert method.learn(batch_of(doubled), 0.2)["glcl"].item() == pytest.approx(uniform)
    assert uniform == pytest.approx(chance_loss(method.recipe), rel=1e-5)
    assert once["koleo"].item() == pytest.approx(
        method.learn(batch_of(doubled), 0.2)["koleo"].item(), rel=1e-4
    )


def test_the_teacher_gets_no_gradient_and_the_student_all() -> None:
    method = method_of()
    method.learn(batch_of(mixed_samples()), 0.1)
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    for name, parameter in method.student.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_what_is_told_carries_no_gradient() -> None:
    found = method_of().learn(batch_of(mixed_samples()), 0.1)
    assert not any(value.requires_grad for value in found.values())


def test_only_masked_tokens_pass_the_patch_heads() -> None:
    method = method_of()
    batch = batch_of(mixed_samples())
    rows: list[int] = []
    for network in (method.student, method.teacher):
        network.patch_head.register_forward_hook(lambda _, given, out: rows.append(len(given[0])))
    method.learn(batch, 0.1)
    _, globals_, _ = method.views(batch)
    assert rows == [int(globals_.mask_BSJ.sum())] * 2


def test_the_teacher_sees_no_mask_and_no_local_view() -> None:
    method = method_of()
    seen: list[tuple[int, ...]] = []

    def note(_: object, given: tuple[Tensor, ...], out: object) -> None:
        assert len(given) == 1
        seen.append(tuple(given[0].shape))

    method.teacher.encoder.register_forward_hook(note)
    batch = batch_of(mixed_samples())
    method.learn(batch, 0.1)
    assert seen == [tuple(method.views(batch)[1].x_BWJC.shape)]


def test_teacher_and_student_start_alike() -> None:
    torch.manual_seed(0)
    method = SLiM(tiny_recipe(), KINECT)
    for ours, theirs in zip(
        method.student.state_dict().values(), method.teacher.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.9), (0.5, 0.95), (1.0, 1.0)])
def test_teacher_momentum_follows_a_cosine(progress: float, momentum: float) -> None:
    method = method_of()
    before = [p.clone() for p in method.teacher.parameters()]
    method.update_teacher(progress)
    for was, mine, now in zip(
        before, method.student.parameters(), method.teacher.parameters(), strict=True
    ):
        assert torch.allclose(now, momentum * was + (1 - momentum) * mine, atol=1e-6)


@pytest.mark.parametrize(
    ("progress", "temperature"), [(0.0, 0.04), (0.1, 0.055), (0.2, 0.07), (1.0, 0.07)]
)
def test_teacher_temperature_rises_linearly(progress: float, temperature: float) -> None:
    assert method_of().teacher_temperature(progress) == pytest.approx(temperature)


def test_teacher_temperature_without_warm_up() -> None:
    assert method_of("loss.teacher_warmup=0.0").teacher_temperature(0.0) == 0.07


def test_the_initial_class_loss_is_near_chance() -> None:
    torch.manual_seed(0)
    recipe = tiny_recipe("head.prototypes=4096", "head.bottleneck=256")
    method = SLiM(recipe, KINECT)
    found = method.learn(batch_of(mixed_samples()), 0.0)["glcl"].item()
    assert found == pytest.approx(chance_loss(recipe), rel=0.04)


def test_coordinates_stay_float32_under_autocast() -> None:
    method = method_of()
    batch = batch_of(mixed_samples())
    given: list[Tensor] = []
    method.student.encoder.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    full = method.learn(batch, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.learn(batch, 0.1)
    count = len(given) // 2
    for exact, cast in zip(given[:count], given[count:], strict=True):
        assert cast.dtype == torch.float32
        assert torch.equal(exact, cast)
    assert half["loss"].item() == pytest.approx(full["loss"].item(), rel=0.02)


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """Batches of a few of the samples each."""
    names = [field.name for field in fields(Batch) if field.name.endswith("_N")]
    chunks = zip(*(getattr(batch, name).split(size) for name in names), strict=True)
    return [replace(batch, **dict(zip(names, values, strict=True))) for values in chunks]


def gradients(
    method: SLiM, batch: Batch, micro: int | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    method.student.zero_grad()
    told = method.learn(batch, 0.3, micro)
    found = {
        name: parameter.grad.clone()
        for name, parameter in method.student.named_parameters()
        if parameter.grad is not None
    }
    return {name: value.item() for name, value in told.items()}, found


MAMPS = (
    "encoder.class_token=false", "encoder.registers=0", "encoder.positions=learned",
    "loss.contrast_weight=0.0", "loss.koleo_weight=0.0", "views.resample=linear",
    "views.absent_body=zeros",
)  # fmt: skip
"""Masked feature modelling alone, of an encoder in MAMP's form."""


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("loss.clean_pass=true", "views.anchors=1"),
        ("loss.koleo_weight=0.0", "views.absent_body=zeros"),
        ("loss.mask_weight=0.0", "mask.global_kind=none"),
        ("loss.contrast_weight=0.0", "views.crops=0"),
        ("loss.koleo_weight=3.0", "mask.local_kind=motion", "augment.scaling=axes"),
        MAMPS,
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_learn_what_the_whole_batch_does(changes: tuple[str, ...], size: int) -> None:
    method = method_of(*changes).double()
    batch = batch_of(mixed_samples())
    batch = replace(batch, flat_RJC=batch.flat_RJC.double())
    told, wanted = gradients(method, batch)
    parts, found = gradients(method, batch, size)
    assert parts.keys() == told.keys()
    for name, value in told.items():
        assert parts[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-11), name


def test_koleo_may_keep_to_what_a_device_holds() -> None:
    changes = ("loss.mask_weight=0.0", "loss.contrast_weight=0.0", "loss.koleo_weight=1.0")
    method = method_of(*changes, "loss.koleo_scope=local")
    batch = batch_of(mixed_samples())
    told, found = gradients(method, batch, 2)
    each = [gradients(method, part) for part in parts_of(batch, 2)]
    assert told["koleo"] == pytest.approx(mean(value["koleo"] for value, _ in each), rel=1e-5)
    name = "encoder.patch.weight"
    wanted = torch.stack([gradient[name] for _, gradient in each]).mean(0)
    assert torch.allclose(found[name], wanted, rtol=1e-4, atol=1e-6)
    whole = gradients(method_of(*changes), batch, 2)[0]["koleo"]
    assert whole != pytest.approx(told["koleo"], rel=1e-3)  # neighbours lie in other parts too


def test_what_has_no_weight_is_not_told() -> None:
    method = method_of("loss.contrast_weight=0.0", "loss.koleo_weight=0.0", "views.crops=0")
    told = method.learn(batch_of(mixed_samples()), 0.3)
    assert told.keys() == {"loss", "mfm", "patch_entropy"}
    assert all(p.grad is None for p in method.student.class_head.parameters())


def test_weights_cast_without_gradients_are_not_used_with_them() -> None:
    """Autocast keeps what it has cast, and KoLeo's neighbours are found without gradients."""
    batch = batch_of(mixed_samples() + [recording(seed, 30) for seed in range(20, 24)])
    found = []
    for kept in (True, False):
        method = method_of()
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=kept):
            method.learn(batch, 0.1, 6)
        found.append({name: own.grad for name, own in method.student.named_parameters()})
    for name, gradient in found[0].items():
        expected = found[1][name]
        assert gradient is not None, name
        assert expected is not None, name
        assert float((gradient - expected).norm()) < 0.05 * float(expected.norm()), name


class Waits(TorchDispatchMode):
    """Counts the operations whose result a host must have before it can go on."""

    sizes = ("item", "_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        places = args[1] if name in ("index", "index_put", "_index_put_impl_") else ()
        masks = [one for one in places if isinstance(one, Tensor) and one.dtype == torch.bool]
        sizeless = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        self.count += name in self.sizes or sizeless or len(masks)
        return func(*args, **(kwargs or {}))


def test_a_host_waits_for_a_device_only_while_views_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host that waits queues no work: the device idles after each micro-batch's encoder."""
    method = method_of("loss.koleo_weight=0")
    batch = batch_of(mixed_samples())
    parts = method._parts(batch, 2)
    assert len(parts) == 3
    monkeypatch.setattr(method, "_parts", lambda *_: parts)
    with Waits() as waits:
        method.learn(batch, 0.1, 2)
    assert waits.count == 0


def train_steps(recipe: SLiMRecipe, steps: int) -> list[float]:
    torch.manual_seed(0)
    method = SLiM(recipe, KINECT)
    optimiser = build_optimiser(method.student, recipe)
    samples = mixed_samples() + [recording(seed, 20 + seed) for seed in range(10, 16)]
    found = []
    for step in range(steps):
        chosen = [(5 * step + number) % len(samples) for number in range(4)]
        batch = batch_of([samples[number] for number in chosen])
        batch = replace(batch, key_N=batch.key_N + step)
        set_rates(optimiser, recipe, step / steps)
        optimiser.zero_grad()
        loss = method.learn(batch, step / steps)["loss"]
        torch.nn.utils.clip_grad_norm_(method.student.parameters(), 3.0)
        optimiser.step()
        method.update_teacher((step + 1) / steps)
        found.append(loss.item())
    return found


def test_twenty_steps_give_the_recorded_losses() -> None:
    found = train_steps(tiny_recipe("train.epochs=4", "optim.lr=3e-3"), 20)
    assert found == pytest.approx(RECORDED, rel=1e-4)
