"""Tensors of others' checkpoints under our names: what is unknown, missing or odd is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from skelpipe.errors import UserError

LINEAR = ("weight", "bias")
"""Parts of a linear layer, and of a layer norm."""

_REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_WHOLE = {torch.int32, torch.int64}


class MisfitError(Exception):
    """A tensor of a checkpoint is not what it should be."""

    def __init__(self, key: str, found: object, expected: object) -> None:
        super().__init__()
        self.key, self.found, self.expected = key, found, expected


def without_module(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The leading "module." that all names have, or "", and the tensors by the rest of them."""
    prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
    return prefix, {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


@contextmanager
def misfits_named(file: Path, prefix: str, what: str) -> Iterator[None]:
    """Turn a `MisfitError` into a UserError that names file, key, found and expected.

    Args:
        file: Where the tensors were read from.
        prefix: Of their names in the file.
        what: The file should be: "checkpoint of PCM3's pre-training".
    """
    try:
        yield
    except MisfitError as misfit:
        raise UserError(
            f"this is no {what} as its authors released it",
            file=file,
            place=prefix + misfit.key,
            found=misfit.found,
            expected=misfit.expected,
            remedy="give a file of the authors' pre-training; a run of skelpipe's own is evaluated "
            "with `skelpipe evaluate --run`",
        ) from misfit


def parts(theirs: str, ours: str, names: tuple[str, ...] = LINEAR) -> dict[str, str]:
    """Their name -> ours, of each part of a layer."""
    return {f"{theirs}.{name}": f"{ours}.{name}" for name in names}


def count_layers(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers the only group of a pattern finds in whole names; one at least."""
    found = (re.fullmatch(pattern, key) for key in tensors)
    return max(len({match[1] for match in found if match}), 1)


def check_names(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Raise a MisfitError for the first tensor that has none of these names."""
    unknown = [key for key in tensors if key not in names]
    if unknown:
        more = f" ({len(unknown) - 1} more are unknown)" if len(unknown) > 1 else ""
        raise MisfitError(unknown[0], f"an unknown key{more}", f"such as {next(iter(names))}")


def size(tensors: Mapping[str, Tensor], key: str, axis: int, dims: int = 2, least: int = 1) -> int:
    """The length of a tensor along an axis.

    Raises:
        MisfitError: There is no such tensor, or it has another number of dimensions, or fewer
            entries than ``least``.
    """
    if key not in tensors:
        raise MisfitError(key, "nothing", "a tensor")
    shape = tensors[key].shape
    if len(shape) != dims or shape[axis] < least:
        words = {2: "two", 4: "four"}
        raise MisfitError(key, tuple(shape), f"{words[dims]} dimensions, of {least} at least")
    return shape[axis]


def check_places(
    names: Mapping[str, str], tensors: Mapping[str, Tensor], places: Iterable[str]
) -> None:
    """Hold what is released against our places for it, which settings of one's own may change.

    Args:
        names: Their name -> ours.
        tensors: As released, of all these names.
        places: Names in our state.

    Raises:
        MisfitError: A tensor without a place, or a place without a tensor.
    """
    places = set(places)
    for key, ours in names.items():
        if ours not in places:
            raise MisfitError(key, tuple(tensors[key].shape), "nothing, under these settings")
    empty = sorted(places - set(names.values()))
    if empty:
        raise MisfitError(empty[0], "nothing", "a tensor, under these settings")


def fitted(key: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """A copy in our shape and type.

    Args:
        key: Its released name.
        tensor: As released.
        like: What stands under our name, without values.
        shape: That it must have, if not ours, of the same entries in the same order.

    Raises:
        MisfitError: Another shape or sort of number, a number that is not finite, or a variance
            below 0.
    """
    shape = tuple(like.shape) if shape is None else shape
    if tuple(tensor.shape) != shape:
        raise MisfitError(key, tuple(tensor.shape), shape)
    if tensor.dtype not in (_REAL if like.is_floating_point() else _WHOLE):
        raise MisfitError(key, tensor.dtype, like.dtype)
    tensor = tensor.reshape(like.shape)
    tensor = tensor.to(like.dtype, copy=True, memory_format=torch.contiguous_format)
    if key.endswith("running_var") and bool((tensor < 0).any()):
        raise MisfitError(key, "negative numbers", "variances")
    if not tensor.isfinite().all():
        wrong = int((~tensor.isfinite()).sum())
        raise MisfitError(key, f"{wrong:,} numbers that are not finite", "finite numbers")
    return tensor
