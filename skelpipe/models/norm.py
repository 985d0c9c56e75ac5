"""Batch normalisation whose batch is that of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelpipe import distributed


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the last axis; all other axes are rows.

    In training, mean and variance are those of the rows of all ranks, as one process with the whole
    batch has them (the published runs are such); ranks may hold different numbers of rows, or none.
    As elsewhere, each rank's loss is its share of the global one and gradients of parameters are
    summed over ranks afterwards: outputs, gradients and running statistics then equal one
    process's. So all ranks must go forward, and back, through it equally often. In evaluation ranks
    do not speak. Names and meanings of the state are `nn.BatchNorm1d`'s, the unbiased running
    variance among them.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., C), in float32 at least, under autocast too.

        Raises:
            ValueError: A single row in training, which has no variance; not told by several ranks,
                where finding out would wait for the device.
        """
        x = x if x.dtype == torch.float64 else x.float()
        rows = x.reshape(-1, x.shape[-1])
        joint = self.training and distributed.world() > 1
        return (self._normalise_jointly(rows) if joint else super().forward(rows)).view(x.shape)

    def _normalise_jointly(self, rows: Tensor) -> Tensor:
        channels = rows.shape[1]
        sums = torch.cat([rows.sum(0), rows.new_full((1,), len(rows))])
        sums = distributed.sum_over_ranks_with_gradient(sums)
        count = sums[channels].detach()
        mean = sums[:channels] / count
        centred = rows - mean
        # Squares of what is centred: differences of large squares would lose the variance.
        squares = distributed.sum_over_ranks_with_gradient(centred.square().sum(0))
        variance = squares / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(squares / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        return centred * (self.weight * (variance + self.eps).rsqrt()) + self.bias
