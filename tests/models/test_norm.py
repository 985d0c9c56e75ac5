"""Batch normalisation: as torch's on one rank, and on two ranks as on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_distributed import torchrun
from torch import Tensor, nn

from skelpipe.models.norm import BatchNorm

# Each rank takes its rows of two steps through a network with two norms: the first rank
# has fewer, and in the second step none.
WORKER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from skelpipe import distributed
from test_norm import network, step

torch.set_num_threads(1)
folder = Path(sys.argv[1])
with distributed.process_group(torch.device("cpu"), 60):
    rank = distributed.rank()
    net, found = network(), {}
    for name, (x, target) in load_file(folder / "steps.safetensors").items():
        first = {"step0": 3, "step1": 0}[name]
        mine = slice(0, first) if rank == 0 else slice(first, None)
        found |= step(net, name, x[mine], target[mine], distributed.sum_gradients)
    found |= {"state." + name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(found, folder / f"rank{rank}.safetensors")
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (BatchNorm(5), nn.Linear(5, 4), BatchNorm(4), nn.ReLU(), nn.Linear(4, 5))
    return nn.Sequential(*layers).double()


def step(net: nn.Module, name: str, x: Tensor, target: Tensor, after: object) -> dict[str, Tensor]:
    """Outputs and gradients of a loss that is a sum over rows: a rank's is its share."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    out = net(x)
    (out * target).square().sum().backward()
    assert callable(after)
    after(net)
    found = {f"{name}.grad.{key}": p.grad.clone() for key, p in net.named_parameters()}
    return found | {f"{name}.out": out.detach(), f"{name}.input": x.grad}


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    # The mean is large beside the deviation, as in coordinates of a distant body.
    x_far, target = torch.randn(2, 2, 10, 6, 5, dtype=torch.float64)
    steps = {f"step{n}": torch.stack([x_far[n] + 50, target[n]]) for n in range(2)}
    (tmp_path / "worker.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + WORKER
    )
    save_file(steps, tmp_path / "steps.safetensors")
    code, out = torchrun(tmp_path / "worker.py", tmp_path)
    assert code == 0, out
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]

    net, wanted = network(), {}
    for name, (x, target) in steps.items():
        wanted |= step(net, name, x, target, lambda net: None)
    wanted |= {"state." + name: tensor for name, tensor in net.state_dict().items()}
    assert set(ranks[0]) == set(wanted)
    for name, tensor in wanted.items():
        shared = name.endswith((".out", ".input"))
        found = [torch.cat([rank[name] for rank in ranks])] if shared else [r[name] for r in ranks]
        for one in found:
            scale = max(1.0, float(tensor.abs().max()))
            assert float((one - tensor).abs().max()) < 1e-12 * scale, name


def test_one_rank_normalises_as_torch_does() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(6).double(), nn.BatchNorm1d(6).double()
    theirs.load_state_dict(ours.state_dict())  # the same names
    for _ in range(3):
        x = torch.randn(4, 7, 6, dtype=torch.float64)
        assert torch.allclose(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2), atol=1e-12)
    ours.eval(), theirs.eval()
    x = torch.randn(4, 2, 3, 6, dtype=torch.float64)
    assert torch.allclose(ours(x).view(-1, 6), theirs(x.view(-1, 6)), atol=1e-12)
    for name, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-12), name


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_is_normalised_in_float32(training: bool) -> None:
    norm = BatchNorm(3).train(training)
    x = torch.randn(5, 4, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.float32
    assert norm.running_mean is not None
    assert norm.running_mean.dtype == torch.float32
    assert torch.equal(out, BatchNorm(3).train(training)(x.float()))


def test_one_row_has_no_variance() -> None:
    with pytest.raises(ValueError, match="more than 1 value"):
        BatchNorm(3)(torch.randn(1, 3))
