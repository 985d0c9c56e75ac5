"""Probabilities of the actions in every frame of a whole recording."""

from __future__ import annotations

import torch
from torch import Tensor

from skelpipe.protocols.detection_model import FrameClassifier
from skelpipe.protocols.settings import Detection
from skelpipe.stream.source import Source
from skelpipe.views.windows import gather_windows, window_frames


@torch.no_grad()
def frame_scores(
    model: FrameClassifier,
    source: Source,
    place: int,
    protocol: Detection,
    *,
    slots: int,
    chunk: int = 1024,
) -> Tensor:
    """Softmax of each frame's window: one about every frame, at stride ``test_stride``.

    Beyond the borders of the recording the protocol's ``borders`` says what is seen.

    Args:
        model: In evaluation mode.
        source: Recordings.
        place: Which of them.
        protocol: Says all numbers.
        slots: Bodies of a window.
        chunk: Windows at once; beside the result, memory depends on them alone.

    Returns:
        Shape (T, outputs), float64, on the CPU.
    """
    device = source.device
    batch = source.take(torch.tensor([place]))
    frames = int(batch.frames_N)
    found = []
    for first in range(0, frames, chunk):
        centre_N = torch.arange(first, min(first + chunk, frames), device=device)
        frame_NW, _ = window_frames(
            torch.full_like(centre_N, frames),
            centre_N,
            torch.full_like(centre_N, protocol.test_stride),
            protocol.window,
            shifted=protocol.borders == "shift",
        )
        windows = gather_windows(batch, torch.zeros_like(centre_N), frame_NW, slots)
        found.append(model(windows).double().softmax(-1).cpu())
    return torch.cat(found)
