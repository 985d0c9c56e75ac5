"""The GRU encoder of PCM3."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from skelpipe.models.norm import BatchNorm


class SkeletonGRU(nn.Module):
    """Encoder f of PCM3."""

    def __init__(
        self, channels: int, *, hidden: int, layers: int, direction: Literal["forward", "both"]
    ) -> None:
        super().__init__()
        self.direction = direction
        self.input_norm = BatchNorm(channels)
        widths = [channels] + [2 * hidden] * (layers - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.GRU(width, hidden, batch_first=True) for _ in range(2))
            for width in widths
        )

    def forward(self, x_NTC: Tensor, prompt_C: Tensor | None = None) -> Tensor:
        """Features of all frames."""
        x: Tensor = self.input_norm(x_NTC)
        if prompt_C is not None:
            x = x + prompt_C
        for pair in self.layers:
            x = torch.cat([gru(x)[0] for gru in pair.children()], -1)
        return x

    def pool(self, feature_NTD: Tensor) -> Tensor:
        """Features of the clip."""
        return feature_NTD[:, -1]
