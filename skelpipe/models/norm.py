"""Batch norm over the last axis."""

from __future__ import annotations

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (..., C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel."""
        out: Tensor = super().forward(x.flatten(0, -2)).view(x.shape)
        return out
