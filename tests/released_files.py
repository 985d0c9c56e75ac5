"""What others' checkpoints are made of, and what those of ill will are."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typer.testing import CliRunner

HIDDEN, EMBEDDING = 6, 7


class Branch(nn.Module):
    """`encoder_q` and `encoder_k`: a bidirectional GRU that is given one frame at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.gru = nn.GRU(150, HIDDEN, 3, batch_first=True, bidirectional=True)
        self.input_norm = nn.BatchNorm1d(150)
        self.fc = nn.Sequential(
            nn.Linear(2 * HIDDEN, 2 * HIDDEN), nn.ReLU(), nn.Linear(2 * HIDDEN, EMBEDDING)
        )

    def forward(self, x_NTC: Tensor) -> Tensor:
        x_NTC = self.input_norm(x_NTC.flatten(0, 1)).view(x_NTC.shape)
        hidden, frames = None, []
        for t in range(x_NTC.shape[1]):
            out, hidden = self.encoder.gru(x_NTC[:, t : t + 1], hidden)
            frames.append(out)
        return torch.cat(frames, 1)


class Burglar:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def skelpipe(*words: str | Path) -> Any:
    (script,) = entry_points(group="console_scripts", name="skelpipe")
    app = sys.modules[script.load().__module__].app
    return CliRunner().invoke(app, [str(word) for word in words])
