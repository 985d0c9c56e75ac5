"""The encoder, against a bidirectional GRU that steps through frames as the released code does."""

from __future__ import annotations

from math import sqrt
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from skelpipe.models.gru import SkeletonGRU, released_names

CHANNELS, HIDDEN = 10, 16


def encoder(
    layers: int = 3,
    direction: Literal["forward", "both"] = "forward",
    channels: int = CHANNELS,
    hidden: int = HIDDEN,
) -> SkeletonGRU:
    torch.manual_seed(0)
    return SkeletonGRU(channels, hidden=hidden, layers=layers, direction=direction)


def torchs(network: SkeletonGRU, layers: int) -> nn.GRU:
    """A bidirectional GRU with the encoder's weights."""
    sizes = network.input_norm.num_features, network.hidden, layers
    theirs = nn.GRU(*sizes, batch_first=True, bidirectional=True)
    state, names = network.state_dict(), released_names(layers)
    theirs.load_state_dict({released: state[ours] for released, ours in names.items()})
    return theirs.to(state["input_norm.weight"].dtype)


def normalised(x_NTC: Tensor) -> Tensor:
    mean, variance = x_NTC.mean((0, 1)), x_NTC.var((0, 1), correction=0)
    return (x_NTC - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize(("layers", "frames"), [(1, 1), (1, 9), (2, 2), (3, 64)])
def test_features_and_gradients_are_those_of_stepping_frame_by_frame(
    layers: int, frames: int
) -> None:
    ours = encoder(layers)
    theirs = torchs(ours, layers)
    x_NTC = 3 * torch.randn(4, frames, CHANNELS) + 1
    weight_NTD = torch.randn(4, frames, 2 * HIDDEN)

    state, features = None, []
    for frame in range(frames):
        feature, state = theirs(normalised(x_NTC)[:, frame : frame + 1], state)
        features.append(feature)
    wanted_NTD = torch.cat(features, 1)
    (wanted_NTD * weight_NTD).sum().backward()

    feature_NTD = ours(x_NTC)
    assert feature_NTD.shape == (4, frames, 2 * HIDDEN)
    assert (feature_NTD - wanted_NTD).abs().max().item() < 1e-5
    assert torch.equal(ours.pool(feature_NTD), feature_NTD[:, -1])
    (feature_NTD * weight_NTD).sum().backward()
    for released, name in released_names(layers).items():
        found, wanted = ours.get_parameter(name).grad, theirs.get_parameter(released).grad
        assert found is not None
        assert wanted is not None
        scale = max(1.0, float(wanted.abs().max()))
        assert (found - wanted).abs().max().item() < 1e-5 * scale, name


def test_released_names_are_those_of_torch_and_all_of_ours_but_the_norm() -> None:
    names = released_names(3)
    theirs = nn.GRU(CHANNELS, HIDDEN, 3, bidirectional=True)
    assert set(names) == set(theirs.state_dict())
    ours = {name for name in encoder(3).state_dict() if not name.startswith("input_norm.")}
    assert sorted(names.values()) == sorted(ours)


@pytest.mark.parametrize("changed", [0, 4, 11])
def test_a_frame_reaches_no_frame_before_it_in_either_half(changed: int) -> None:
    network = encoder().eval()  # in training the norm's statistics know all frames
    x_NTC = torch.randn(2, 12, CHANNELS)
    other_NTC = x_NTC.clone()
    other_NTC[:, changed] += 1
    moved_NTD = (network(x_NTC) - network(other_NTC)).abs()
    for half in moved_NTD.split(HIDDEN, -1):
        assert not bool(half[:, :changed].any())
        assert bool((half[:, changed:].amax((0, 2)) > 0).all())


def test_both_directions_are_torchs_bidirectional_gru() -> None:
    network = encoder(direction="both").double()
    x_NTC = torch.randn(3, 7, CHANNELS, dtype=torch.float64)
    wanted_NTD, last = torchs(network, 3)(normalised(x_NTC))
    feature_NTD = network(x_NTC)
    assert torch.allclose(feature_NTD, wanted_NTD, atol=1e-12)
    # Torch tells the last layer's state of each direction after all frames it was given.
    assert torch.allclose(network.pool(feature_NTD), torch.cat([last[-2], last[-1]], -1))


def test_a_prompt_counts_behind_the_norm_alone() -> None:
    network = encoder().double()
    x_NTC = torch.randn(3, 7, CHANNELS, dtype=torch.float64)
    prompt_C = torch.randn(CHANNELS, dtype=torch.float64)
    plain_NTD = network(x_NTC)
    assert torch.allclose(network(x_NTC + prompt_C), plain_NTD)
    theirs = torchs(network, 3)
    pairs = [theirs(normalised(x_NTC)[:, :1] + prompt_C)[0], network(x_NTC, prompt_C)[:, :1]]
    assert torch.allclose(*pairs)
    assert (pairs[1] - plain_NTD[:, :1]).abs().max().item() > 0.01


def test_initial_weights_are_xavier_uniform_and_biases_torchs() -> None:
    network = encoder(2, channels=30, hidden=64)
    names = released_names(2).values()
    for name in names:
        parameter = network.get_parameter(name)
        bound = 1 / sqrt(64) if parameter.dim() == 1 else sqrt(6 / sum(parameter.shape))
        assert 0.95 * bound < parameter.abs().max().item() <= bound, name
        if parameter.dim() == 2:
            assert parameter.shape[0] == 3 * 64
            assert parameter.std().item() == pytest.approx(bound / sqrt(3), rel=0.05)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_the_papers_size(direction: Literal["forward", "both"]) -> None:
    with torch.device("meta"):
        network = SkeletonGRU(150, hidden=1024, layers=3, direction=direction)
    count = sum(p.numel() for p in network.parameters())
    products = sum(p.numel() for p in network.parameters() if p.dim() == 2)
    assert count / 1e6 == pytest.approx(45.0, abs=0.05)
    assert 64 * products / 1e9 == pytest.approx(2.88, abs=0.005)


def test_half_precision_learns_in_float32() -> None:
    network = encoder()
    x_NTC = torch.randn(3, 7, CHANNELS)
    wanted_NTD = network(x_NTC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature_NTD = network(x_NTC)
    assert not torch.equal(feature_NTD, wanted_NTD)
    assert (feature_NTD - wanted_NTD).abs().max().item() < 0.02
    feature_NTD.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())
