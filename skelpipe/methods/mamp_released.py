"""MAMP's weights as its authors released them: names and shapes, and the encoder they are here.

MAMP's encoder is SLiM's without class token, registers and rotary embedding, with a learned vector
for each step in time. The file holds its decoder too, which is left out. What it does not tell is
a setting: the paper's 8 heads; the epsilon of its layer norms, for which we take PyTorch's default
of 1e-5, as for every layer of which nothing else is said; and which of the two ways to fill an
absent second body it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skelpipe.config import SLiMRecipe, apply_changes, build
from skelpipe.errors import UserError
from skelpipe.manifest import load_topology
from skelpipe.methods.released_tensors import (
    MisfitError,
    check_names,
    check_places,
    count_layers,
    fitted,
    misfits_named,
    parts,
    size,
    without_module,
)
from skelpipe.models.encoder import build_encoder

_PATCH = "joints_embed.proj.weight"
_EMBEDDINGS = {
    _PATCH: "patch.weight",
    "joints_embed.proj.bias": "patch.bias",
    "temp_embed": "step_embedding",
    "pos_embed": "joint_embedding",
    **parts("norm", "norm"),
}
_BLOCK = {
    "norm1": "norm_1", "attn.qkv": "qkv", "attn.proj": "out", "norm2": "norm_2",
    "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
}  # fmt: skip
_RECIPE: dict[str, Any] = {
    "kind": "recipe",
    "name": "mamp",
    "title": "Released weights of MAMP (encoder alone)",
    "method": "slim",
    "pipeline": "ctrgcn",
    "views": {"local": [], "crops": 0, "absent_body": "zeros", "resample": "linear"},
    "encoder": {
        "heads": 8, "registers": 0, "class_token": False, "positions": "learned", "norm_eps": 1e-5,
    },
    "loss": {"contrast_weight": 0.0, "koleo_weight": 0.0},
}  # fmt: skip


@dataclass(frozen=True)
class Released:
    """MAMP's encoder.

    Attributes:
        recipe: With the sizes of the tensors.
        network: A module that holds "encoder" alone.
    """

    recipe: SLiMRecipe
    network: nn.Module

    def readings(self) -> list[str]:
        """What the file does not tell, as it is read."""
        encoder, views = self.recipe.encoder, self.recipe.views
        return [
            f"{encoder.heads} heads (encoder.heads: MAMP's 8; the file does not tell)",
            f"epsilon {encoder.norm_eps:g} of layer norms (encoder.norm_eps; not published)",
            f"views of {views.frames} frames by {views.resample} interpolation",
            f"S8 absent body: {views.absent_body} (views.absent_body: MAMP's arrays have zeros on "
            "NTU RGB+D 60, a copy of the body on NTU RGB+D 120)",
            "features: mean of patch tokens over time, joints and bodies, absent ones too",
            "PKU-MMD is not centred by MAMP: prepare it with pipeline ctrgcn and centre = none",
        ]


def convert(tensors: Mapping[str, Tensor], file: Path, changes: Sequence[str] = ()) -> Released:
    """The encoder that a released checkpoint holds, in float32.

    Args:
        tensors: The state as released; all names with a leading "module.", or none. "mask_token"
            and all that begins with "decoder_" is left out.
        file: Where it was read from, for errors.
        changes: Settings of the recipe that win over what is read from the file.

    Raises:
        UserError: A tensor is unknown, missing, misshaped or not finite; its key is named. Or a
            setting does not fit, such as heads that do not divide the width.
    """
    prefix, plain = without_module(tensors)
    with misfits_named(file, prefix, "checkpoint of MAMP's pre-training"):
        kept = {
            key: tensor
            for key, tensor in plain.items()
            if key != "mask_token" and not key.startswith("decoder_")
        }
        return _convert(kept, changes)


def _convert(tensors: Mapping[str, Tensor], changes: Sequence[str]) -> Released:
    layers = count_layers(tensors, r"blocks\.(\d+)\..+")
    names = dict(_EMBEDDINGS)
    for layer in range(layers):
        for theirs, ours in _BLOCK.items():
            names |= parts(f"blocks.{layer}.{theirs}", f"blocks.{layer}.{ours}")
    check_names(tensors, names)
    for key in names:
        if key not in tensors:
            raise MisfitError(key, "nothing", "a tensor")
    recipe = build(
        SLiMRecipe,
        apply_changes(_RECIPE, [*_sizes(tensors, layers), *changes]),
        what="recipe 'mamp'",
    )
    with torch.device("meta"):  # whatever sizes a file claims, this costs no memory
        encoder = build_encoder(recipe, load_topology("kinect_v2"))
    like = encoder.state_dict()
    if len(like["prefix"]):
        raise UserError(
            "MAMP's encoder has no class token and no registers",
            remedy="leave out encoder.class_token and encoder.registers",
        )
    alone = ("prefix", "mask_token")  # ours: no token stands before, and none is masked
    check_places(names, tensors, [ours for ours in like if ours not in alone])
    state = {ours: _converted(key, tensors[key], like[ours]) for key, ours in names.items()}
    state |= {ours: torch.zeros(like[ours].shape) for ours in alone}
    encoder.load_state_dict(state, assign=True)
    return Released(recipe, nn.ModuleDict({"encoder": encoder}))


def _sizes(tensors: Mapping[str, Tensor], layers: int) -> list[str]:
    """Settings that the tensors' shapes tell."""
    dim, patch = size(tensors, _PATCH, 0, dims=4), size(tensors, _PATCH, 2, dims=4)
    steps = size(tensors, "temp_embed", 1, dims=4)
    hidden = size(tensors, "blocks.0.mlp.fc1.weight", 0)
    ratio = hidden / dim
    if int(dim * ratio) != hidden:  # by rounding
        ratio = (hidden + 0.5) / dim
    return [
        f"views.frames={steps * patch}",
        f"encoder.layers={layers}",
        f"encoder.dim={dim}",
        f"encoder.mlp_ratio={ratio!r}",
        f"encoder.patch_frames={patch}",
    ]


def _converted(key: str, tensor: Tensor, like: Tensor) -> Tensor:
    """A released tensor in our shape and type, as a copy.

    The convolution's kernel (D, 3, frames, 1) is ours of frame by frame, in each x, y and z. Of
    queries, keys and values one stands after the other, in each head by head, as in ours.
    """
    if key == _PATCH:
        dim, inputs = like.shape
        flat = fitted(key, tensor, like, (dim, 3, inputs // 3, 1))
        return flat.view(dim, 3, -1).mT.reshape(dim, -1).contiguous()
    if key == "temp_embed":
        return fitted(key, tensor, like, (1, len(like), 1, like.shape[1]))
    if key == "pos_embed":
        return fitted(key, tensor, like, (1, 1, *like.shape))
    return fitted(key, tensor, like)
