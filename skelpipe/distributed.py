"""Ranks: which of them this process is, what is summed over all, and how they fail together.

A launcher (`torchrun`, or `srun` with the same variables) sets RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT; without them there is one rank and everything here does nothing.
Collectives are sums alone, so that two ranks that hold halves compute what one computes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from skelpipe.errors import UserError

_PATIENCE = timedelta(minutes=30)
"""For what one rank does alone while the others wait: reading a set, saving, validating."""


@dataclass(frozen=True)
class Launch:
    """What the launcher says of this process.

    Attributes:
        rank, world: Of all processes.
        local_rank: On this host: its GPU.
        name: Of the launch, the same on all ranks and after a restart; empty where it has none.
        restarts: How often the launcher has started the ranks anew.
    """

    rank: int
    world: int
    local_rank: int
    name: str
    restarts: int


def launch() -> Launch:
    """This process's place as its launcher's environment variables tell it.

    Raises:
        UserError: A variable is missing or no number.
    """
    environment = os.environ
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return Launch(0, 1, 0, "", 0)
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if world > 1:
            environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise UserError(
            "the launcher's environment is incomplete",
            found=error,
            expected="RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets",
            remedy="torchrun --standalone --nproc-per-node 2 -m -- skelpipe.cli pretrain …",
        ) from error
    return Launch(rank, world, local_rank, environment.get("TORCHELASTIC_RUN_ID", ""), restarts)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


_swift: dist.ProcessGroup | None = None
"""For sums within a step: as fast as the device has, and soon out of patience."""


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[None]:
    """Join the other ranks for the time of the block; nothing where there is one rank.

    Args:
        device: Of this rank: in a step NCCL joins GPUs, Gloo CPUs.
        timeout: Seconds after which a rank that others wait for in a step is given up.

    Raises:
        UserError: Another rank was lost or does not answer.
    """
    global _swift
    if launch().world == 1:
        yield
        return
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what names no device must not open the first GPU as well
    try:
        # Ranks start at their own pace: only when all are here does the short timeout apply.
        _meet(launch())
        backend = "nccl" if device.type == "cuda" else "gloo"
        _swift = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout))
        yield
    except RuntimeError as error:
        # Gloo tells of a lost or silent peer by a plain RuntimeError, NCCL by a kind of it.
        lost = isinstance(error, dist.DistError) or any(
            word in str(error).lower() for word in ("gloo", "nccl", "connection", "timed out")
        )
        if not lost:
            raise
        raise UserError(
            f"rank {launch().rank} stopped: another rank was lost or does not answer",
            found=str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0],
            expected=f"an answer within {timeout:g} s",
            remedy="see what the first rank that failed says; continue with "
            "`skelpipe pretrain --resume` from the last checkpoint, if there is one",
        ) from error
    finally:
        _swift = None
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(place: Launch) -> None:
    """Wait for the other ranks of this start of the launch.

    A launcher that starts ranks anew keeps its store, and in it the addresses of ranks that are
    gone: so the names that ranks meet under have the number of the start before them.
    """
    store, _, _ = next(rendezvous("env://", place.rank, place.world, timeout=_PATIENCE))
    dist.init_process_group(
        "gloo",
        store=PrefixStore(f"start {place.restarts}", store),
        rank=place.rank,
        world_size=place.world,
        timeout=_PATIENCE,
    )
    dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks, in place."""
    if world() > 1:
        dist.all_reduce(tensor, group=_swift)
    return tensor


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone(memory_format=torch.contiguous_format))


def sum_over_ranks_with_gradient(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the ranks, for losses that are a rank's share of the global one.

    What a rank adds reaches the losses of all: its gradient is the sum of theirs. So where one rank
    goes back through the sum, all must.
    """
    if world() == 1:
        return tensor
    total: Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks in their order, and where this rank's begin; ranks may differ in them.

    Args:
        rows: Shape (n, ...), n of this rank.

    Returns:
        Shape (sum of n, ...), and the number of rows of the ranks before this one.
    """
    if world() == 1:
        return rows, 0
    counts = torch.zeros(world(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    first = int(sum_over_ranks(counts)[: rank()].sum())
    gathered = rows.new_zeros(int(counts.sum()), *rows.shape[1:])
    gathered[first : first + len(rows)] = rows
    return sum_over_ranks(gathered), first


def sum_gradients(module: nn.Module) -> None:
    """Sum the gradients of a module over the ranks; a parameter without one gets zeros."""
    for parameter in module.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if world() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


def on_any_rank(*flags: bool, device: torch.device) -> list[bool]:
    """Which of the flags are raised on some rank."""
    if world() == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int64, device=device)
    return [count > 0 for count in sum_over_ranks(counts).tolist()]


def wait_for_all() -> None:
    """Wait, for up to half an hour, until every rank is here."""
    if world() > 1:
        dist.barrier()


def first_rank_alone(work: Callable[[], str]) -> str:
    """Let rank 0 do something and tell all what it gives.

    Raises:
        UserError: What rank 0 raised, on every rank.
    """
    if world() == 1:
        return work()
    error: UserError | None = None
    answer = ""
    if rank() == 0:
        try:
            answer = "=" + work()
        except UserError as raised:
            error, answer = raised, "!" + str(raised)
    length = torch.tensor([len(answer.encode())])
    dist.broadcast(length, 0)
    text = torch.zeros(int(length), dtype=torch.uint8)
    if rank() == 0:
        text = torch.frombuffer(bytearray(answer.encode()), dtype=torch.uint8)
    dist.broadcast(text, 0)
    if error is not None:
        raise error
    answer = bytes(text.tolist()).decode()
    if answer.startswith("!"):
        raise UserError(answer[1:])
    return answer[1:]
