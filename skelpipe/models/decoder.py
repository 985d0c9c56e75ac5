"""The decoder of PCM3."""

from __future__ import annotations

from torch import Tensor, nn

from skelpipe.models.norm import BatchNorm


class MotionDecoder(nn.Module):
    """Decoder of masked prediction."""

    def __init__(self, dim: int, *, hidden: int, layers: int, channels: int) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Linear(dim, hidden), BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True)
        self.out = nn.Linear(hidden, channels)

    def forward(self, feature_NTD: Tensor) -> Tensor:
        """Predicted channels of all frames."""
        out: Tensor = self.out(self.gru(self.frame(feature_NTD))[0])
        return out
