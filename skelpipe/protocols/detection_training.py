"""Training on windows: an epoch has some of each recording, each about a frame drawn by its key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from skelpipe import distributed
from skelpipe.errors import UserError
from skelpipe.optim import cosine
from skelpipe.protocols.detection_model import FrameClassifier
from skelpipe.protocols.settings import Detection
from skelpipe.random import below, fold
from skelpipe.stream.order import permutation
from skelpipe.stream.source import Source
from skelpipe.views.windows import Windows, gather_windows, window_frames


@dataclass(frozen=True)
class Draw:
    """Where N training windows lie.

    Attributes:
        place_N: Their recordings' places in the source.
        frame_NW: Their frames.
        middle_N: The frame whose action is asked.
    """

    place_N: Tensor
    frame_NW: Tensor
    middle_N: Tensor

    def __len__(self) -> int:
        return len(self.place_N)

    def __getitem__(self, rows: Tensor) -> Draw:
        return Draw(self.place_N[rows], self.frame_NW[rows], self.middle_N[rows])


def draw_windows(
    frames_R: Tensor, row_R: Tensor, protocol: Detection, seed: int, epoch: int
) -> Draw:
    """An epoch's windows: ``per_recording`` of each of R recordings, one recording after another.

    Stride and centre are drawn by (seed, epoch, the recording's row in the index, number).
    """
    place_N = torch.arange(len(frames_R)).repeat_interleave(protocol.per_recording)
    number_N = torch.arange(protocol.per_recording).repeat(len(frames_R))
    key_N = fold(seed, epoch, row_R[place_N], number_N)
    frames_N = frames_R[place_N]
    strides = torch.tensor(protocol.strides)
    stride_N = strides[below(key_N, "window stride", 1, len(strides))[:, 0]]
    centre_N = below(key_N, "window centre", 1, frames_N[:, None])[:, 0]
    return Draw(place_N, *window_frames(frames_N, centre_N, stride_N, protocol.window))


def read_windows(source: Source, draw: Draw, slots: int) -> Windows:
    """The windows of a draw; each recording is read once."""
    place_U, which_N = draw.place_N.unique(return_inverse=True)
    batch = source.take(place_U)
    device = source.device
    return gather_windows(batch, which_N.to(device), draw.frame_NW.to(device), slots)


def fit(
    model: FrameClassifier,
    source: Source,
    labels: Sequence[Tensor],
    protocol: Detection,
    *,
    slots: int,
    seed: int,
    report: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train a model by SGD, in place; ranks share each batch.

    The last incomplete batch of an epoch is dropped unless it is the only one (PKU-MMD's 15,104
    windows have none). A frozen encoder's weights stand still, but the statistics of its input norm
    follow the data: raw recordings are not what it was trained on.

    Args:
        model: As it starts.
        source: Recordings.
        labels: Of each recording the action of every frame, 0 for none: shape (T,).
        protocol: Says all numbers.
        slots: Bodies of a window.
        seed: Of windows and their order.
        report: Called with each finished epoch, from 1.

    Raises:
        UserError: More ranks than windows of a batch; the loss is not finite.
    """
    frames_R = torch.tensor([len(label_T) for label_T in labels])
    first_R = frames_R.cumsum(0) - frames_R
    label_F = torch.cat(list(labels))
    row_R = torch.as_tensor(source.table["row"].to_numpy().copy())
    windows = len(labels) * protocol.per_recording
    batch = min(protocol.batch, windows)
    rank, world = distributed.rank(), distributed.world()
    if world > batch:
        raise UserError(
            "there are more ranks than windows in a batch",
            found=f"{world} ranks, {batch} windows",
            remedy=f"at most {batch} ranks, or a larger --set batch=",
        )
    trained = model if model.trains_encoder else model.head
    optimiser = torch.optim.SGD(
        trained.parameters(),
        lr=protocol.lr,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )
    steps = windows // batch
    model.train()
    for epoch in range(protocol.epochs):
        drawn = draw_windows(frames_R, row_R, protocol, seed, epoch)
        order = permutation(windows, int(fold(seed, 1)), epoch)
        total = torch.zeros((), device=source.device)
        for step in range(steps):
            first, last = (step * batch + batch * part // world for part in (rank, rank + 1))
            mine = drawn[order[first:last]]
            target_N = label_F[first_R[mine.place_N] + mine.middle_N].to(source.device)
            logits_NK = model(read_windows(source, mine, slots))
            loss = F.cross_entropy(logits_NK, target_N, reduction="sum") / batch
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            distributed.sum_gradients(trained)
            optimiser.param_groups[0]["lr"] = _rate(protocol, epoch, step / steps)
            optimiser.step()
            total += loss.detach()
        if not bool(distributed.sum_over_ranks(total).isfinite()):
            raise UserError(
                f"training stopped: the loss is not finite in epoch {epoch + 1}",
                remedy=f"a lower rate, such as --set lr={protocol.lr / 10:g}",
            )
        report(epoch + 1)
    model.eval()


def _rate(protocol: Detection, epoch: int, share: float) -> float:
    """The rate in an epoch of which a share is done."""
    if protocol.schedule == "cosine":
        return cosine(protocol.lr, 0.0, (epoch + share) / protocol.epochs)
    return protocol.lr * 0.1 ** sum(epoch >= drop for drop in protocol.drops)
