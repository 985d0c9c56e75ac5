from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import nn

from skelpipe.models.heads import Projector, PrototypeHead


def head() -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(16, hidden=24, bottleneck=8, prototypes=12, init_std=0.02)


def test_bottleneck_and_prototypes_have_unit_length() -> None:
    network = head()
    bottleneck = network(torch.randn(5, 16))
    assert bottleneck.shape == (5, 8)
    assert torch.allclose(bottleneck.norm(dim=1), torch.ones(5))
    assert torch.allclose(network.directions().norm(dim=1), torch.ones(12))
    assert (bottleneck @ network.directions().T).abs().max().item() <= 1 + 1e-6


def test_logits_equal_a_weight_normalised_layer_of_gain_1() -> None:
    network = head()
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 12, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original0.fill_(1)
        layer.parametrizations.weight.original1.copy_(network.prototypes)
    bottleneck = network(torch.randn(5, 16))
    assert torch.allclose(bottleneck @ network.directions().T, layer(bottleneck), atol=1e-6)


def test_three_layers_with_gelu_between() -> None:
    network = head()
    kinds = [type(layer) for layer in network.mlp]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    for layer in network.mlp:
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert not bool(layer.bias.any())


def test_half_precision_gives_float32_of_unit_length() -> None:
    network = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bottleneck = network(torch.randn(5, 16))
    assert bottleneck.dtype == torch.float32
    assert torch.allclose(bottleneck.norm(dim=1), torch.ones(5))


def test_projector_is_two_layers_of_which_the_last_is_xavier_uniform() -> None:
    torch.manual_seed(0)
    network = Projector(64, out=32)
    state = network.state_dict()
    x_ND = torch.randn(5, 64)
    hidden = (x_ND @ state["mlp.0.weight"].T + state["mlp.0.bias"]).clamp(min=0)
    out = hidden @ state["mlp.2.weight"].T + state["mlp.2.bias"]
    assert torch.allclose(network(x_ND), out / out.norm(dim=1, keepdim=True), atol=1e-6)
    for name, tensor in state.items():
        bound = sqrt(6 / (64 + 32)) if name == "mlp.2.weight" else 1 / sqrt(64)
        assert 0.9 * bound < float(tensor.abs().max()) <= bound, name
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x_ND).dtype == torch.float32
    assert network.double()(x_ND.double()).dtype == torch.float64
