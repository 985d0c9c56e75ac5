"""The GRU encoder of PCM³ (Sec. 4.1), as its released code computes it.

That code has a bidirectional GRU of three layers, to which it gives one frame at a time and the
hidden states of the frame before. Over a single frame both directions see the same, and both carry
their state forward: each layer is two independent GRUs that run forward in time (P1). Here each of
them is one call over the whole sequence, which gives the same numbers.
"""

from __future__ import annotations

from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from .norm import BatchNorm


class SkeletonGRU(nn.Module):
    """Encoder f of PCM³: batch normalisation, then layers of two concatenated GRUs.

    State: `input_norm`, and of layer l its two GRUs `first.l` and `second.l`.

    Args:
        channels: C, the coordinates of a frame; with 25 joints and two bodies 150.
        hidden: H, features of each GRU; the paper has 1024.
        layers: The paper has 3.
        direction: "forward": both GRUs of a layer run forward in time, the released code's causal
            pair. "both": the second runs backward, a textbook bidirectional GRU (P1).
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int,
        layers: int,
        direction: Literal["forward", "both"],
    ) -> None:
        super().__init__()
        self.backward_in_time = direction == "both"
        self.hidden = hidden
        self.input_norm = BatchNorm(channels)
        widths = [channels, *[2 * hidden] * (layers - 1)]
        self.first = nn.ModuleList(nn.GRU(width, hidden, batch_first=True) for width in widths)
        self.second = nn.ModuleList(nn.GRU(width, hidden, batch_first=True) for width in widths)
        for gru in (*self.first, *self.second):
            for parameter in gru.parameters():
                # The three gates' matrices stand in one, whose shape sets the bound (released).
                if parameter.dim() == 2:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, x_NTC: Tensor, prompt_C: Tensor | None = None) -> Tensor:
        """Encode every frame.

        Args:
            x_NTC: Coordinates; C is joint-major, then xyz, then body.
            prompt_C: Domain prompt, added to all frames behind the input's normalisation. Before
                it, where the released code adds it, the normalisation takes it away again (P17);
                who wants that adds it to ``x_NTC``.

        Returns:
            Features of the last layer, shape (N, T, 2H): the first GRU's half, then the second's.
        """
        feature_NTD: Tensor = self.input_norm(x_NTC)
        if prompt_C is not None:
            feature_NTD = feature_NTD + prompt_C
        for first, second in zip(self.first, self.second, strict=True):
            first_NTH, _ = first(feature_NTD)
            if self.backward_in_time:
                second_NTH = second(feature_NTD.flip(1))[0].flip(1)
            else:
                second_NTH, _ = second(feature_NTD)
            feature_NTD = torch.cat([first_NTH, second_NTH], -1)
        return feature_NTD

    def pool(self, feature_NTD: Tensor) -> Tensor:
        """The feature of a sequence, shape (N, D): of each GRU the frame that it comes to last.

        Of the causal pair that is the last frame. A GRU that runs backward has seen all in the
        first one; at the last it has seen one frame alone.
        """
        if not self.backward_in_time:
            return feature_NTD[:, -1]
        halves = feature_NTD[:, -1, : self.hidden], feature_NTD[:, 0, self.hidden :]
        return torch.cat(halves, -1)


def released_names(layers: int) -> dict[str, str]:
    """Parameter names of a bidirectional `nn.GRU`, as released weights have, and ours for each.

    Ours are those of `SkeletonGRU`'s state; the tensors are the same in both.
    """
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    stacks = (("", "first"), ("_reverse", "second"))
    return {
        f"{kind}_l{layer}{suffix}": f"{stack}.{layer}.{kind}_l0"
        for layer, (suffix, stack), kind in product(range(layers), stacks, kinds)
    }
