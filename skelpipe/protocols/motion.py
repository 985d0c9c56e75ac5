"""Motion prediction: the frames that follow those that an encoder has seen, in millimetres.

PCM3 (Sec. 4.3, Table 6) names a decoder and a protocol, Martinez's, and an error, MPJPE; neither
it nor its code says on which data, how far ahead, or whether the encoder is trained along (P15).
Our reading, each number of it a setting: the first body alone, which both pipelines order by how
much they move; coordinates of the run's own pipeline; windows of 50 + 10 frames at the set's own
rate, in which that body is seen throughout; a frozen encoder, which is what the paper's finding
fits, that contrast alone predicts worse than initial weights do.

Letters: N windows, T observed and P predicted frames, J joints, C = 3 coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe import distributed
from skelpipe.config import PCM3Recipe, Recipe
from skelpipe.errors import UserError
from skelpipe.models.encoder import Encoder
from skelpipe.models.residual_gru import ResidualGRU
from skelpipe.models.vit import SkeletonViT, Tokens
from skelpipe.protocols.features import default_kind
from skelpipe.protocols.metrics import headline
from skelpipe.protocols.question import Found, Question, recipe_readings
from skelpipe.protocols.settings import Motion
from skelpipe.random import below, fold
from skelpipe.skeleton import Topology
from skelpipe.stream.order import Order
from skelpipe.stream.source import Batch, Source
from skelpipe.views.modality import channels


def answer(protocol: Motion, question: Question) -> Found:
    """Train a decoder behind an encoder, and tell how far off its predictions are.

    The headline is MPJPE: the mean over joints, frames and test samples of the Euclidean distance.
    Beside it stand what moves nothing, and what moves on as between the last two frames.

    Raises:
        UserError: No millimetres can be told; too few recordings are long enough; predictions are
            not finite.
    """
    encoder = question.encoder()
    _check(protocol, question, encoder)
    train, test = (Windows.of(source, protocol) for source in (question.train, question.test))
    _check_enough(protocol, train, test)
    moved = movement(train)
    if not moved:
        raise UserError("nothing moves in the train part: there is nothing to predict")
    trained = protocol.encoder == "trained"
    encoder.requires_grad_(trained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(question.seed)
        model = Predictor(encoder, protocol, question.recipe, question.topology, moved)
    model = model.to(question.device)
    fit(model, train, protocol, question.seed, question.report)
    model.encoder.eval()
    own_NP, still_NP, steady_NP = errors(model, test)
    _check_finite(own_NP, test)

    fps = question.card.fps
    name = "student" if question.subject == "run" else "untrained encoder"
    row = {"network": name, **_row(own_NP, fps)}
    return Found(
        [row],
        {
            "headline": headline(row["mpjpe"], "mpjpe", lower_is_better=True),
            "baselines": [
                {"network": "zero velocity", **_row(still_NP, fps)},
                {"network": "constant velocity", **_row(steady_NP, fps)},
            ],
            "windows": {"train": train.told(), "test": test.told()},
        },
        readings=[
            *recipe_readings(question.recipe, question.run),
            *_readings(protocol, question),
        ],
    )


def _check(protocol: Motion, question: Question, encoder: Encoder) -> None:
    card, source = question.card, question.folder
    if not card.metric:
        raise UserError(
            "motion prediction is told in millimetres, and the set's unit is not known",
            file=source,
            remedy="a set whose manifest states the unit of its positions",
        )
    if question.kind != default_kind(question.recipe):
        raise UserError(
            "motion prediction starts from the last frame, or the last patch of every joint",
            found=f"features '{question.kind}'",
            remedy="leave out --features",
        )
    if isinstance(encoder, SkeletonViT) and protocol.observed < encoder.patch_frames:
        raise UserError(
            "the observed frames do not fill a patch",
            place="observed",
            found=protocol.observed,
            expected=f"{encoder.patch_frames} at least",
        )
    if protocol.batch < distributed.world():
        raise UserError(
            "a batch is too small to be shared by all ranks",
            place="batch",
            found=protocol.batch,
            expected=f"{distributed.world()} at least",
        )


def _check_enough(protocol: Motion, train: Windows, test: Windows) -> None:
    need = {"train": (train, protocol.batch), "test": (test, 1)}
    for part, (windows, least) in need.items():
        if len(windows.place_N) < least:
            raise UserError(
                f"too few recordings of the {part} part show their main actor for "
                f"{windows.observed} + {windows.predicted} frames on end",
                found=f"{len(windows.place_N)} of {len(windows.source)}",
                expected=f"{least} at least",
                remedy="fewer frames (--set observed=…, predicted=…), or a smaller batch",
            )


def _check_finite(error_NP: Tensor, windows: Windows) -> None:
    wrong = (~error_NP.isfinite().all(1)).nonzero()[:, 0].tolist()
    if wrong:
        keys = windows.source.table["key"]
        raise UserError(
            f"{len(wrong)} predictions are not finite",
            found=", ".join(keys[int(windows.place_N[place])].as_py() for place in wrong[:5]),
            remedy="the training diverged, or the run did: a lower lr",
        )


def _readings(protocol: Motion, question: Question) -> list[str]:
    card = question.card
    ahead = _milliseconds(protocol.predicted, card.fps)
    centred = {
        "agcn": "which centres every frame: where the body goes is not predicted",
        "ctrgcn": "which moves whole recordings alone: where the body goes is predicted too",
    }
    pipeline = f"coordinates of pipeline {card.pipeline.name}"
    if card.pipeline.name in centred:
        pipeline += f", {centred[card.pipeline.name]}"
    return [
        f"P15 {protocol.observed} frames observed, {protocol.predicted} predicted, to {ahead} ms; "
        "the first body alone",
        f"P15 {pipeline}",
        f"P15 encoder {protocol.encoder}, decoder trained for {protocol.steps:,} steps",
        "P15 not comparable with PCM3's Table 6 (101.7 mm, untrained 108.5 mm), whose data, "
        "horizon and splits are not stated",
    ]


def _row(error_NP: Tensor, fps: float) -> dict[str, Any]:
    mean_P = error_NP.mean(0)
    by_horizon = {
        _milliseconds(frame, fps): value for frame, value in enumerate(mean_P.tolist(), start=1)
    }
    return {"mpjpe": mean_P.mean().item(), "by_horizon": by_horizon}


def _milliseconds(frames: int, fps: float) -> str:
    return f"{1000 * frames / fps:.0f}"


def window_starts(batch: Batch, frames: int) -> Tensor:
    """Where windows may start: the first body is seen in each of ``frames`` frames from there.

    Returns:
        Shape (N, S), bool; S is 0 where the batch's longest recording is too short.
    """
    place_T = torch.arange(int(batch.frames_N.max()), device=batch.frames_N.device)
    inside_NT = place_T < batch.frames_N[:, None]
    row_NT = batch.start_N[:, None] + torch.where(inside_NT, place_T, 0)
    seen_NT = inside_NT & batch.present_R[row_NT]
    count_NT = F.pad(seen_NT.cumsum(1), (1, 0))
    starts_NS: Tensor = count_NT[:, frames:] - count_NT[:, :-frames] == frames
    return starts_NS


def cut(batch: Batch, frames: int, key_N: Tensor | None = None) -> Tensor:
    """A window of the first body of each sample, shape (N, frames, J, C).

    Args:
        batch: N samples; each has a window.
        frames: Of a window.
        key_N: Of the draws among a sample's windows, all alike likely; the middle one by default.
    """
    starts_NS = window_starts(batch, frames)
    count_N1 = starts_NS.sum(1, keepdim=True)
    number_N1 = (count_N1 - 1) // 2 if key_N is None else below(key_N, "motion window", 1, count_N1)
    # The first place by which so many and one have started; of equal maxima the first is taken.
    first_N = (starts_NS.cumsum(1) > number_N1).int().argmax(1)
    place = torch.arange(frames, device=first_N.device)
    row = (batch.start_N + first_N)[:, None] + place
    return batch.flat_RJC[row]


@dataclass(frozen=True)
class Windows:
    """The recordings of a source that have a window.

    Attributes:
        source: Of all recordings.
        place_N: Places of those that have one, int64, on the CPU.
        observed, predicted: T and P, frames of a window.
    """

    source: Source
    place_N: Tensor
    observed: int
    predicted: int

    @classmethod
    def of(cls, source: Source, protocol: Motion) -> Windows:
        """Look at all recordings once."""
        frames = protocol.observed + protocol.predicted
        every_N = torch.arange(len(source))
        has_N = _over_ranks(source, every_N, lambda b: window_starts(b, frames).any(1).double(), ())
        return cls(source, every_N[has_N.cpu() > 0], protocol.observed, protocol.predicted)

    @property
    def frames(self) -> int:
        return self.observed + self.predicted

    def split(self, x_NTJC: Tensor) -> tuple[Tensor, Tensor]:
        """What is observed of windows, and what is to be predicted."""
        return x_NTJC[:, : self.observed], x_NTJC[:, self.observed :]

    def told(self) -> dict[str, Any]:
        """How many recordings have a window, and which have not."""
        used = set(self.place_N.tolist())
        keys = self.source.table["key"].to_pylist()
        left_out = [key for place, key in enumerate(keys) if place not in used]
        return {"samples": len(used), "left_out": left_out}


def movement(windows: Windows) -> float:
    """How far a coordinate is from the last observed one in the frames to predict, in metres.

    Root mean square over the middle windows: standing still has a mean squared error of 1 in it.
    """

    def work(batch: Batch) -> Tensor:
        seen_NTJC, next_NPJC = windows.split(cut(batch, windows.frames))
        return (next_NPJC - seen_NTJC[:, -1:]).double().square().mean((1, 2, 3))

    return sqrt(_over_ranks(windows.source, windows.place_N, work, ()).mean().item())


def _over_ranks(
    source: Source, place_N: Tensor, work: Callable[[Batch], Tensor], shape: Sequence[int]
) -> Tensor:
    """What ``work`` gives for the samples at these places; ranks share it and all get all.

    Args:
        source, place_N: N samples.
        work: A batch of n samples to rows of shape (n, *shape), float64.
        shape: Of a row.
    """
    rank, world = distributed.rank(), distributed.world()
    own = place_N[len(place_N) * rank // world : len(place_N) * (rank + 1) // world]
    empty = torch.zeros(0, *shape, dtype=torch.float64, device=source.device)
    rows = torch.cat([empty, *(work(source.take(part)) for part in own.split(256) if len(part))])
    distributed.wait_for_all()
    return distributed.gather_rows(rows)[0]


class Predictor(nn.Module):
    """An encoder, and the decoder that goes on from what it has seen last.

    The GRU's state is that of `SkeletonGRU.pool`, and one decoder moves all joints. Of the
    transformer each joint has its own, its token of the last patch, and one decoder moves them all,
    each by itself; it sees the last whole patches of the observed frames. Only the first body is
    shown.

    Args:
        encoder: Its own parameters are as they are.
        protocol: Gives the decoder's width.
        recipe: Gives the stream and the slots for bodies that the encoder's input has.
        topology: Whose bones the stream may need.
        step: See `ResidualGRU`: in units of this a decoder that starts at rest has a loss of 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        protocol: Motion,
        recipe: Recipe,
        topology: Topology,
        step: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.recipe = recipe
        self.topology = topology
        if isinstance(encoder, SkeletonViT):
            self.decoder = ResidualGRU(
                encoder.joint_embedding.shape[1],
                hidden=protocol.joint_hidden,
                channels=3,
                step=step,
            )
        else:
            self.decoder = ResidualGRU(
                2 * encoder.hidden,
                hidden=protocol.hidden,
                channels=3 * len(topology.joints),
                step=step,
            )

    def forward(self, seen_NTJC: Tensor, frames: int) -> Tensor:
        """The ``frames`` frames that follow, shape (N, P, J, C), in metres as those before."""
        state_NGD = self._states(seen_NTJC)
        now_NJC = seen_NTJC[:, -1]
        pose_NGC = now_NJC.reshape(*state_NGD.shape[:2], -1)  # a group of joints for each state
        next_BPC = self.decoder(state_NGD.flatten(0, 1), pose_NGC.flatten(0, 1), frames)
        next_NGPC = next_BPC.unflatten(0, state_NGD.shape[:2])
        next_NPGC: Tensor = next_NGPC.transpose(1, 2)
        return next_NPGC.reshape(len(now_NJC), frames, *now_NJC.shape[1:])

    def _states(self, seen_NTJC: Tensor) -> Tensor:
        """What the decoder starts from: shape (N, joints or 1, D)."""
        if isinstance(self.encoder, SkeletonViT):
            frames = seen_NTJC.shape[1]
            tokens: Tokens = self.encoder(seen_NTJC[:, frames % self.encoder.patch_frames :])
            return tokens.patch_BSJD[:, -1]
        assert isinstance(self.recipe, PCM3Recipe)
        views = self.recipe.views
        slots = F.pad(seen_NTJC[:, None], (0, 0) * 3 + (0, views.bodies - 1))
        x_NTC = channels(slots, views.modality, self.topology)
        return self.encoder.pool(self.encoder(x_NTC))[:, None]


def fit(
    model: Predictor,
    windows: Windows,
    protocol: Motion,
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train a decoder, and an encoder that takes gradients, by SGD on the squared error.

    An epoch visits every recording that has a window once, each at a window drawn anew; its last
    incomplete batch is dropped. Ranks share a batch and sum their gradients before they are
    clipped.

    Args:
        model: Moved.
        windows: To learn from, a batch of them at least.
        protocol: Steps, batch, rates.
        seed: Of order and windows.
        report: Called with steps done and in all.
    """
    trained = protocol.encoder == "trained"
    learnt: nn.Module = model if trained else model.decoder
    model.encoder.train(trained)
    optimiser = torch.optim.SGD(learnt.parameters(), lr=protocol.lr)
    order = Order(len(windows.place_N), protocol.batch, int(fold(seed, 1)))
    rank, world = distributed.rank(), distributed.world()
    own = slice(protocol.batch * rank // world, protocol.batch * (rank + 1) // world)
    for step in range(protocol.steps):
        epoch, number = divmod(step, order.steps(0))
        place_N = windows.place_N[order.places(epoch, number).place_G[own]]
        batch = windows.source.take(place_N)
        x_NTJC = cut(batch, windows.frames, fold(seed, epoch, batch.row_N))
        seen_NTJC, next_NPJC = windows.split(x_NTJC)
        error = (model(seen_NTJC, windows.predicted) - next_NPJC) / model.decoder.step
        loss = error.square().sum() * (len(place_N) / protocol.batch / error.numel())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(learnt)
        nn.utils.clip_grad_norm_(learnt.parameters(), protocol.clip)
        optimiser.param_groups[0]["lr"] = protocol.lr * protocol.lr_decay ** (
            step // protocol.decay_steps
        )
        optimiser.step()
        report(step + 1, protocol.steps)


@torch.no_grad()
def errors(model: Predictor, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Mean distance over joints in the middle window of each recording, in millimetres.

    Returns:
        Of the model, of standing still, and of moving on as between the last two frames; each of
        shape (N, P), float64.
    """

    def work(batch: Batch) -> Tensor:
        seen_NTJC, next_NPJC = windows.split(cut(batch, windows.frames))
        now_N1JC = seen_NTJC[:, -1:]
        ahead_P = torch.arange(1, windows.predicted + 1, device=now_N1JC.device)
        steady = now_N1JC + ahead_P[:, None, None] * (now_N1JC - seen_NTJC[:, -2:-1])
        found = (model(seen_NTJC, windows.predicted), now_N1JC.expand_as(next_NPJC), steady)
        distance = [1000 * (x - next_NPJC).double().norm(dim=-1).mean(-1) for x in found]
        return torch.stack(distance, 1)

    found_NKP = _over_ranks(windows.source, windows.place_N, work, (3, windows.predicted))
    return found_NKP[:, 0], found_NKP[:, 1], found_NKP[:, 2]
