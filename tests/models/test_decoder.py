"""The decoder, against its layers written out frame by frame."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from skelpipe.models.decoder import MotionDecoder


def decoder() -> MotionDecoder:
    torch.manual_seed(0)
    return MotionDecoder(12, hidden=8, layers=2, channels=6)


def literally(network: MotionDecoder, feature_NTD: Tensor) -> Tensor:
    """Matrix products and cells of the state's own tensors, one frame at a time."""
    state = network.state_dict()
    rows = feature_NTD.flatten(0, 1) @ state["frame.0.weight"].T + state["frame.0.bias"]
    rows = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    rows = (rows * state["frame.1.weight"] + state["frame.1.bias"]).clamp(min=0)
    rows = rows @ state["frame.3.weight"].T + state["frame.3.bias"]
    x_NTH = rows.view(*feature_NTD.shape[:2], -1)
    for layer in range(2):
        cell = nn.GRUCell(8, 8, dtype=x_NTH.dtype)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        cell.load_state_dict({name: state[f"gru.{name}_l{layer}"] for name in names})
        hidden, outputs = x_NTH.new_zeros(len(x_NTH), 8), []
        for frame_NH in x_NTH.unbind(1):
            hidden = cell(frame_NH, hidden)
            outputs.append(hidden)
        x_NTH = torch.stack(outputs, 1)
    return x_NTH @ state["out.weight"].T + state["out.bias"]


@pytest.mark.parametrize("frames", [1, 9])
def test_decodes_as_its_layers_do_one_frame_at_a_time(frames: int) -> None:
    network = decoder().double()
    feature_NTD = torch.randn(3, frames, 12, dtype=torch.float64)
    x_NTC = network(feature_NTD)
    assert x_NTC.shape == (3, frames, 6)
    assert torch.allclose(x_NTC, literally(network, feature_NTD), atol=1e-12)


def test_a_frame_reaches_no_frame_before_it() -> None:
    network = decoder().eval()
    feature_NTD = torch.randn(2, 9, 12)
    other_NTD = feature_NTD.clone()
    other_NTD[:, 5] += 1
    moved_T = (network(feature_NTD) - network(other_NTD)).abs().amax((0, 2))
    assert not bool(moved_T[:5].any())
    assert bool((moved_T[5:] > 0).all())


def test_half_precision_learns_in_float32() -> None:
    network = decoder()
    feature_NTD = torch.randn(3, 7, 12)
    wanted_NTC = network(feature_NTD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_NTC = network(feature_NTD)
    assert (x_NTC - wanted_NTC).abs().max().item() < 0.05
    x_NTC.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_the_papers_size() -> None:
    with torch.device("meta"):
        network = MotionDecoder(2048, hidden=512, layers=2, channels=150)
    frame = 2048 * 512 + 512 + 2 * 512 + 512 * 512 + 512
    gru = 2 * 3 * 512 * (512 + 512 + 2)
    assert sum(p.numel() for p in network.parameters()) == frame + gru + 512 * 150 + 150
