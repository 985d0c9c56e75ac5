"""Fine-tuning: the encoder and a head on it, trained by labels, as MAMP or as CMD trains them.

Full labels, some of them (`subsets`), or another set than the pre-training's. Of a run the student
alone is trained (S28). An untrained encoder under the same recipe, without layer decay, is training
from scratch: what pre-training is worth is the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe import distributed
from skelpipe.config import Recipe, SLiMRecipe
from skelpipe.errors import UserError
from skelpipe.optim import cosine, decays
from skelpipe.protocols.features import See, encode_by, viewer
from skelpipe.protocols.linear import Trained
from skelpipe.protocols.question import (
    Answer,
    Found,
    Question,
    check_finite,
    labels,
    recipe_readings,
)
from skelpipe.protocols.recogniser import Recogniser, layer_of, layers_of
from skelpipe.protocols.settings import Finetune
from skelpipe.protocols.subsets import Subset, draw, pack
from skelpipe.random import fold
from skelpipe.stream.order import permutation
from skelpipe.stream.source import Source

_LOOKS = 20
"""Looks at a test part that is larger than what is trained on."""
_CHUNK = 256
"""Test samples at once."""


def answer(protocol: Finetune, question: Question) -> list[Answer]:
    """Fine-tune a question's encoder as often as the protocol says.

    Training r has the seed of the question + r: of the subset, the head, the order and views, and
    of an untrained encoder.

    Raises:
        UserError: The raw skeleton; features that the head does not take; a subset that cannot be
            drawn, or that the ranks cannot share; a loss or scores that are not finite.
    """
    if question.subject == "raw":
        question.encoder()  # refused: it has none
    subsets = drawn(protocol, question)
    samples = len(subsets[0].places if subsets else question.train)
    found = []
    for number in range(protocol.runs):
        once = replace(question, seed=question.seed + number)
        places = subsets[number].places if subsets else range(samples)
        first = number * protocol.epochs

        def report(epoch: int, first: int = first) -> None:
            question.report(first + epoch, protocol.runs * protocol.epochs)

        found.append(_train(protocol, once, torch.tensor(places), report))
    best = {
        "accuracy": sum(100 * each.best for each in found) / len(found),
        "epoch": found[0].best_epoch if len(found) == 1 else [each.best_epoch for each in found],
        "looked_every": _every(protocol, samples, len(question.test)),
    }
    more: dict[str, Any] = {"best_epoch_peer_convention": best}
    scratch = question.subject == "random-init"
    return [
        Answer(
            "from scratch" if scratch else "student, fine-tuned",
            [each.score_NC for each in found],
            [each.predicted_N for each in found],
            more,
        )
    ]


@dataclass(frozen=True)
class Amount:
    """What there is to do: steps of a batch, test samples to look at, weights of the head."""

    batch: int
    steps: int
    tested: int
    head: int


def amount(
    protocol: Finetune, recipe: Recipe, *, trained: int, tested: int, joints: int, classes: int
) -> Amount:
    """What a fine-tuning has to do, on so many training and test samples."""
    trained = max(int(trained * protocol.share), 1)
    batch = min(protocol.batch, trained)
    looks = -(-protocol.epochs // _every(protocol, trained, tested))
    dim = recipe.encoder.dim if isinstance(recipe, SLiMRecipe) else 2 * recipe.encoder.hidden
    head = dim * classes
    if protocol.head == "mamp":
        dim = dim * joints if isinstance(recipe, SLiMRecipe) else dim
        head = (dim + classes) * protocol.hidden
    return Amount(
        batch=batch,
        steps=protocol.runs * protocol.epochs * (trained // batch),
        tested=protocol.runs * looks * tested,
        head=head,
    )


def drawn(protocol: Finetune, question: Question) -> list[Subset]:
    """The samples of each training that have labels; none where all have."""
    if protocol.share == 1:
        return []
    table, classes = question.train.table, question.card.classes
    keys, label = table["key"].to_pylist(), table["label"].to_pylist()
    seeds = range(question.seed, question.seed + protocol.runs)
    return [
        draw(keys, label, share=protocol.share, kind=protocol.subset, seed=seed, classes=classes)
        for seed in seeds
    ]


def told(protocol: Finetune, question: Question, found: Found) -> Found:
    """What was found, with the subsets that were learnt from and what was fine-tuned."""
    found = replace(found, readings=_readings(protocol, question))
    subsets = drawn(protocol, question)
    if not subsets:
        return found
    table, names = question.train.table, question.card.classes
    label = table["label"].to_pylist()
    rows, warnings = [], []
    for subset in subsets:
        present = {label[place] for place in subset.places}
        absent = [names[number] for number in sorted({*label} - present)]  # of those there are
        rows.append(
            {
                "seed": subset.seed,
                "samples": len(subset.places),
                "classes": len(present),
                "digest": subset.digest,
            }
        )
        if absent:
            warnings.append(
                f"the subset of seed {subset.seed} ({len(subset.places)} samples) has none of "
                f"{len(absent)} classes: {', '.join(absent)}"
            )
    return replace(
        found,
        record=found.record | {"subsets": rows},
        warnings=warnings,
        files=found.files | {"subsets.csv": pack(subsets)},
    )


def _readings(protocol: Finetune, question: Question) -> list[str]:
    """The recipe's, with what is fine-tuned in place of its frozen features (S28)."""
    told = recipe_readings(question.recipe, question.run)
    found = [text for text in told if not text.startswith(("S28", "features:"))]
    slim, mamp = isinstance(question.recipe, SLiMRecipe), protocol.head == "mamp"
    if slim:
        what = "patch tokens joint by joint" if mamp else question.kind
        who = "student fine-tuned, " if question.subject == "run" else ""
        found.append(f"S28 {who}head on {what}, mean over the view's bodies")
    elif mamp:
        found.append("MAMP's head on PCM3's last frame, which stands for time, joints and bodies")
    if not slim and question.subject == "run":
        found.append("S28 student (query encoder) fine-tuned")
    if not slim and protocol.drop_path:
        found.append("no drop-path: a GRU has no residual branches")
    if question.subject == "random-init" and protocol.layer_decay < 1:
        found.append("from scratch: no layer decay")
    return found


def _train(
    protocol: Finetune, question: Question, places: Tensor, report: Callable[[int], None]
) -> Trained:
    """Train on the samples at these places; ranks share each batch.

    The last incomplete batch of an epoch is dropped, unless it is the only one, as by `linear.fit`.
    The test part is looked at every so many epochs, for the best of them.
    """
    model = _build(protocol, question)
    size = min(protocol.batch, len(places))
    rank, world = distributed.rank(), distributed.world()
    if size < world:
        raise UserError(
            f"{world} ranks cannot share batches of {size} samples",
            remedy=f"start at most {size} ranks",
        )
    mine = slice(size * rank // world, size * (rank + 1) // world)
    steps, source = len(places) // size, question.train
    row_N = torch.as_tensor(source.table["row"].to_numpy().copy())[places]
    see = viewer(question.recipe, question.topology, 1.0, protocol.random)
    see_test = viewer(question.recipe, question.topology, protocol.centre)
    decay = 1.0 if question.subject == "random-init" else protocol.layer_decay
    optimiser = _optimiser(model, protocol, decay)
    bf16 = question.recipe.train.precision == "bf16"
    test_label_N = labels(question.test)
    every = _every(protocol, len(places), len(question.test))
    best, score_NC = (-1.0, 0), torch.empty(0)
    for epoch in range(protocol.epochs):
        order = permutation(len(places), int(fold(question.seed, 1)), epoch)
        losses = torch.zeros((), device=question.device)
        for step in range(steps):
            rows = order[step * size : (step + 1) * size][mine]
            batch = source.take(places[rows], fold(question.seed, epoch, row_N[rows]))
            x, sample_B = see(batch)
            with torch.autocast(question.device.type, torch.bfloat16, enabled=bf16):
                logit_NC = model(x, sample_B, len(batch), batch.key_N)
            loss = F.cross_entropy(
                logit_NC if logit_NC.dtype == torch.float64 else logit_NC.float(),
                batch.label_N,
                reduction="sum",
                label_smoothing=protocol.label_smoothing,
            )
            optimiser.zero_grad(set_to_none=True)
            (loss / size).backward()  # this rank's share
            distributed.sum_gradients(model)
            rate = rate_at(protocol, epoch, step / steps)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            optimiser.step()
            losses += loss.detach()
        _check_loss(distributed.sum_over_ranks(losses), epoch, question.recipe)
        if (epoch + 1) % every == 0 or epoch + 1 == protocol.epochs:
            score_NC = _scores(model, question.test, see_test, question.classes)
            check_finite([score_NC], question.test)
            accuracy = (score_NC.argmax(1) == test_label_N).double().mean().item()
            best = max(best, (accuracy, -(epoch + 1)))
        report(epoch + 1)
    return Trained(score_NC, score_NC.argmax(1), best[0], -best[1])


def _build(protocol: Finetune, question: Question) -> Recogniser:
    encoder = question.encoder()
    encode_by(encoder, question.kind)  # refuses features that the encoder does not have
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(question.seed)
        model = Recogniser(
            encoder, question.kind, len(question.topology.joints), question.classes, protocol
        )
    if model.joint_by_joint and question.kind != "patch":
        raise UserError(
            f"the head of protocol '{protocol.name}' is on all patch tokens",
            found=f"--features {question.kind}",
            remedy="leave out --features, or --set head=linear",
        )
    double = question.recipe.train.precision == "float64"
    return model.to(question.device, torch.float64 if double else torch.float32)


def _optimiser(model: Recogniser, protocol: Finetune, decay: float) -> torch.optim.Optimizer:
    """AdamW with its default betas, or SGD, in groups by layer and by what decays.

    A group's "scale" is of its rate: decay ** (layers above it). Weights decay but for vectors and
    embeddings, as in pre-training.
    """
    layers = layers_of(model.encoder)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        group = layer_of(name, layers), decays(name, parameter)
        groups.setdefault(group, []).append(parameter)
    told = [
        {
            "params": parameters,
            "scale": decay ** (layers + 1 - layer),
            "weight_decay": protocol.weight_decay if decayed else 0.0,
        }
        for (layer, decayed), parameters in groups.items()
    ]
    if protocol.optimiser == "adamw":
        return torch.optim.AdamW(told, lr=0.0)
    return torch.optim.SGD(told, lr=0.0, momentum=protocol.momentum)


def rate_at(protocol: Finetune, epoch: int, share: float) -> float:
    """The rate of the last layer, once this share of an epoch (from 0) is done.

    By steps: a tenth from the start of each epoch of ``drops`` on. Along a cosine: linear from 0
    in the warm-up, then to ``min_lr``.
    """
    if protocol.schedule == "steps":
        return protocol.lr * 0.1 ** sum(epoch >= drop for drop in protocol.drops)
    progress, warmup = (epoch + share) / protocol.epochs, protocol.warmup
    if progress < warmup:
        return protocol.lr * progress / warmup
    return cosine(protocol.lr, protocol.min_lr, (progress - warmup) / (1 - warmup))


@torch.no_grad()
def _scores(model: Recogniser, source: Source, see: See, classes: int) -> Tensor:
    """Logits of all samples, each once, shape (N, C), float32, on every rank; ranks share them."""
    rank, world = distributed.rank(), distributed.world()
    first, last = (len(source) * number // world for number in (rank, rank + 1))
    parts = [torch.zeros(0, classes, device=source.device)]
    model.eval()
    for begin in range(first, last, _CHUNK):
        batch = source.take(torch.arange(begin, min(begin + _CHUNK, last)))
        parts.append(model(*see(batch), len(batch)).float())
    model.train()
    distributed.wait_for_all()
    return distributed.gather_rows(torch.cat(parts))[0]


def _every(protocol: Finetune, trained: int, tested: int) -> int:
    """Epochs between looks at the test part: one where a look costs less than the epoch."""
    return 1 if tested <= trained else -(-protocol.epochs // _LOOKS)


def _check_loss(total: Tensor, epoch: int, recipe: Recipe) -> None:
    if not bool(total.isfinite()):
        raise UserError(
            f"fine-tuning stopped: the loss is not finite in epoch {epoch + 1}",
            found=f"{total.item():g}",
            remedy="a smaller lr: --set lr=…"
            + ("" if recipe.train.precision != "bf16" else ", or a run in float32"),
        )
