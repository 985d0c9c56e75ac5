from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import KINECT, batch_of, recording, tiny_pcm3_recipe
from torch import Tensor
from torch.nn import functional as F

from skelpipe.errors import UserError
from skelpipe.methods.pcm3 import PCM3
from skelpipe.methods.pcm3_views import Views
from skelpipe.optim import build_optimiser, set_rates
from skelpipe.random import fold
from skelpipe.stream.source import Batch

# Losses of `train_steps`, as recorded when every part was checked against a literal loop.
RECORDED = [
    36.208955, 28.787801, 30.364159, 32.519384, 30.734291, 32.358306, 27.318696, 28.544954,
    33.189214, 25.70135, 25.000425, 25.776397, 31.077909, 22.624427, 28.360329, 28.157805,
    30.517535, 21.675801, 28.851209, 22.388507,
]  # fmt: skip

PATHS = ("intra", "inter", "mask", "predict")


def method_of(*changes: str) -> PCM3:
    """A method in float64 whose key network differs from the query, so that all shows."""
    torch.manual_seed(0)
    method = PCM3(tiny_pcm3_recipe(*changes), KINECT).double()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return method


def batch() -> Batch:
    samples = [recording(1, 40), recording(2, 25, 2), recording(3, 90), recording(4, 12, 2)]
    return batch_of([poses.astype("float64") for poses in samples])


def window(method: PCM3, name: str, key: Tensor, task: str) -> Tensor:
    """The task prompt as a vector of all features: zeros but for a window in each half."""
    prompts = method.student.task_prompts
    assert prompts is not None
    probe = torch.zeros(2 * prompts.hidden, dtype=torch.float64)
    return prompts(probe, task, key, name)  # type: ignore[no-any-return]


def literal(method: PCM3, views: Views, key: Tensor) -> dict[str, Tensor]:
    """The objective sample by sample, from the released recipe: one graph, no shortcut."""
    q, k, settings = method.student, method.teacher, method.recipe.loss
    prompts = q.domain_prompts
    queue = [row.clone() for row in k.queue.keys_KP]

    def encode(network: Any, x: Tensor, view: str) -> Tensor:
        out: Tensor = network.encoder(x, None if prompts is None else prompts[view])
        return out

    def embed(network: Any, feature: Tensor, use: str) -> Tensor:
        last = feature[:, -1]
        if method.recipe.encoder.direction == "both":  # the second GRU ends in the first frame
            half = last.shape[1] // 2
            last = torch.cat([last[:, :half], feature[:, 0, half:]], 1)
        if q.task_prompts is not None:
            last = last + window(method, use, key, "contrast")
        return F.normalize(network.projector.mlp(last), dim=-1)

    with torch.no_grad():
        keys = embed(k, encode(k, views.key_NTC, "intra"), "key")
        mixed = []
        for n, (partner, share) in enumerate(zip(views.partner_N, views.share_N, strict=True)):
            mixed.append(F.normalize(keys[n] * (1 - share) + keys[partner] * share, dim=-1))

    features: dict[str, Tensor] = {}
    features["intra"] = encode(q, views.query_NTC, "intra")
    hidden = views.clip_NTC * ~views.masked_NTC
    features["mask"] = encode(q, hidden, "mask")
    told = features["mask"]
    if q.task_prompts is not None:
        told = told + window(method, "prediction", key, "prediction")
    predicted = q.decoder(told)
    second = q.decoder(told.detach())
    if settings.detach_predicted:
        second = second.detach()
    filled = hidden + second * views.masked_NTC
    features["predict"] = encode(q, filled, "predict")
    features["inter"] = encode(q, views.mixed_NTC, "inter")

    found: dict[str, Tensor] = {}
    for view, feature in features.items():
        if view not in settings.positives:
            continue
        nce, kl = [], []
        for n, z in enumerate(embed(q, feature, view)):
            positive = keys[n] if view != "inter" else mixed[n]
            scores = [z @ positive, *(z @ m for m in queue)]
            exps = torch.stack([torch.exp(s / settings.temperature) for s in scores])
            nce.append(-torch.log(exps[0] / exps.sum()))
            student = torch.stack([torch.exp(z @ m / settings.student_temperature) for m in queue])
            teacher = torch.stack(
                [torch.exp(positive @ m / settings.teacher_temperature) for m in queue]
            )
            p, t = student / student.sum(), teacher / teacher.sum()
            kl.append((t * (t / p).log()).sum())
        found[view] = torch.stack(nce).mean()
        if settings.kl_weight:
            found[f"kl_{view}"] = torch.stack(kl).mean()
    if settings.mask_weight:
        square = ((predicted - views.clip_NTC) ** 2)[views.masked_NTC]
        found["error"] = square.sum() / views.masked_NTC.sum()
    weights = {"error": settings.mask_weight, **{f"kl_{v}": settings.kl_weight for v in PATHS}}
    found["loss"] = torch.stack([weights.get(n, 1.0) * v for n, v in found.items()]).sum()
    return found


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("views.shared=false",),
        ("loss.kl_weight=0.0", "loss.detach_predicted=true", "prompts.domain=none",
         "prompts.task=false", "views.modality=bone"),
        ("loss.positives=['mask', 'inter']", "loss.mask_weight=0.0"),
        ("loss.positives=['predict']", "views.modality=motion"),
        ("loss.positives=[]",),
        ("mask.kind=random",),
        ("encoder.direction=both", "views.bodies=1"),
    ],
)  # fmt: skip
def test_losses_and_gradients_are_the_literal_ones(changes: tuple[str, ...]) -> None:
    method, reference = method_of(*changes), method_of(*changes)
    given = batch()
    views = method.views(given)
    told = method.learn(given, 0.0)
    wanted = literal(reference, views, given.key)
    assert told.keys() == wanted.keys()
    for name in wanted:
        assert float(told[name]) == pytest.approx(wanted[name].item(), abs=1e-10), name
    wanted["loss"].backward()
    for (name, own), other in zip(
        method.student.named_parameters(), reference.student.parameters(), strict=True
    ):
        own_grad, other_grad = own.grad, other.grad
        if own_grad is None or other_grad is None:
            assert own_grad is None or not own_grad.any(), name
            assert other_grad is None or not other_grad.any(), name
            continue
        assert torch.allclose(own_grad, other_grad, atol=1e-10), name
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


# Terms -> what they must reach and must not reach. The domain prompts tell the passes apart: "mask"
# is added in the masked pass alone, "predict" in the pass of the predicted view.
REACHED = {
    "error": (
        ("encoder", "decoder", "domain_prompts.mask", "task_prompts.prediction"),
        ("projector", "task_prompts.contrast", "domain_prompts.intra", "domain_prompts.inter",
         "domain_prompts.predict"),
    ),
    "intra": (
        ("encoder", "projector", "task_prompts.contrast", "domain_prompts.intra"),
        ("decoder", "task_prompts.prediction", "domain_prompts.inter", "domain_prompts.mask",
         "domain_prompts.predict"),
    ),
    "inter": (
        ("encoder", "projector", "task_prompts.contrast", "domain_prompts.inter"),
        ("decoder", "task_prompts.prediction", "domain_prompts.intra", "domain_prompts.mask",
         "domain_prompts.predict"),
    ),
    "mask": (
        ("encoder", "projector", "task_prompts.contrast", "domain_prompts.mask"),
        ("decoder", "task_prompts.prediction", "domain_prompts.intra", "domain_prompts.inter",
         "domain_prompts.predict"),
    ),
    "predict": (
        ("encoder", "decoder", "projector", "task_prompts.contrast", "domain_prompts.predict"),
        ("task_prompts.prediction", "domain_prompts.intra", "domain_prompts.inter",
         "domain_prompts.mask"),
    ),
    "predict, detached": (
        ("encoder", "projector", "task_prompts.contrast", "domain_prompts.predict"),
        ("decoder", "task_prompts.prediction", "domain_prompts.intra", "domain_prompts.inter",
         "domain_prompts.mask"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("term", REACHED)
def test_each_term_carries_gradient_where_it_must_and_nowhere_else(term: str) -> None:
    positives = [] if term == "error" else [term.split(",")[0]]
    weight = 40.0 if term == "error" else 0.0
    method = method_of(
        f"loss.positives={positives}",
        f"loss.mask_weight={weight}",
        f"loss.detach_predicted={'true' if 'detached' in term else 'false'}",
    )
    method.learn(batch(), 0.0)
    for prefixes, reached in zip(REACHED[term], (True, False), strict=True):
        for prefix in prefixes:
            own = [p for n, p in method.student.named_parameters() if n.startswith(prefix)]
            assert own
            found = any(p.grad is not None and bool(p.grad.any()) for p in own)
            assert found == reached, prefix
    assert all(p.grad is None for p in method.teacher.parameters())


def test_a_domain_prompt_before_the_input_norm_does_nothing_but_shift_its_mean() -> None:
    method, other = method_of("prompts.domain=before_bn"), method_of("prompts.domain=before_bn")
    assert other.student.domain_prompts is not None
    with torch.no_grad():
        for prompt in other.student.domain_prompts.values():
            prompt += torch.randn_like(prompt)
    told, changed = method.learn(batch(), 0.0), other.learn(batch(), 0.0)
    for name in told:
        assert float(told[name]) == pytest.approx(float(changed[name]), abs=1e-9)
    assert method.student.domain_prompts is not None
    for prompt in method.student.domain_prompts.values():
        assert prompt.grad is None or prompt.grad.abs().max() < 1e-9
    norms = method.student.encoder.input_norm, other.student.encoder.input_norm
    assert not torch.allclose(norms[0].running_mean, norms[1].running_mean)
    after, moved = method_of(), method_of()
    assert moved.student.domain_prompts is not None
    with torch.no_grad():
        moved.student.domain_prompts["intra"] += 1
    assert float(after.learn(batch(), 0.0)["intra"]) != pytest.approx(
        float(moved.learn(batch(), 0.0)["intra"]), abs=1e-6
    )


def test_task_prompts_get_a_fresh_window_at_every_use() -> None:
    method = method_of("encoder.hidden=20", "prompts.width=3")
    starts: dict[str, set[int]] = {}
    for step in range(300):
        for use in ("intra", "inter", "mask", "predict", "key", "prediction"):
            vector = window(method, use, fold(0, step), "contrast")
            places = vector.nonzero()[:, 0].tolist()
            first = places[0]
            assert places == [*range(first, first + 3), *range(20 + first, 23 + first)]
            starts.setdefault(use, set()).add(first)
    # As released: below hidden - width, so the last window that fits is never drawn.
    assert all(found == set(range(17)) for found in starts.values())
    drawn = [
        [int(window(method, use, fold(0, step), "contrast").nonzero()[0]) for step in range(50)]
        for use in starts
    ]
    assert len({tuple(row) for row in drawn}) == len(starts)


def test_the_key_network_follows_and_keeps_statistics_of_its_own() -> None:
    method = method_of("optim.key_momentum=0.75")
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    method.learn(batch(), 0.0)
    learned = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    for name, tensor in method.teacher.named_parameters():
        assert torch.equal(tensor, before[name])
    for name in ("encoder.input_norm.running_mean", "queue.keys_KP"):
        assert not torch.equal(learned[name], before[name])
    assert int(learned["queue.place"]) == 4
    assert not torch.equal(
        learned["encoder.input_norm.running_mean"],
        method.student.encoder.input_norm.running_mean,
    )
    method.update_teacher(0.5)
    query = dict(method.student.named_parameters())
    for name, tensor in method.teacher.named_parameters():
        expected = 0.75 * before[name] + 0.25 * query[name]
        assert torch.allclose(tensor, expected, atol=1e-12)
    for name, tensor in method.teacher.named_buffers():
        assert torch.equal(tensor, learned[name])


def test_clean_keys_alone_are_queued() -> None:
    method = method_of()
    given = batch()
    views = method.views(given)
    method.eval()  # the same statistics before and after
    with torch.no_grad():
        feature = method._encode(method.teacher, views.key_NTC, "intra")
        keys = method._embed(method.teacher, feature, given.key, "key")
    method.learn(given, 0.0)
    assert torch.allclose(method.teacher.queue.keys_KP[:4], keys, atol=1e-12)


def test_bones_of_an_older_set_are_refused() -> None:
    older = KINECT.model_copy(update={"bones": None})
    PCM3(tiny_pcm3_recipe(), older)
    with pytest.raises(UserError, match="other bones than the packaged one"):
        PCM3(tiny_pcm3_recipe("views.modality=bone"), older)


def train_steps(count: int = 20) -> list[float]:
    torch.manual_seed(0)
    recipe = tiny_pcm3_recipe()
    method = PCM3(recipe, KINECT)
    optimiser = build_optimiser(method.student, recipe)
    samples = [recording(n, 20 + 9 * n, 1 + n % 2) for n in range(4)]
    losses = []
    for step in range(count):
        keys = [step * 10 + n for n in range(4)]
        given = batch_of(samples, keys)
        optimiser.zero_grad()
        told = method.learn(given, step / count)
        for parameter in method.student.parameters():
            parameter.grad = (
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
        set_rates(optimiser, recipe, step / count)
        optimiser.step()
        method.update_teacher((step + 1) / count)
        losses.append(round(float(told["loss"]), 6))
    return losses


def test_losses_are_as_recorded() -> None:
    found = train_steps()
    print("RECORDED =", found)
    assert found == pytest.approx(RECORDED, rel=2e-4)
