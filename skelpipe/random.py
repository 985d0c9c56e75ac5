"""Counter-based random numbers: every draw is a function of (seed, epoch, sample, view, name).

No state and no library generator: a draw is the SplitMix64 finaliser (Steele, Lea and Flood,
OOPSLA 2014) applied to a chain of folded integers, in int64 tensors whose multiplication wraps.
So it does not matter who computes a view, in what order, or on how many devices, and the integers
are the same bits on a CPU and a GPU.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLY_2 = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign along."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = _shift(x, 30).bitwise_xor_(x).mul_(_MULTIPLY_1)
    x = _shift(x, 27).bitwise_xor_(x).mul_(_MULTIPLY_2)
    return _shift(x, 31).bitwise_xor_(x)


def fold(*parts: int | Tensor) -> Tensor:
    """One int64 key out of integers and integer tensors, which broadcast; their order matters."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    device = tensors[0].device if tensors else None
    key = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        if isinstance(part, Tensor):
            part = part.to(torch.int64)
        key = _mix(key * _MULTIPLY_2 + part + _GOLDEN)
    return key


def named(names: Sequence[str]) -> Tensor:
    """A 64-bit word of each name, shape (N,), int64: of its sha256, thus the same everywhere."""
    digests = (hashlib.sha256(name.encode()).digest()[:8] for name in names)
    words = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    return torch.tensor(words, dtype=torch.int64)


def bits(key: Tensor, name: str, count: int, first: int = 0) -> Tensor:
    """``count`` 64-bit words for each key.

    Args:
        key: Keys, shape (...), int64.
        name: What is drawn; another name gives independent words from the same key.
        count: Words per key.
        first: Place of the first word in the key's endless row of them, so that a row can be
            drawn piece by piece, as far as it is used.

    Returns:
        Shape (..., count), int64.
    """
    place = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=key.device)
    return _mix(_mix(key ^ zlib.crc32(name.encode()))[..., None] + place * _GOLDEN)


def uniform(key: Tensor, name: str, count: int, first: int = 0) -> Tensor:
    """Uniform in [0, 1) on a grid of 2^-24, shape (..., count), float32; ``first`` as in `bits`."""
    return _shift(bits(key, name, count, first), 40).to(torch.float32) * 2.0**-24


def below(key: Tensor, name: str, count: int, bound: int | Tensor) -> Tensor:
    """Integers in [0, bound), for 1 <= bound < 2^31.

    Args:
        key: Keys, shape (...), int64.
        name: What is drawn.
        count: Draws per key.
        bound: A number or an integer tensor that broadcasts against (..., count).

    Returns:
        Shape (..., count), int64. The bias is below bound / 2^32.
    """
    return (_shift(bits(key, name, count), 32) * bound) >> 32
