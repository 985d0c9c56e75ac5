from __future__ import annotations

import numpy as np
import pytest
import torch

from skelpipe.stream.buffers import _KEPT, Buffers


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_it_is_dead() -> None:
    buffers = Buffers()
    array = buffers.empty(100, 25, 3)
    assert (array.shape, array.dtype) == ((100, 25, 3), np.float32)
    first = place(array)
    del array
    assert place(buffers.empty(90, 25, 3)) == first
    assert place(buffers.empty(120, 25, 3)) == first  # there is some room beyond the first size
    larger = buffers.empty(1000, 25, 3)
    larger[:] = 1
    assert larger.shape == (1000, 25, 3)


@pytest.mark.parametrize(
    "use",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[3:5],
        lambda tensor: tensor.view(-1)[7],
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.numpy()[4:, :2].T,
        lambda tensor: tensor.detach().unbind(0)[-1],
        lambda tensor: (tensor.requires_grad_() * tensor).sum(),  # its graph keeps the tensor
        lambda tensor: {"batch": [tensor]},
        lambda tensor: tensor.untyped_storage(),
    ],
)
def test_whatever_uses_memory_keeps_it(use) -> None:  # type: ignore[no-untyped-def]
    buffers = Buffers()
    tensor = torch.from_numpy(buffers.empty(10, 25, 3))
    first, used = tensor.data_ptr(), use(tensor)
    del tensor
    others = [buffers.empty(10, 25, 3) for _ in range(3)]
    assert first not in map(place, others)
    del used
    assert place(buffers.empty(10, 25, 3)) == first


def test_many_batches_in_use_are_plain_memory() -> None:
    buffers = Buffers()
    arrays = [buffers.empty(5, 25, 3) for _ in range(3 * _KEPT)]
    assert len({place(array) for array in arrays}) == 3 * _KEPT
    del arrays
    assert len(buffers._buffers) == _KEPT
