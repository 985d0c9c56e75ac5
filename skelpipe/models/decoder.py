"""The decoder of PCM³ (Secs. 3.3, 4.1), as its released code computes it."""

from __future__ import annotations

from torch import Tensor, nn

from .norm import BatchNorm


class MotionDecoder(nn.Module):
    """Encoded frames -> coordinates: layers of each frame alone, then a GRU forward in time.

    Linear D -> hidden, batch normalisation over all frames, ReLU, Linear hidden -> hidden; GRU;
    Linear hidden -> channels. PyTorch's initial weights. State: `frame` (the first four, by their
    place), `gru` and `out`.

    Args:
        dim: D, the encoder's features.
        hidden: The paper has 512.
        layers: Of the GRU; the paper has 2.
        channels: C, the coordinates of a frame.
    """

    def __init__(self, dim: int, *, hidden: int, layers: int, channels: int) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Linear(dim, hidden),
            BatchNorm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
        )
        self.gru = nn.GRU(hidden, hidden, layers, batch_first=True)
        self.out = nn.Linear(hidden, channels)

    def forward(self, feature_NTD: Tensor) -> Tensor:
        """Predicted coordinates of every frame, shape (N, T, C), in the units of the encoder's."""
        hidden_NTH, _ = self.gru(self.frame(feature_NTD))
        x_NTC: Tensor = self.out(hidden_NTH)
        return x_NTC
