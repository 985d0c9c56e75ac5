"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student (SLiM, Sec. 3.1)."""
    ours: list[Tensor] = list(teacher.parameters())
    torch._foreach_lerp_(ours, list(student.parameters()), 1 - momentum)
