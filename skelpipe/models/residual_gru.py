"""The decoder of motion prediction (Martinez et al., CVPR 2017), which PCM3's Sec. 4.3 names."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualGRU(nn.Module):
    """A pose and an encoder's state -> the poses that follow, each from the one predicted before.

    One GRU layer, whose hidden state starts from the encoder's by a linear map, and a linear
    readout of what is added to a pose to get the next. The first input is the last pose that was
    observed; from then on the decoder is fed what it predicted, in training too. The readout starts
    at zero (our choice): before any training nothing moves.

    Args:
        dim: D, the encoder's features; unlike in Martinez's network its weights are not tied to
            the decoder's.
        hidden: H, of the GRU; Martinez has 1024.
        channels: C, the coordinates of a pose.
        step: What the readout is in units of, such as metres that a joint moves.
    """

    def __init__(self, dim: int, *, hidden: int, channels: int, step: float = 1.0) -> None:
        super().__init__()
        self.step = step
        self.start = nn.Linear(dim, hidden)
        self.cell = nn.GRUCell(channels, hidden)
        self.readout = nn.Linear(hidden, channels)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def forward(self, state_ND: Tensor, pose_NC: Tensor, frames: int) -> Tensor:
        """Predict.

        Args:
            state_ND: Of the encoder.
            pose_NC: The last observed pose.
            frames: P, to predict.

        Returns:
            Shape (N, P, C), in the units of the pose.
        """
        hidden_NH = self.start(state_ND)
        found = []
        for _ in range(frames):
            hidden_NH = self.cell(pose_NC, hidden_NH)
            pose_NC = pose_NC + self.step * self.readout(hidden_NH)
            found.append(pose_NC)
        return torch.stack(found, 1)
