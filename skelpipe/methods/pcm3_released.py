"""PCM3's weights as its authors released them: their names and shapes, and what they are here.

The authors' encoder is one bidirectional `nn.GRU` that is given a frame at a time, so that its
second direction runs forward too (P1): its parameters are those of the two GRUs of each layer, of
`released_names`. What no file tells (views, losses, schedule) is the paper's recipe, with the
domain prompts where the released code adds them (P17).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from skelpipe.config import PCM3Recipe, load_recipe
from skelpipe.manifest import load_topology
from skelpipe.methods.pcm3 import PCM3
from skelpipe.methods.released_tensors import (
    LINEAR,
    MisfitError,
    check_names,
    count_layers,
    fitted,
    misfits_named,
    parts,
    size,
    without_module,
)
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
_GRU = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_DECODER = r"recons_decoder\.decoder\.\w+_l(\d+)"
_FEWEST_KEYS = 3
"""A batch that is mixed has so many samples, and the queue holds a batch."""


def convert(
    tensors: Mapping[str, Tensor], stream: Stream, file: Path, changes: Sequence[str] = ()
) -> PCM3:
    """The method that a released checkpoint holds, its queue with it, in float32.

    The file may be without all six prompts. Bone and motion streams train none: what such a file
    holds of them is checked and left out.

    Args:
        tensors: The state as released; all names with a leading "module.", or none.
        stream: Of joints, bones or motion: no file says which.
        file: Where it was read from, for errors.
        changes: Settings of the recipe that win over what is read from the file.

    Raises:
        UserError: A tensor is unknown, missing, misshaped or not finite; its key is named.
    """
    prefix, plain = without_module(tensors)
    with misfits_named(file, prefix, "checkpoint of PCM3's pre-training"):
        return _convert(plain, stream, changes)


def has_prompts(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a released state holds prompts, all of them or some."""
    return any(key.removeprefix("module.") in _PROMPTS for key in tensors)


def branch_names(theirs: str, ours: str, layers: int) -> dict[str, str]:
    """Released key -> ours, of an encoder with its projector.

    Args:
        theirs: What the released names begin with: "encoder_q".
        ours: What ours do, with its dot if it is not empty.
        layers: Of the GRU.
    """
    gru = released_names(layers)
    names = {f"{theirs}.encoder.gru.{key}": f"{ours}encoder.{gru[key]}" for key in gru}
    names |= parts(f"{theirs}.input_norm", f"{ours}encoder.input_norm", _NORM)
    for place in (0, 2):
        names |= parts(f"{theirs}.fc.{place}", f"{ours}projector.mlp.{place}")
    return names


def branch_layers(tensors: Mapping[str, Tensor], suffix: str = "") -> int:
    """Layers of the GRUs of "encoder_q" and "encoder_k", or of those with a suffix."""
    return count_layers(tensors, rf"encoder_[qk]{suffix}\.encoder\.gru\.\w+_l(\d+)(?:_reverse)?")


def _convert(tensors: Mapping[str, Tensor], stream: Stream, changes: Sequence[str]) -> PCM3:
    prompts = has_prompts(tensors)
    names = _names(tensors, prompts)
    check_names(tensors, names)
    for key in names:
        if key not in tensors:
            raise MisfitError(
                key, "nothing", "all six prompts or none" if key in _PROMPTS else "a tensor"
            )
    whole = _empty(_recipe(tensors, "joint", prompts, changes)).state_dict()
    state = {ours: _converted(key, tensors[key], ours, whole[ours]) for key, ours in names.items()}
    place, keys = state["teacher.queue.place"], len(state["teacher.queue.keys_KP"])
    if not 0 <= int(place) < keys:
        raise MisfitError("queue_ptr", int(place), f"a place among {keys:,} keys")
    method = _empty(_recipe(tensors, stream, prompts, changes))
    method.load_state_dict({name: state[name] for name in method.state_dict()}, assign=True)
    return method


def _names(tensors: Mapping[str, Tensor], prompts: bool) -> dict[str, str]:
    """Released key -> name in a method's state, of all that a state with such layers has."""
    names = {"queue": "teacher.queue.keys_KP", "queue_ptr": "teacher.queue.place"}
    for theirs, ours in (("encoder_q", "student."), ("encoder_k", "teacher.")):
        names |= branch_names(theirs, ours, branch_layers(tensors))
    for place, inside in ((0, LINEAR), (1, _NORM), (3, LINEAR)):
        names |= parts(f"linear.{place}", f"student.decoder.frame.{place}", inside)
    for layer in range(count_layers(tensors, _DECODER)):
        kinds = tuple(f"{kind}_l{layer}" for kind in _GRU)
        names |= parts("recons_decoder.decoder", "student.decoder.gru", kinds)
    names |= parts("recons_decoder.reconstruction", "student.decoder.out")
    if prompts:
        names |= {key: f"student.{ours}" for key, ours in _PROMPTS.items()}
    return names


def _recipe(
    tensors: Mapping[str, Tensor], stream: Stream, prompts: bool, own: Sequence[str]
) -> PCM3Recipe:
    """The recipe of a stream, with the sizes that the tensors have, and changes of one's own."""
    sizes = {
        "encoder.layers": branch_layers(tensors),
        "encoder.hidden": size(tensors, "encoder_q.encoder.gru.weight_hh_l0", 1),
        "decoder.layers": count_layers(tensors, _DECODER),
        "decoder.hidden": size(tensors, "linear.0.weight", 0),
        "loss.embedding": size(tensors, "queue", 0),
        "loss.queue": size(tensors, "queue", 1, least=_FEWEST_KEYS),
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
        width, hidden = size(tensors, "cl_prompt", 1, least=2) // 2, sizes["encoder.hidden"]
        if width > hidden:
            raise MisfitError("cl_prompt", (1, 2 * width), f"at most (1, {2 * hidden})")
        changes += ["prompts.domain=before_bn", f"prompts.width={width}"]
    recipe = load_recipe(STREAMS[stream], [*changes, *own])
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
    shape = None
    if name == "teacher.queue.keys_KP":
        tensor = tensor.T
    elif name == "teacher.queue.place":
        shape = (1,)
    elif "task_prompts" in name:
        shape = (1, *like.shape)
    elif "domain_prompts" in name:
        shape = (1, 1, *like.shape)
    return fitted(key, tensor, like, shape)
