from __future__ import annotations

import pytest
import torch
from torch import nn

from skelpipe.methods.momentum import update_teacher


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.994, 1.0])
def test_teacher_moves_towards_the_student(momentum: float) -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [p.detach().clone() for p in teacher.parameters()]
    ours = [p.detach().clone() for p in student.parameters()]
    update_teacher(teacher, student, momentum)
    for was, mine, now in zip(before, ours, teacher.parameters(), strict=True):
        assert torch.allclose(now, momentum * was + (1 - momentum) * mine, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(ours, student.parameters(), strict=True))
