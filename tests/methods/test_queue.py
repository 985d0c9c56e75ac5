from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from skelpipe.methods.queue import KeyQueue


@pytest.mark.parametrize(
    ("length", "batches"), [(7, [3, 3, 3, 3, 3]), (5, [5, 5]), (8, [1, 7, 2, 8, 3]), (6, [2] * 7)]
)
def test_the_queue_keeps_the_last_keys(length: int, batches: list[int]) -> None:
    torch.manual_seed(0)
    queue = KeyQueue(length, 3)
    kept = list(queue.keys_KP.clone())  # oldest first
    for size in batches:
        keys = F.normalize(torch.randn(size, 3), dim=-1)
        queue.enqueue(keys)
        for key in keys:
            kept = [*kept[1:], key]
        place = int(queue.place)
        found = torch.cat([queue.keys_KP[place:], queue.keys_KP[:place]])
        assert torch.equal(found, torch.stack(kept))


def test_the_first_keys_are_directions() -> None:
    torch.manual_seed(0)
    keys = KeyQueue(2000, 4).keys_KP
    assert torch.allclose(keys.norm(dim=1), torch.ones(2000))
    assert keys.mean(0).abs().max() < 0.05
