"""The decoder of motion prediction, against its gates written out pose by pose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from skelpipe.models.residual_gru import ResidualGRU


def decoder(step: float = 1.0) -> ResidualGRU:
    """One whose readout has been moved from zero."""
    torch.manual_seed(0)
    network = ResidualGRU(5, hidden=4, channels=3, step=step).double()
    nn.init.normal_(network.readout.weight)
    nn.init.normal_(network.readout.bias)
    return network


def literally(network: ResidualGRU, state_D: Tensor, pose_C: Tensor, frames: int) -> Tensor:
    """Gates of one sample, from the state's own tensors."""
    w = network.state_dict()
    hidden = w["start.weight"] @ state_D + w["start.bias"]
    found = []
    for _ in range(frames):
        given = (w["cell.weight_ih"] @ pose_C + w["cell.bias_ih"]).split(4)
        kept = (w["cell.weight_hh"] @ hidden + w["cell.bias_hh"]).split(4)
        reset, update = (torch.sigmoid(given[n] + kept[n]) for n in (0, 1))
        new = torch.tanh(given[2] + reset * kept[2])
        hidden = (1 - update) * new + update * hidden
        pose_C = pose_C + network.step * (w["readout.weight"] @ hidden + w["readout.bias"])
        found.append(pose_C)
    return torch.stack(found)


@pytest.mark.parametrize("frames", [1, 6])
def test_each_pose_is_added_to_the_one_predicted_before(frames: int) -> None:
    network = decoder(step=0.3)
    state_ND, pose_NC = torch.randn(2, 5).double(), torch.randn(2, 3).double()
    found = network(state_ND, pose_NC, frames)
    assert found.shape == (2, frames, 3)
    for number in range(2):
        wanted = literally(network, state_ND[number], pose_NC[number], frames)
        torch.testing.assert_close(found[number], wanted)


def test_an_untrained_decoder_stands_still_and_can_learn() -> None:
    network = ResidualGRU(5, hidden=4, channels=3)
    pose_NC = torch.randn(2, 3)
    found = network(torch.randn(2, 5), pose_NC, 4)
    assert torch.equal(found, pose_NC[:, None].expand(2, 4, 3))
    found.square().sum().backward()
    assert network.readout.weight.grad is not None
    assert bool(network.readout.weight.grad.any())


def test_gradients_reach_what_the_first_pose_was_predicted_from() -> None:
    network = decoder()
    state_ND = torch.randn(1, 5).double().requires_grad_()
    network(state_ND, torch.randn(1, 3).double(), 5)[:, -1].sum().backward()
    assert state_ND.grad is not None
    assert bool(state_ND.grad.all())
