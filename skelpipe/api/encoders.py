"""Encoders as modules: recordings in, features out; of a run, or of a file of their own.

Letters: N samples, M bodies, T frames, J joints, D features.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from skelpipe.api.dense import unpad
from skelpipe.checkpoint import Run, read_run
from skelpipe.config import RECIPE, PCM3Recipe, Recipe
from skelpipe.errors import UserError, nearest
from skelpipe.models.encoder import Encoder, build_encoder
from skelpipe.protocols.features import (
    CENTRE,
    Encode,
    Kind,
    See,
    default_kind,
    encode_by,
    features_of,
    viewer,
)
from skelpipe.protocols.question import Network
from skelpipe.protocols.question import load_encoder as read_encoder
from skelpipe.protocols.transfer import trained_topology
from skelpipe.shards.card import read_card
from skelpipe.skeleton import Topology

_FORMAT = "skelpipe encoder 1"


class FeatureEncoder(nn.Module):
    """A pre-trained encoder: whole recordings in, features out. See `load_encoder`.

    It makes the view of its method itself, as `skelpipe evaluate` does: the recording's middle,
    resampled to `frames`; then features of each body and their mean over real bodies (SLiM), or of
    all bodies at once (PCM3). It is in evaluation mode and its parameters ask for no gradient;
    ``encoder.requires_grad_().train()`` makes it part of one's own training.

    Attributes:
        encoder: The network itself, on rows of the view.
        recipe: Of its run: what shapes network and view.
        topology: The skeleton it was trained on.
        kind: What stands for a row: "patch", "class", "both" or "last".
        centre: Share of a recording that is seen, from its middle. 1 takes views that are made
            already as they are.
        about: Where it is from: "run", "checkpoint", "network".
    """

    def __init__(
        self,
        encoder: Encoder,
        recipe: Recipe,
        topology: Topology,
        kind: Kind,
        centre: float = CENTRE,
        about: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        encode_by(encoder, kind)  # refuses features it does not have
        self.encoder = encoder
        self.recipe = recipe
        self.topology = topology
        self.kind: Kind = kind
        self.centre = centre
        self.about = about or {}
        self.requires_grad_(False).eval()

    @property
    def frames(self) -> int:
        """Frames of the view that recordings are resampled to."""
        return self.recipe.views.frames

    @property
    def see(self) -> See:
        """What makes rows of the view."""
        return viewer(self.recipe, self.topology, self.centre)

    @property
    def encode(self) -> Encode:
        """Rows of the view to features; see `row_shape`."""
        return encode_by(self.encoder, self.kind)  # made anew: a copy encodes by its own network

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row of the view: (T, J, 3) of a body, or PCM3's channels of all, (T, C)."""
        joints = len(self.topology.joints)
        if isinstance(self.recipe, PCM3Recipe):
            return self.frames, joints * 3 * self.recipe.views.bodies
        return self.frames, joints, 3

    def forward(self, x: Tensor, frames: Tensor | None = None) -> Tensor:
        """Features of recordings.

        Args:
            x: Coordinates (N, M, T, J, 3) in metres, prepared by the recipe's pipeline; zeros where
                no body is. T is the longest recording's number of frames.
            frames: Frames of each recording (N,), where some have fewer than T.

        Returns:
            Features (N, D), float32; of SLiM not finite where a recording shows no body.

        Raises:
            UserError: Another shape, or frames that do not fit it.
        """
        joints = len(self.topology.joints)
        if x.dim() != 5 or x.shape[3:] != (joints, 3) or not all(x.shape):
            raise UserError(
                "these are no recordings of the encoder's skeleton",
                found=tuple(x.shape),
                expected=f"(samples, bodies, frames, {joints}, 3), as x of a batch, or of a "
                "sample with [None]",
            )
        return features_of(unpad(x, frames), [self.encode], self.see)[0]


def load_encoder(
    place: str | Path,
    *,
    network: Network | None = None,
    kind: Kind | None = None,
    centre: float = CENTRE,
    device: str | torch.device = "cpu",
    data: str | Path | None = None,
) -> FeatureEncoder:
    """The encoder of a run's newest checkpoint, or of a file that `skelpipe export` wrote.

    ``encoder(x, frames)`` gives features (N, D) of recordings (N, M, T, J, 3) in metres; see
    `FeatureEncoder`. They are those that `skelpipe evaluate` and `skelpipe embed` have.

    Args:
        place: A run's folder, or a .safetensors file.
        network: "student" (the default) or "teacher" of a run; a file has one network.
        kind: "patch", "class" or "both" of SLiM, "last" of PCM3. By default the method's own, or
            those that the file was exported with.
        centre: Share of a recording that is seen, from its middle.
        device: Where it computes, such as "cuda".
        data: A prepared set whose skeleton it has, where the run does not tell and its own set is
            gone.

    Raises:
        UserError: No run or file stands there, it is damaged, or it has no such features.
    """
    place = Path(place)
    if not 0 < centre <= 1:
        raise UserError("centre is a share", found=centre, expected="above 0 and at most 1")
    if place.is_file():
        if network is not None or data is not None:
            raise UserError(
                "a file of an encoder holds one network and its skeleton",
                file=place,
                remedy="leave out network and data",
            )
        encoder = _of_file(place, kind, centre)
    else:
        encoder = _of_run(read_run(place), network or "student", kind, centre, data)
    return encoder.to(device)


def _of_run(
    run: Run, network: Network, kind: Kind | None, centre: float, data: str | Path | None
) -> FeatureEncoder:
    topology = read_card(Path(data)).topology if data else _topology_of(run)
    about = {"run": run.folder.resolve().name, "checkpoint": run.checkpoint().name}
    if network not in ("student", "teacher"):
        raise UserError(
            f"there is no network '{network}'", remedy=nearest(network, ["student", "teacher"])
        )
    return FeatureEncoder(
        read_encoder(run, topology, network),
        run.recipe,
        topology,
        kind or default_kind(run.recipe),
        centre,
        about | {"network": network},
    )


def _topology_of(run: Run) -> Topology:
    """The skeleton a run was trained on: as it tells, or as its set does where that still stands.

    Raises:
        UserError: Neither tells.
    """
    folder = run.data.get("folder")
    if "topology" not in run.data and folder and Path(folder).is_dir():
        return read_card(Path(folder)).topology
    known = trained_topology(run)
    if known is None:
        raise UserError(
            "the run does not tell its skeleton, and the set it was trained on is not there",
            file=run.folder,
            found=folder or "no set",
            remedy="name a prepared set of the same skeleton with data",
        )
    return known


def save_encoder(encoder: FeatureEncoder, file: Path) -> None:
    """Write an encoder's tensors as safetensors, with all that `load_encoder` needs as metadata."""
    tensors = {name: tensor.contiguous() for name, tensor in encoder.encoder.state_dict().items()}
    file.write_bytes(save(tensors, metadata(encoder)))


def metadata(encoder: FeatureEncoder) -> dict[str, str]:
    """What a file of an encoder tells: where it is from, and what it takes and gives."""
    return {
        "format": _FORMAT,
        **encoder.about,
        "recipe": encoder.recipe.model_dump_json(),
        "topology": encoder.topology.model_dump_json(),
        "kind": encoder.kind,
        "view": f"centre crop of {encoder.centre:g} of a recording, {encoder.frames} frames",
        "input": json.dumps(["batch", *encoder.row_shape]),
        "output": json.dumps(["batch", width(encoder)]),
    }


@torch.no_grad()
def width(encoder: FeatureEncoder) -> int:
    """D: features of a sample."""
    device = next(encoder.parameters()).device
    return encoder.encode(torch.zeros(1, *encoder.row_shape, device=device)).shape[1]


def _of_file(file: Path, kind: Kind | None, centre: float) -> FeatureEncoder:
    try:
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise _no_encoder(file, error) from error
    if told.get("format") != _FORMAT:
        raise _no_encoder(file, f"format {told.get('format')!r}")
    try:
        recipe = RECIPE.validate_json(told["recipe"])
        topology = Topology.model_validate_json(told["topology"])
        encoder = build_encoder(recipe, topology)
        encoder.load_state_dict(tensors)
    except (KeyError, ValidationError, RuntimeError) as error:
        raise _no_encoder(file, error) from error
    about = {name: told[name] for name in ("run", "checkpoint", "network") if name in told}
    return FeatureEncoder(encoder, recipe, topology, kind or told["kind"], centre, about)


def _no_encoder(file: Path, found: object) -> UserError:
    return UserError(
        "this file holds no encoder, or a damaged one",
        file=file,
        found=found,
        expected=f"safetensors with metadata of '{_FORMAT}'",
        remedy=f"write it again: skelpipe export RUN --to safetensors --out {file} --force",
    )
