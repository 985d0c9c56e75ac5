"""Operations of SLiM and of the masked autoencoders of its Table 1, counted by torch.

Modules and inputs stand on the meta device, so that counting takes no memory and little time.
FLOP are 2 a multiply-add. Two conventions, each for one and for two bodies:

- products: matrix products, attention's among them;
- everything: besides, an operation for every element of what biases, residuals, embeddings, GELU
  and rotary turns give, two for every attention score (scale and softmax), and five for every
  element of a layer norm. It is the one that gives the 28.32 of Table 1, for two bodies (S27).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skelpipe.config import Settings, SLiMRecipe, build
from skelpipe.costs.slim import masked_tokens, step_rows, tokens_of
from skelpipe.manifest import load_topology, read_manifest
from skelpipe.models.encoder import build_encoder
from skelpipe.models.heads import PrototypeHead

JOINTS = 25
_DIM, _LAYERS, _PATCH = 256, 8, 4  # MAMP's encoder; heads 8, MLP ratio 4


class Training(Settings):
    """Published GFLOPs of pre-training; None where the table has none."""

    encoder: float
    decoder: float | None = None
    target: float | None = None


class Method(Settings):
    """A row of Table 1: temporal tokens by joints, and GFLOPs."""

    name: str
    network: Literal["mae", "slim"]
    tokens: tuple[int, int]
    inference: float
    training: Training
    decoder_layers: int | None = None


class Published(Settings):
    """The efficiency columns of Table 1, and the reduction of inference that the paper states."""

    title: str
    reduction: float
    methods: tuple[Method, ...]


class Flop(NamedTuple):
    """Operations under the two conventions."""

    products: int
    everything: int


@dataclass(frozen=True)
class Cost:
    """One network at one size.

    Attributes:
        method, what: Whose, and what for.
        tokens: That the blocks see; empty where nothing is counted.
        published: GFLOPs of Table 1; None where it has none.
        flop: For one and for two bodies; None where the published figure is only quoted.
    """

    method: str
    what: str
    tokens: str
    published: float | None
    flop: tuple[Flop, Flop] | None = None


@dataclass(frozen=True)
class Forward:
    """A part of SLiM's forward pass in training, for one sample and body: rows, GMAC."""

    what: str
    rows: str
    gmac: float


class MaskedEncoder(nn.Module):
    """MAMP's encoder: patches of 4 frames by one joint, embeddings, 8 blocks, no class token."""

    def __init__(self, steps: int, joints: int) -> None:
        super().__init__()
        self.patch = nn.Linear(_PATCH * 3, _DIM)
        self.joint_embedding = nn.Parameter(torch.zeros(joints, _DIM))
        self.step_embedding = nn.Parameter(torch.zeros(steps, 1, _DIM))
        self.blocks = _blocks(_LAYERS)

    def forward(self, patches_BSJP: Tensor, visible: int) -> Tensor:
        """Encode the first ``visible`` tokens: which are kept does not change the count."""
        z_BSJD = self.patch(patches_BSJP) + (self.joint_embedding + self.step_embedding)
        encoded: Tensor = self.blocks(z_BSJD.flatten(1, 2)[:, :visible])
        return encoded


class Decoder(nn.Module):
    """MAMP's decoder: mask tokens stand in for what was hidden, and every patch is predicted."""

    def __init__(self, tokens: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(_DIM, _DIM)
        self.mask_token = nn.Parameter(torch.zeros(_DIM))
        self.position = nn.Parameter(torch.zeros(tokens, _DIM))
        self.blocks = _blocks(layers)
        self.predict = nn.Linear(_DIM, _PATCH * 3)

    def forward(self, visible_BND: Tensor) -> Tensor:
        z_BND = self.embed(visible_BND)
        hidden = self.mask_token.expand(len(z_BND), len(self.position) - z_BND.shape[1], -1)
        z_BND = torch.cat([z_BND, hidden], 1) + self.position
        predicted: Tensor = self.predict(self.blocks(z_BND))
        return predicted


def _blocks(layers: int) -> nn.Module:
    """Pre-norm blocks and a last norm. torch's own, and without dropout: modules stay in training
    mode, as in evaluation torch takes a fused path that the counter does not see into."""
    block = nn.TransformerEncoderLayer(
        _DIM, 8, 4 * _DIM, 0.0, "gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(block, layers, nn.LayerNorm(_DIM), enable_nested_tensor=False)


def count(work: Callable[[], object]) -> Flop:
    """FLOP of what a call does.

    Attention takes torch's plain path, whose products the counter sees on every device.
    """
    products = FlopCounterMode(display=False)
    everything = FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE)
    with sdpa_kernel(SDPBackend.MATH), products, everything:
        work()
    return Flop(products.get_total_flops(), everything.get_total_flops())


def _elements(times: int) -> Callable[..., int]:
    """So many operations for every element of the result."""
    return lambda *_, out_shape, **__: times * math.prod(out_shape)


def _norm(*_: Any, out_shape: Any, **__: Any) -> int:
    return 5 * int(math.prod(out_shape[0]))  # beside the result: means and deviations


def _biased(_: Any, a: Any, b: Any, *, out_shape: Any, **__: Any) -> int:
    return (2 * int(a[1]) + 1) * int(math.prod(out_shape))


def _times(a: Any, b: Any, *, out_shape: Any, **__: Any) -> int:
    # torch scales queries and keys by a number; the scale is counted with the scores.
    return int(math.prod(out_shape)) if isinstance(b, torch.Size) else 0


_aten = torch.ops.aten
_ELEMENTWISE = {
    _aten.addmm: _biased,
    _aten.add: _elements(1),
    _aten.mul: _times,
    _aten.neg: _elements(1),
    _aten.gelu: _elements(1),
    _aten.native_layer_norm: _norm,
    _aten._softmax: _elements(2),
    _aten._safe_softmax: _elements(2),
}


def load_published() -> Published:
    """Table 1 as the paper has it."""
    name = "slim-table-1"
    table = read_manifest("table", name)
    methods = [
        {
            "name": row["method"],
            "inference": row["values"]["inference"],
            "training": {key: row["values"].get(key) for key in Training.model_fields},
            **row["counted"],
        }
        for row in table["rows"]
    ]
    published = {
        "title": f"{table['paper']}, Table 1",
        "reduction": table["reduction"],
        "methods": methods,
    }
    return build(Published, published, what=f"manifest '{name}'")


def visible_tokens(tokens: int, masked: float = 0.9) -> int:
    """What MAMP leaves visible: rounded down after rounding errors, 74 of 750 and not 75."""
    return int(tokens * (1 - masked))


def _one_and_two(on: Callable[[int], object]) -> tuple[Flop, Flop]:
    return count(lambda: on(1)), count(lambda: on(2))


@cache
def mae_encoder(steps: int, joints: int, visible: int) -> tuple[Flop, Flop]:
    """MAMP's encoder for one and two bodies: all tokens are embedded, some of them encoded."""
    with torch.device("meta"):
        encoder = MaskedEncoder(steps, joints)

    shape = (steps, joints, _PATCH * 3)
    return _one_and_two(lambda bodies: encoder(torch.empty(bodies, *shape, device="meta"), visible))


@cache
def mae_decoder(tokens: int, visible: int, layers: int) -> tuple[Flop, Flop]:
    """MAMP's decoder for one and two bodies."""
    with torch.device("meta"):
        decoder = Decoder(tokens, layers)
    return _one_and_two(lambda bodies: decoder(torch.empty(bodies, visible, _DIM, device="meta")))


@cache
def blocks_alone(tokens: int, layers: int) -> tuple[Flop, Flop]:
    """Blocks of MAMP's (and SLiM's) size and the last norm, for one and two bodies."""
    with torch.device("meta"):
        blocks = _blocks(layers)
    return _one_and_two(lambda bodies: blocks(torch.empty(bodies, tokens, _DIM, device="meta")))


@cache
def slim_encoder(recipe: SLiMRecipe, frames: int) -> tuple[Flop, Flop]:
    """SLiM's encoder on one view, for one and two bodies."""
    with torch.device("meta"):
        encoder = build_encoder(recipe, load_topology("kinect_v2"))
    return _one_and_two(
        lambda bodies: encoder(torch.empty(bodies, frames, JOINTS, 3, device="meta"))
    )


@cache
def head(recipe: SLiMRecipe) -> Flop:
    """A head and its prototypes on one row."""
    with torch.device("meta"):
        module = PrototypeHead(recipe.encoder.dim, **recipe.head.model_dump())
        row = torch.empty(1, recipe.encoder.dim)
    return count(lambda: module(row) @ module.directions().T)


INFERENCE, ENCODER, DECODER, TARGET = (
    "inference: encoder",
    "training: encoder",
    "training: decoder",
    "training: target",
)


def table_1(published: Published, recipe: SLiMRecipe) -> list[Cost]:
    """The efficiency columns of Table 1, method by method, what is published beside what we count.

    SLiM's training columns are, like the published ones, one pass of student and teacher each over
    one global view; see `forward` for the whole.
    """
    rows = []
    for method in published.methods:
        name, training = method.name, method.training
        if method.network == "slim":
            tokens = str(tokens_of(recipe, recipe.views.frames, JOINTS))
            flop = slim_encoder(recipe, recipe.views.frames)
            rows += [
                Cost(name, INFERENCE, tokens, method.inference, flop),
                Cost(name, ENCODER, tokens, training.encoder, flop),
                Cost(name, TARGET, tokens, training.target, flop),
            ]
            continue
        steps, joints = method.tokens
        patches = steps * joints
        visible = visible_tokens(patches)
        some, every = str(visible), str(patches)
        rows += [
            Cost(name, INFERENCE, every, method.inference, mae_encoder(steps, joints, patches)),
            Cost(name, ENCODER, some, training.encoder, mae_encoder(steps, joints, visible)),
        ]
        if layers := method.decoder_layers:
            flop = mae_decoder(patches, visible, layers)
            what = f"{DECODER}, {layers} layers"
            rows.append(Cost(name, what, every, training.decoder, flop))
        elif training.decoder is not None:
            rows.append(Cost(name, DECODER, "", training.decoder))
        if training.target is not None:
            rows.append(Cost(name, TARGET, "", training.target))
    return rows


def other_readings(recipe: SLiMRecipe) -> list[Cost]:
    """What else the numbers of Table 1 could be taken to count."""
    patches = 30 * JOINTS
    visible, other = visible_tokens(patches), patches // 10
    own = recipe.views.frames // recipe.encoder.patch_frames * JOINTS
    return [
        Cost("MAMP", "encoder's 8 blocks alone", str(patches), None, blocks_alone(patches, 8)),
        Cost("MAMP", ENCODER, str(other), None, mae_encoder(30, JOINTS, other)),
        Cost(
            "MAMP",
            f"{DECODER}, 3 layers (NTU-60)",
            str(patches),
            None,
            mae_decoder(patches, visible, 3),
        ),
        Cost("MAMP", "decoder's 5 blocks alone", str(patches), None, blocks_alone(patches, 5)),
        Cost("SLiM", "blocks on patches alone", str(own), None, blocks_alone(own, _LAYERS)),
    ]


def forward(recipe: SLiMRecipe) -> list[Forward]:
    """SLiM's forward pass in training, for one sample with one body: what Table 1 leaves out."""
    views = recipe.views

    def gmac(frames: int) -> float:
        return slim_encoder(recipe, frames)[0].products / 2e9

    crops = views.anchors * views.crops
    sizes = ", ".join(str(tokens_of(recipe, local.frames, JOINTS)) for local in views.local)
    of_global = f"2 views of {tokens_of(recipe, views.frames, JOINTS)} tokens"
    masked = masked_tokens(recipe, JOINTS)
    student = 2 + crops * len(views.local)
    row = head(recipe).products / 2e9
    return [
        Forward("encoder, teacher", of_global, 2 * gmac(views.frames)),
        Forward("encoder, student's globals", of_global, 2 * gmac(views.frames)),
        Forward(
            "encoder, student's locals",
            f"{crops} views each of {sizes} tokens",
            crops * sum(gmac(local.frames) for local in views.local),
        ),
        Forward("patch heads, teacher", f"{masked:g} masked tokens", masked * row),
        Forward("patch heads, student", f"{masked:g} masked tokens", masked * row),
        Forward("class heads, teacher", "2 views", 2 * row),
        Forward("class heads, student", f"{student} views", student * row),
    ]


def notes(published: Published, recipe: SLiMRecipe) -> list[str]:
    """What must be read beside the tables; every number is counted, or published and called so."""
    slim = next(method for method in published.methods if method.network == "slim")
    mamp = next(method for method in published.methods if method.name == "MAMP")
    one, two = slim_encoder(recipe, recipe.views.frames)
    steps, joints = mamp.tokens
    mae = mae_encoder(steps, joints, steps * joints)[1]
    decoder = blocks_alone(steps * joints, 5)[1]
    parts = forward(recipe)
    encoder = sum(part.gmac for part in parts if part.what.startswith("encoder"))
    heads = sum(part.gmac for part in parts) - encoder
    columns = slim.training.encoder + (slim.training.target or 0)
    work = step_rows(recipe, samples=1, bodies=1, joints=JOINTS)
    again = sum(piece.flop for piece in work if piece.what == "prototypes, recomputed")
    step = sum(piece.flop for piece in work) - again
    return [
        "FLOP are 2 a multiply-add. Products: matrix products, attention's among them. All: "
        "biases, norms, GELU, softmax, scaling and sums too, which is how the published figures "
        "of masked autoencoders count, for two bodies. A figure without a count is quoted only.",
        f"MAMP leaves {visible_tokens(steps * joints)} tokens visible, as its 10 % are rounded "
        "down after a rounding error; its decoder has 5 layers, on NTU-60 3.",
        f"The published decoder, {mamp.training.decoder:g}, is 5 blocks and their norm alone, "
        f"without what embeds and predicts: {decoder.everything / 1e9:.2f}.",
        f"SLiM's {slim.inference:g} does not follow from the published architecture: one body is "
        f"{one.everything / 1e9:.2f}, two are {two.everything / 1e9:.2f}. Nearest reading: an "
        f"average of {slim.inference * 1e9 / one.everything:.2f} real bodies, where the others "
        "are charged for two.",
        f"Like for like (two bodies, products): MAMP's encoder takes "
        f"{mae.products / two.products:.2f} times SLiM's; the paper states "
        f"{published.reduction:g} times.",
        f"SLiM's training columns, {columns:g} together, leave out the second global view, the "
        f"locals and the heads: a forward pass takes {encoder:.1f} GMAC in encoders and "
        f"{heads:.1f} in heads, {2 * (encoder + heads):.1f} GFLOP a sample and body.",
        f"With the backward pass a step takes {step / 1e9:.0f} GFLOP a sample and body, and "
        f"{again / 1e9:.0f} more for logits that are made again instead of kept.",
    ]
