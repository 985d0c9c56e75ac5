"""The work of a step of PCM3, against the modules, products in a plain loop and kept tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest
import torch
from builders import KINECT, batch_of, recording, tiny_pcm3_recipe
from torch import Tensor, nn

from skelpipe.bench.flops import count
from skelpipe.config import PCM3Recipe, apply_changes, build
from skelpipe.costs.pcm3 import (
    decoder_part,
    encoder_part,
    parameters,
    projector_part,
    prompt_weights,
    sample_memory,
    step_rows,
)
from skelpipe.costs.roofline import Work
from skelpipe.methods.pcm3 import PCM3
from skelpipe.models.decoder import MotionDecoder
from skelpipe.models.gru import SkeletonGRU
from skelpipe.models.heads import Projector

JOINTS, SAMPLES = 5, 4
SMALL = (
    "views.frames=16",
    "views.bodies=1",
    "encoder.hidden=12",
    "encoder.layers=2",
    "prompts.width=6",
    "decoder.hidden=7",
    "loss.embedding=10",
    "loss.queue=40",
    "train.batch=4",
)
CHANNELS = 15
ENCODER = ["intra view", "masked view", "predicted view", "mixed view"]


def recipe(*changes: str) -> PCM3Recipe:
    table = {"kind": "recipe", "method": "pcm3", "name": "pcm3"}
    return build(PCM3Recipe, apply_changes(table, changes), what="recipe 'pcm3'")


def small(*changes: str) -> PCM3Recipe:
    return recipe(*SMALL, *changes)


def work(settings: PCM3Recipe, samples: int = SAMPLES, joints: int = JOINTS) -> dict[str, Work]:
    return {row.what: row for row in step_rows(settings, samples=samples, joints=joints)}


def encoder_of(settings: PCM3Recipe, channels: int = CHANNELS) -> SkeletonGRU:
    return SkeletonGRU(channels, **settings.encoder.model_dump())


def decoder_of(settings: PCM3Recipe, channels: int = CHANNELS) -> MotionDecoder:
    decoder = settings.decoder
    return MotionDecoder(
        2 * settings.encoder.hidden,
        hidden=decoder.hidden,
        layers=decoder.layers,
        channels=channels,
    )


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def unrolled(gru: nn.GRU, x_NTI: Tensor) -> Tensor:
    """A GRU as products of one frame after the other, which torch's counter sees."""
    out = x_NTI
    for layer in range(gru.num_layers):
        names = [f"{kind}_l{layer}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        of_input, of_state, bias_input, bias_state = (getattr(gru, name) for name in names)
        # A state that takes a gradient: the first frame's product goes back as the others' do.
        state = torch.zeros(len(out), gru.hidden_size, requires_grad=x_NTI.requires_grad)
        states = []
        for frame in range(out.shape[1]):
            r, z, n = (out[:, frame] @ of_input.T + bias_input).chunk(3, 1)
            reset, update, new = (state @ of_state.T + bias_state).chunk(3, 1)
            z = torch.sigmoid(z + update)
            state = (1 - z) * torch.tanh(n + torch.sigmoid(r + reset) * new) + z * state
            states.append(state)
        out = torch.stack(states, 1)
    return out


def encode(encoder: SkeletonGRU, x_NTC: Tensor) -> Tensor:
    x = encoder.input_norm(x_NTC)
    for pair in zip(encoder.first, encoder.second, strict=True):
        x = torch.cat([unrolled(cast(nn.GRU, gru), x) for gru in pair], -1)
    return x


def decode(decoder: MotionDecoder, feature_NTD: Tensor) -> Tensor:
    out: Tensor = decoder.out(unrolled(decoder.gru, decoder.frame(feature_NTD)))
    return out


def products(function: Callable[[Tensor], Tensor], *shape: int, back: bool) -> int:
    """FLOP of a pass as torch counts them."""
    x = torch.randn(shape, requires_grad=back)

    def run() -> None:
        with torch.set_grad_enabled(back):
            out = function(x)
            if back:
                out.sum().backward()

    return count(run).products


def test_the_published_recipe_has_the_published_size() -> None:
    paper = recipe()
    part = encoder_part(paper, 25)
    assert part.macs / 1e9 == pytest.approx(2.88, abs=0.005)
    assert part.weights / 1e6 == pytest.approx(45.0, abs=0.05)


@pytest.mark.parametrize(
    "changes", [(), ("encoder.layers=1", "decoder.layers=1"), ("encoder.layers=3",)]
)
def test_parameters_are_the_modules(changes: Sequence[str]) -> None:
    settings = small(*changes)
    encoder, decoder = encoder_of(settings), decoder_of(settings)
    projector = Projector(24, out=10)
    assert encoder_part(settings, JOINTS).weights == numbers(encoder)
    assert decoder_part(settings, JOINTS).weights == numbers(decoder)
    assert projector_part(settings).weights == numbers(projector)
    recurrent = sum(
        parameter.numel() for name, parameter in encoder.named_parameters() if "weight_hh" in name
    )
    assert encoder_part(settings, JOINTS).recurrent == recurrent
    recurrent = sum(
        parameter.numel() for name, parameter in decoder.named_parameters() if "weight_hh" in name
    )
    assert decoder_part(settings, JOINTS).recurrent == recurrent
    of_keys = numbers(encoder) + numbers(projector)
    prompts = 4 * CHANNELS + 2 * 2 * 6
    assert prompt_weights(settings, JOINTS) == prompts
    assert parameters(settings, JOINTS) == (of_keys + numbers(decoder) + prompts, of_keys)
    rows = work(settings)
    assert rows["optimiser"].bytes == 4 * 5 * (of_keys + numbers(decoder) + prompts)
    assert rows["key encoder's average"].bytes == 4 * 3 * of_keys


def test_the_loop_is_the_module() -> None:
    settings = small()
    x = torch.randn(SAMPLES, 16, CHANNELS)
    encoder, decoder = encoder_of(settings), decoder_of(settings)
    torch.testing.assert_close(encode(encoder, x), encoder(x))
    torch.testing.assert_close(decode(decoder, encoder(x)), decoder(encoder(x)))


def test_flop_equal_the_counter() -> None:
    settings = small()
    rows = work(settings)
    encoder, decoder, projector = encoder_of(settings), decoder_of(settings), Projector(24, out=10)
    shape = (SAMPLES, 16, CHANNELS)
    both = products(lambda x: encode(encoder, x), *shape, back=True)
    assert [rows[f"encoder, {view}"].flop for view in ENCODER] == [both] * 4
    forward = products(lambda x: encode(encoder, x), *shape, back=False)
    assert rows["encoder, keys"].flop == forward
    assert both == 3 * forward
    both = products(lambda x: decode(decoder, x), SAMPLES, 16, 24, back=True)
    assert rows["decoder"].flop == 2 * both
    both = products(projector, SAMPLES, 24, back=True)
    forward = products(projector, SAMPLES, 24, back=False)
    assert rows["projectors"].flop == 4 * both + forward
    queue = torch.randn(40, 10)
    both = products(lambda x: x @ queue.T, SAMPLES, 10, back=True)
    forward = products(lambda x: x @ queue.T, SAMPLES, 10, back=False)
    assert rows["queue"].flop == 4 * both + 4 * forward


@pytest.mark.parametrize(
    ("changes", "back", "decoder", "queue"),
    [
        ((), {"intra": 1, "masked": 1, "predicted": 1, "mixed": 1}, (2, 2), 12),
        (("loss.detach_predicted=true",),
         {"intra": 1, "masked": 1, "predicted": 1, "mixed": 1}, (2, 1), 12),
        (("loss.kl_weight=0",), {"intra": 1, "masked": 1, "predicted": 1, "mixed": 1}, (2, 2), 8),
        (("loss.positives=['intra']", "loss.mask_weight=0"), {"intra": 1}, (0, 0), 3),
        (("loss.positives=['intra', 'inter']", "loss.mask_weight=0"),
         {"intra": 1, "mixed": 1}, (0, 0), 6),
        (("loss.positives=['inter']",), {"masked": 1, "mixed": 1}, (1, 1), 3),
        (("loss.positives=[]",), {"masked": 1}, (1, 1), 0),
        (("loss.positives=['mask']", "loss.mask_weight=0"), {"masked": 1}, (0, 0), 3),
        (("loss.positives=['predict']", "loss.mask_weight=0"),
         {"masked": 0, "predicted": 1}, (1, 1), 3),
    ],
)  # fmt: skip
def test_passes_are_those_that_the_losses_need(
    changes: Sequence[str], back: dict[str, int], decoder: tuple[int, int], queue: int
) -> None:
    settings = small(*changes)
    rows = work(settings)
    macs = encoder_part(settings, JOINTS).macs
    found = {
        what.removeprefix("encoder, ").removesuffix(" view"): row.flop / (2 * SAMPLES * macs)
        for what, row in rows.items()
        if what.endswith(" view")
    }
    assert found == {view: 1 + 2 * returns for view, returns in back.items()}
    assert ("encoder, keys" in rows) == bool(settings.loss.positives)
    macs = decoder_part(settings, JOINTS).macs
    forward, backward = decoder
    flop = rows["decoder"].flop if "decoder" in rows else 0
    assert flop == 2 * SAMPLES * macs * (forward + 2 * backward)
    flop = rows["queue"].flop if "queue" in rows else 0
    assert flop == 2 * SAMPLES * 40 * 10 * queue


def test_recurrent_weights_are_read_in_every_frame() -> None:
    """The bytes of a pass, by a loop over what it reads and writes."""
    settings = small()
    encoder = encoder_of(settings)
    read, written = 0, 0
    for _ in ("forward", "back"):
        for name, parameter in encoder.named_parameters():
            for _ in range(16 if "weight_hh" in name else 1):
                read += parameter.numel()
    for parameter in encoder.parameters():
        written += parameter.numel()
    cells = 16 * (CHANNELS + 2 * 2 * 8 * 12)
    assert encoder_part(settings, JOINTS).cells == cells
    row = work(settings)["encoder, intra view"]
    assert row.bytes == 4 * (2 * SAMPLES * cells + read + written)
    assert work(settings)["encoder, keys"].bytes == 4 * (2 * SAMPLES * cells + read / 2)
    half = work(small("train.precision=bf16"))["encoder, intra view"]
    assert half.bytes == 2 * (2 * SAMPLES * cells + read) + 4 * written
    more = work(small("optim.clip=1.0"))["optimiser"].bytes
    assert more == pytest.approx(6 / 5 * work(settings)["optimiser"].bytes)


def kept(module: nn.Module, *shape: int) -> int:
    """Numbers, beside weights, that a pass keeps for its way back."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.randn(shape, requires_grad=True))
    return sum(tensor.untyped_storage().nbytes() // 4 for tensor in found.values())


@pytest.mark.parametrize("hidden", [32, 96])
def test_cells_are_what_torch_keeps(hidden: int) -> None:
    settings = small(f"encoder.hidden={hidden}", f"decoder.hidden={hidden}", "encoder.layers=3")
    told = SAMPLES * encoder_part(settings, JOINTS).cells
    assert kept(encoder_of(settings), SAMPLES, 16, CHANNELS) == pytest.approx(told, rel=0.1)
    told = SAMPLES * decoder_part(settings, JOINTS).cells
    assert kept(decoder_of(settings), SAMPLES, 16, 2 * hidden) == pytest.approx(told, rel=0.1)


def test_memory_is_what_a_step_keeps_at_most() -> None:
    settings = tiny_pcm3_recipe("encoder.hidden=64", "decoder.hidden=48", "loss.queue=500")
    method = PCM3(settings, KINECT)
    weights = {tensor.untyped_storage().data_ptr() for tensor in method.state_dict().values()}
    kept: dict[int, int] = {}
    most = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal most
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
            most = max(most, sum(kept.values()))
        return tensor

    backward = torch.Tensor.backward

    def forgetting(tensor: Tensor) -> None:
        backward(tensor)
        kept.clear()

    samples = [recording(number, 30) for number in range(4)]
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        patch.setattr(torch.Tensor, "backward", forgetting)
        method.learn(batch_of(samples), 0.0)
    assert most < 4 * sample_memory(settings, 25) < 1.5 * most


def test_work_grows_with_samples_and_weights_do_not() -> None:
    few, many = work(small(), 4), work(small(), 8)
    for what, row in few.items():
        assert many[what].flop == 2 * row.flop
        if row.flop:
            assert row.bytes < many[what].bytes < 2 * row.bytes
        else:
            assert row.bytes == many[what].bytes
