"""PCM3's weights as its authors released them: their names and shapes, and what they are here.

The authors' encoder is one bidirectional `nn.GRU` that is given a frame at a time, so that its
second direction runs forward too (P1): its parameters are those of the two GRUs of each layer, of
`released_names`. What no file tells (views, losses, schedule) is the paper's recipe, with the
domain prompts where the released code adds them (P17).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from skelpipe.config import PCM3Recipe, load_recipe
from skelpipe.errors import UserError
from skelpipe.manifest import load_topology
from skelpipe.methods.pcm3 import PCM3
from skelpipe.models.gru import released_names

Stream: TypeAlias = Literal["joint", "bone", "motion"]
STREAMS: dict[str, str] = {"joint": "pcm3", "bone": "pcm3-bone", "motion": "pcm3-motion"}
"""Stream -> the recipe that its weights were trained by."""

_PROMPTS = {
    "cl_prompt": "task_prompts.contrast",
    "mp_prompt": "task_prompts.prediction",
    "base_prompt": "domain_prompts.intra",
    "mask_prompt": "domain_prompts.mask",
    "recons_prompt": "domain_prompts.predict",
    "mix_prompt": "domain_prompts.inter",
}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_LINEAR = ("weight", "bias")
_GRU = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_WHOLE = {torch.int32, torch.int64}
_FEWEST_KEYS = 3
"""A batch that is mixed has so many samples, and the queue holds a batch."""


class _MisfitError(Exception):
    def __init__(self, key: str, found: object, expected: object) -> None:
        super().__init__()
        self.key, self.found, self.expected = key, found, expected


def convert(tensors: Mapping[str, Tensor], stream: Stream, file: Path) -> PCM3:
    """The method that a released checkpoint holds, its queue with it, in float32.

    The file may be without all six prompts. Bone and motion streams train none: what such a file
    holds of them is checked and left out.

    Args:
        tensors: The state as released; all names with a leading "module.", or none.
        stream: Of joints, bones or motion: no file says which.
        file: Where it was read from, for errors.

    Raises:
        UserError: A tensor is unknown, missing, misshaped or not finite; its key is named.
    """
    prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
    try:
        return _convert({key.removeprefix(prefix): tensors[key] for key in tensors}, stream)
    except _MisfitError as misfit:
        raise UserError(
            "this is no checkpoint of PCM3's pre-training as its authors released it",
            file=file,
            place=prefix + misfit.key,
            found=misfit.found,
            expected=misfit.expected,
            remedy="give a file of the authors' pre-training; a run of skelpipe's own is evaluated "
            "with `skelpipe evaluate --run`",
        ) from misfit


def has_prompts(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a released state holds prompts, all of them or some."""
    return any(key.removeprefix("module.") in _PROMPTS for key in tensors)


def _convert(tensors: Mapping[str, Tensor], stream: Stream) -> PCM3:
    prompts = has_prompts(tensors)
    names = _names(tensors, prompts)
    _check_names(tensors, names)
    whole = _empty(_recipe(tensors, "joint", prompts)).state_dict()
    state = {ours: _converted(key, tensors[key], ours, whole[ours]) for key, ours in names.items()}
    place, keys = state["teacher.queue.place"], len(state["teacher.queue.keys_KP"])
    if not 0 <= int(place) < keys:
        raise _MisfitError("queue_ptr", int(place), f"a place among {keys:,} keys")
    method = _empty(_recipe(tensors, stream, prompts))
    method.load_state_dict({name: state[name] for name in method.state_dict()}, assign=True)
    return method


def _names(tensors: Mapping[str, Tensor], prompts: bool) -> dict[str, str]:
    """Released key -> name in a method's state, of all that a state with such layers has."""
    names = {"queue": "teacher.queue.keys_KP", "queue_ptr": "teacher.queue.place"}
    gru = released_names(_layers(tensors, r"encoder_[qk]\.encoder\.gru\."))
    for theirs, ours in (("encoder_q", "student"), ("encoder_k", "teacher")):
        names |= {f"{theirs}.encoder.gru.{key}": f"{ours}.encoder.{gru[key]}" for key in gru}
        names |= _parts(f"{theirs}.input_norm", f"{ours}.encoder.input_norm", _NORM)
        for place in (0, 2):
            names |= _parts(f"{theirs}.fc.{place}", f"{ours}.projector.mlp.{place}", _LINEAR)
    for place, parts in ((0, _LINEAR), (1, _NORM), (3, _LINEAR)):
        names |= _parts(f"linear.{place}", f"student.decoder.frame.{place}", parts)
    for layer in range(_layers(tensors, r"recons_decoder\.decoder\.")):
        kinds = tuple(f"{kind}_l{layer}" for kind in _GRU)
        names |= _parts("recons_decoder.decoder", "student.decoder.gru", kinds)
    names |= _parts("recons_decoder.reconstruction", "student.decoder.out", _LINEAR)
    if prompts:
        names |= {key: f"student.{ours}" for key, ours in _PROMPTS.items()}
    return names


def _parts(theirs: str, ours: str, parts: tuple[str, ...]) -> dict[str, str]:
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in parts}


def _layers(tensors: Mapping[str, Tensor], gru: str) -> int:
    """How many layers the keys of a GRU name, one at least."""
    found = (re.fullmatch(rf"{gru}\w+_l(\d+)(_reverse)?", key) for key in tensors)
    return max(len({match[1] for match in found if match}), 1)


def _check_names(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    unknown = [key for key in tensors if key not in names]
    if unknown:
        more = f" ({len(unknown) - 1} more are unknown)" if len(unknown) > 1 else ""
        raise _MisfitError(unknown[0], f"an unknown key{more}", f"such as {next(iter(names))}")
    for key in names:
        if key not in tensors:
            whole = "all six prompts or none" if key in _PROMPTS else "a tensor"
            raise _MisfitError(key, "nothing", whole)


def _recipe(tensors: Mapping[str, Tensor], stream: Stream, prompts: bool) -> PCM3Recipe:
    """The recipe of a stream, with the sizes that the tensors have."""

    def size(key: str, axis: int, least: int = 1) -> int:
        shape = tensors[key].shape
        if len(shape) != 2 or shape[axis] < least:
            raise _MisfitError(key, tuple(shape), f"two dimensions, of {least} at least")
        return shape[axis]

    sizes = {
        "encoder.layers": _layers(tensors, r"encoder_[qk]\.encoder\.gru\."),
        "encoder.hidden": size("encoder_q.encoder.gru.weight_hh_l0", 1),
        "decoder.layers": _layers(tensors, r"recons_decoder\.decoder\."),
        "decoder.hidden": size("linear.0.weight", 0),
        "loss.embedding": size("queue", 0),
        "loss.queue": size("queue", 1, _FEWEST_KEYS),
    }
    base = load_recipe(STREAMS[stream])
    changes = [f"{setting}={number}" for setting, number in sizes.items()]
    # As long as the released code trains, which is not what the paper says.
    changes += ["train.epochs=451", f"optim.drop_after={351 / 451}"]
    changes += ["encoder.direction=forward", f"title=Released weights of PCM3, {stream} stream"]
    changes.append(f"name={STREAMS[stream].replace('pcm3', 'pcm3-released')}")
    changes.append(f"train.batch={min(base.train.batch, sizes['loss.queue'])}")  # what it holds
    if not prompts:
        changes += ["prompts.domain=none", "prompts.task=false"]
    elif stream == "joint":
        width, hidden = size("cl_prompt", 1, 2) // 2, sizes["encoder.hidden"]
        if width > hidden:
            raise _MisfitError("cl_prompt", (1, 2 * width), f"at most (1, {2 * hidden})")
        changes += ["prompts.domain=before_bn", f"prompts.width={width}"]
    recipe = load_recipe(STREAMS[stream], changes)
    assert isinstance(recipe, PCM3Recipe)
    return recipe


def _empty(recipe: PCM3Recipe) -> PCM3:
    """The method without memory for its tensors: whatever sizes a file claims, this costs none."""
    with torch.device("meta"):
        return PCM3(recipe, load_topology("kinect_v2"))


def _converted(key: str, tensor: Tensor, name: str, like: Tensor) -> Tensor:
    """A released tensor in our shape and type, as a copy.

    Args:
        key: Its released name.
        tensor: As released.
        name: Ours.
        like: What stands under our name, without values.
    """
    shape = tuple(like.shape)
    if name == "teacher.queue.keys_KP":
        shape = shape[::-1]
    elif name == "teacher.queue.place":
        shape = (1,)
    elif "task_prompts" in name:
        shape = (1, *shape)
    elif "domain_prompts" in name:
        shape = (1, 1, *shape)
    if tuple(tensor.shape) != shape:
        raise _MisfitError(key, tuple(tensor.shape), shape)
    if tensor.dtype not in (_REAL if like.is_floating_point() else _WHOLE):
        raise _MisfitError(key, tensor.dtype, like.dtype)
    tensor = tensor.T if name == "teacher.queue.keys_KP" else tensor.reshape(like.shape)
    tensor = tensor.to(like.dtype, copy=True, memory_format=torch.contiguous_format)
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise _MisfitError(key, "negative numbers", "variances")
    if not tensor.isfinite().all():
        wrong = int((~tensor.isfinite()).sum())
        raise _MisfitError(key, f"{wrong:,} numbers that are not finite", "finite numbers")
    return tensor
