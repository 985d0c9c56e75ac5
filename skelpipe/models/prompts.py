"""The dual prompts of PCM3 (Sec. 3.4): trained vectors that tell the views and the tasks apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from skelpipe.random import below

Task = Literal["contrast", "prediction"]


class DomainPrompts(nn.ParameterDict):
    """A vector of the input's channels for each kind of view (Eq. 6), Xavier-uniform as released.

    Args:
        views: Their names.
        channels: C.
    """

    def __init__(self, views: Iterable[str], channels: int) -> None:
        super().__init__()
        for view in views:
            vector = torch.empty(1, 1, channels)
            self[view] = nn.Parameter(nn.init.xavier_uniform_(vector).flatten())


class TaskPrompts(nn.Module):
    """A vector for each task, added to some channels of the features (P6).

    Half of it is added to a window of the features' first half, the other to the same window of
    their second half. Where the window lies is drawn anew at every use.

    Args:
        hidden: Channels of each half of the features.
        width: Channels of the window.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.hidden, self.width = hidden, width
        self.contrast = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 2 * width)).flatten())
        self.prediction = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 2 * width)).flatten())

    def forward(self, feature: Tensor, task: Task, key: Tensor, use: str) -> Tensor:
        """Features of shape (..., 2 * hidden) with a task's prompt.

        Args:
            feature: Of an encoder.
            task: Whose prompt.
            key: Of the draw of the window, 0-d.
            use: Name of the draw: other uses get other windows.
        """
        # As released, the last window that would fit is never drawn.
        start = below(key, f"prompt window, {use}", 1, max(self.hidden - self.width, 1))
        window = start + torch.arange(self.width, device=feature.device)
        prompt = self.contrast if task == "contrast" else self.prediction
        vector = torch.zeros(2 * self.hidden, dtype=prompt.dtype, device=prompt.device)
        return feature + vector.index_copy(0, torch.cat([window, window + self.hidden]), prompt)
