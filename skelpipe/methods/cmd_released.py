"""CMD's weights as its authors released them: three encoders of PCM3's form, one a stream.

Each has a query and a key encoder with the names of PCM3's, which its code stems from. Of a stream
the encoders are kept; projectors and queues, which its distillation needed, are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from skelpipe.config import PCM3Recipe, load_recipe
from skelpipe.manifest import load_topology
from skelpipe.methods.pcm3_released import STREAMS, Stream, branch_layers, branch_names
from skelpipe.methods.released_tensors import (
    MisfitError,
    check_names,
    check_places,
    fitted,
    misfits_named,
    size,
    without_module,
)
from skelpipe.models.encoder import build_encoder
from skelpipe.models.heads import Projector

_SUFFIXES: dict[Stream, str] = {"joint": "", "motion": "_motion", "bone": "_bone"}
_QUEUE = re.compile(r"queue\w*")


@dataclass(frozen=True)
class Branch:
    """A stream's encoders.

    Attributes:
        recipe: With the sizes of the tensors; of PCM3's method, whose encoder it is.
        query, key: Modules that hold "encoder" alone.
    """

    recipe: PCM3Recipe
    query: nn.Module
    key: nn.Module

    def readings(self) -> list[str]:
        """What the file does not tell, as it is read."""
        views = self.recipe.views
        return [
            "P1 each layer: two GRUs forward in time, as PCM3's released code",
            "P2 recordings cut to their first 300 frames",
            f"views of {views.frames} frames by linear interpolation, absent bodies as zeros "
            "(views.frames: as PCM3's, of which the file says nothing)",
            "features: last frame of the query encoder; beside it, as teacher, the key encoder",
            f"{views.modality} stream, taken after crop and augmentation",
        ]


def convert(
    tensors: Mapping[str, Tensor],
    streams: Sequence[Stream],
    file: Path,
    changes: Sequence[str] = (),
) -> dict[Stream, Branch]:
    """The encoders of some streams, in float32.

    Args:
        tensors: The state as released; all names with a leading "module.", or none.
        streams: Which are wanted; of others the names alone are checked.
        file: Where it was read from, for errors.
        changes: Settings of the recipes that win over what is read from the file.

    Raises:
        UserError: A tensor is unknown, missing, misshaped or not finite; its key is named.
    """
    prefix, plain = without_module(tensors)
    with misfits_named(file, prefix, "checkpoint of CMD's pre-training"):
        names = {key: "" for key in plain if _QUEUE.fullmatch(key)}
        for suffix in _SUFFIXES.values():
            for role in ("q", "k"):
                names |= branch_names(f"encoder_{role}{suffix}", "", branch_layers(plain, suffix))
        check_names(plain, names)
        return {stream: _branch(plain, stream, changes) for stream in streams}


def _branch(tensors: Mapping[str, Tensor], stream: Stream, changes: Sequence[str]) -> Branch:
    suffix = _SUFFIXES[stream]
    query, key = f"encoder_q{suffix}", f"encoder_k{suffix}"
    layers = branch_layers(tensors, suffix)
    recipe = load_recipe(
        STREAMS[stream],
        [
            f"name=cmd{'' if stream == 'joint' else f'-{stream}'}",
            f"title=Released weights of CMD, {stream} stream (encoder alone)",
            f"encoder.layers={layers}",
            f"encoder.hidden={size(tensors, f'{query}.encoder.gru.weight_hh_l0', 1)}",
            "encoder.direction=forward",
            "prompts.domain=none",
            "prompts.task=false",
            *changes,
        ],
    )
    assert isinstance(recipe, PCM3Recipe)
    embedding = size(tensors, f"{query}.fc.2.weight", 0)
    return Branch(
        recipe,
        _encoder(tensors, query, recipe, layers, embedding),
        _encoder(tensors, key, recipe, layers, embedding),
    )


def _encoder(
    tensors: Mapping[str, Tensor], theirs: str, recipe: PCM3Recipe, layers: int, embedding: int
) -> nn.Module:
    """An encoder whose tensors, and those of its projector, all fit."""
    with torch.device("meta"):  # whatever sizes a file claims, this costs no memory
        encoder = build_encoder(recipe, load_topology("kinect_v2"))
        whole = nn.ModuleDict(
            {"encoder": encoder, "projector": Projector(2 * recipe.encoder.hidden, out=embedding)}
        )
    like, names = whole.state_dict(), branch_names(theirs, "", layers)
    for key in names:
        if key not in tensors:
            raise MisfitError(key, "nothing", "a tensor")
    check_places(names, tensors, like)
    state = {ours: fitted(key, tensors[key], like[ours]) for key, ours in names.items()}
    whole.load_state_dict(state, assign=True)
    return nn.ModuleDict({"encoder": encoder})
