from __future__ import annotations

import gc
import os
import re
import threading
import time
from dataclasses import fields
from itertools import chain, product
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from builders import CPU, write_set

from skelpipe.errors import UserError
from skelpipe.random import fold
from skelpipe.shards.index import read_index
from skelpipe.stream.loader import Loader
from skelpipe.stream.order import Tail, permutation
from skelpipe.stream.source import Batch, Mapped, Resident, open_source, select


class Numbers:
    """A source of samples without coordinates, where only the order matters."""

    device = CPU

    def __init__(self, count: int) -> None:
        self.table = pa.table(
            {"key": [f"k{number}" for number in range(count)], "row": range(5, 5 + count)}
        )

    def __len__(self) -> int:
        return len(self.table)

    def take(self, places: torch.Tensor, key_N: torch.Tensor | None = None) -> Batch:
        ones = torch.ones_like(places)
        return Batch(
            flat_RJC=torch.zeros(0, 25, 3),
            present_R=torch.zeros(0, dtype=torch.bool),
            start_N=ones,
            frames_N=ones,
            bodies_N=ones,
            label_N=ones,
            row_N=places + 5,
            key_N=torch.zeros_like(places) if key_N is None else key_N,
            key=torch.zeros((), dtype=torch.int64),
            valid_N=ones.bool(),
        )


class Failing(Numbers):
    """Forty samples, of which one is damaged."""

    def __init__(self, bad: int) -> None:
        super().__init__(40)
        self.bad = bad

    def take(self, places: torch.Tensor, key_N: torch.Tensor | None = None) -> Batch:
        if self.bad in places.tolist():
            raise UserError("the sample is damaged")
        return super().take(places, key_N)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    folder = write_set(tmp_path_factory.mktemp("set") / "toy", train=13, test=4)
    return Resident(folder, select(folder, "train"), CPU)


Rows = list[tuple[int, int, bool]]


def rows(loader: Loader, steps: int) -> list[Rows]:
    """(number, key, counts) of every sample of the next batches."""
    found = []
    for _ in range(steps):
        batch = next(loader)
        columns = (batch.row_N.tolist(), batch.key_N.tolist(), batch.valid_N.tolist())
        found.append(list(zip(*columns, strict=True)))
    return found


def reading_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "skelpipe-ahead" in thread.name]


def expect_no_threads() -> None:
    until = time.monotonic() + 30
    while reading_ahead() and time.monotonic() < until:
        time.sleep(0.01)
    assert not reading_ahead()


def test_an_epoch_visits_full_batches_of_different_samples(source: Resident) -> None:
    loader = Loader(source, 4, seed=3)
    assert loader.steps == 3
    assert loader.total_steps(5) == 15
    seen = [row for batch in rows(loader, 3) for row, _, _ in batch]
    assert len(set(seen)) == 12
    assert (loader.epoch, loader.step) == (1, 0)


@pytest.mark.parametrize("tail", ["drop", "carry", "pad"])
@pytest.mark.parametrize("count", [1, 7, 1000, 10_007])
def test_batches_depend_neither_on_ranks_nor_on_threads(count: int, tail: Tail) -> None:
    numbers, compared = Numbers(count), 0
    for world, workers in product(range(1, 9), range(4)):
        for batch in (world, 3 * world) if not workers else (world if count < 24 else 3 * world,):
            if (tail == "drop" and batch > count) or (tail == "carry" and world > count):
                continue
            alone = Loader(numbers, batch, 9, tail=tail)
            begin = max(alone.steps - 2, 0)  # the end of an epoch, and what comes after
            ranks = [
                Loader(
                    numbers, batch, 9, step=begin, tail=tail, rank=r, world=world, workers=workers
                )
                for r in range(world)
            ]
            alone.step = begin
            wanted, shares = rows(alone, 4), [rows(loader, 4) for loader in ranks]
            assert [[*chain(*parts)] for parts in zip(*shares, strict=True)] == wanted
            assert {(rank.epoch, rank.step) for rank in ranks} == {(alone.epoch, alone.step)}
            assert ranks[-1].order_digest() == alone.order_digest()
            compared += 1
    assert compared >= (4 if count == 1 else 28)
    del ranks
    expect_no_threads()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("tail", "steps"), [("drop", 3), ("carry", 3), ("pad", 4)])
def test_resuming_at_any_step_gives_the_same_rest(
    source: Resident, tail: Tail, steps: int, workers: int
) -> None:
    def loader(epoch: int = 0, step: int = 0) -> Loader:
        return Loader(source, 4, 3, tail=tail, epoch=epoch, step=step, workers=workers)

    first, states, whole = loader(), [], []
    for _ in range(9):
        states.append((first.epoch, first.step))
        whole += rows(first, 1)
    assert states[steps][0] == 1
    moved = loader()
    for begun, (epoch, step) in enumerate(states):
        assert rows(loader(epoch, step), 9 - begun) == whole[begun:]
        moved.epoch, moved.step = epoch, step
        assert rows(moved, 9 - begun) == whole[begun:]


def test_a_large_set_is_resumed_where_it_stood() -> None:
    loader = Loader(Numbers(114_000), 768, 3, epoch=37, step=99, rank=1, world=4)
    begin = 99 * 768 + 192
    wanted = permutation(114_000, 3, 37)[begin : begin + 192] + 5
    assert torch.equal(next(loader).row_N, wanted)


def test_a_small_carried_epoch_goes_on_where_it_stood() -> None:
    loader = Loader(Numbers(3), 8, 0, tail="carry")
    assert loader.steps == 0
    assert [len(batch) for batch in rows(loader, 3)] == [8, 8, 8]
    assert loader.epoch == 10
    assert loader.total_steps(9) == 3
    assert rows(Loader(Numbers(3), 8, 0, tail="carry", epoch=7), 1) == rows(
        Loader(Numbers(3), 8, 0, tail="carry", epoch=7, step=0, workers=1), 1
    )


def test_the_state_is_three_integers(source: Resident) -> None:
    loader = Loader(source, 4, seed=3)
    plain = {field.name for field in fields(loader) if isinstance(getattr(loader, field.name), int)}
    assert plain - {"batch", "rank", "world", "workers"} == {"seed", "epoch", "step"}


@pytest.mark.parametrize("tail", ["drop", "carry"])
def test_keys_are_a_function_of_seed_epoch_and_sample(source: Resident, tail: Tail) -> None:
    loader = Loader(source, 4, seed=3, tail=tail)
    found = [next(loader) for _ in range(6)]
    numbers = torch.cat([batch.row_N for batch in found])
    length = 12 if tail == "drop" else 13
    for place, key in enumerate(torch.cat([batch.key_N for batch in found]).tolist()):
        assert key == int(fold(3, place // length, numbers[place]))


def test_batches_differ_between_epochs_and_seeds(source: Resident) -> None:
    first = rows(Loader(source, 4, seed=3), 3)
    assert rows(Loader(source, 4, seed=3, epoch=1), 3) != first
    assert rows(Loader(source, 4, seed=4), 3) != first
    assert rows(Loader(source, 4, seed=3), 3) == first


@pytest.mark.parametrize("rank", [0, 1])
def test_names_are_those_of_the_global_batch(source: Resident, rank: int) -> None:
    loader = Loader(source, 4, seed=3, rank=rank, world=2)
    names = loader.keys(0, 1)
    next(loader)
    numbers, known = source.table["row"].to_pylist(), source.table["key"].to_pylist()
    name_of = dict(zip(numbers, known, strict=True))
    assert len(names) == 4
    assert names[2 * rank : 2 * rank + 2] == [name_of[row] for row in next(loader).row_N.tolist()]


def test_the_digest_tells_orders_apart(source: Resident) -> None:
    def digest(count: int = 40, batch: int = 8, seed: int = 1, tail: Tail = "drop") -> str:
        return Loader(Numbers(count), batch, seed, tail=tail).order_digest()

    others = {digest(41), digest(batch=4), digest(seed=2), digest(tail="carry")}
    assert len({digest(), *others}) == 5
    assert digest() == Loader(Numbers(40), 8, 1, epoch=3, step=2, workers=1).order_digest()
    assert re.fullmatch("[0-9a-f]{16}", digest())
    assert Loader(source, 4, 3).order_digest() == "6535c4e2c1ebdc82"


def test_a_batch_larger_than_the_part_is_refused(source: Resident) -> None:
    with pytest.raises(UserError, match="13 samples"):
        Loader(source, 14, seed=0)
    with pytest.raises(UserError, match=r"larger than the training part[^$]*--batch 4"):
        Loader(source, 16, seed=0, rank=1, world=4)
    with pytest.raises(UserError, match="at most 13 ranks"):
        Loader(source, 16, seed=0, rank=1, world=16)


def test_a_batch_that_ranks_cannot_share_is_refused(source: Resident) -> None:
    with pytest.raises(UserError, match=r"shared evenly by 4 ranks[^$]*--batch 8 or 12"):
        Loader(source, 10, seed=0, world=4)
    with pytest.raises(UserError, match="--batch 4,"):
        Loader(source, 3, seed=0, world=4)


def test_more_ranks_than_samples_are_for_evaluation_alone() -> None:
    for tail in ("drop", "carry"):
        with pytest.raises(UserError, match="at most 3 ranks"):
            Loader(Numbers(3), 8, 0, tail=tail, world=8)  # type: ignore[arg-type]
    ranks = [Loader(Numbers(3), 8, 0, tail="pad", rank=rank, world=8) for rank in range(8)]
    batches = [next(loader) for loader in ranks]
    assert [int(batch.valid_N) for batch in batches] == [1, 1, 1, 0, 0, 0, 0, 0]
    assert {int(batch.row_N) for batch in batches[:3]} == {5, 6, 7}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_fails_fails_at_its_batch(workers: int) -> None:
    order, bad = permutation(40, 2, 0).tolist(), 9
    loader = Loader(Failing(order[2 * bad]), 2, 2, workers=workers)
    rows(loader, bad)
    for _ in range(2):  # and again, if asked again
        with pytest.raises(UserError, match="the sample is damaged"):
            next(loader)
        assert (loader.epoch, loader.step) == (0, bad)
    loader.step = bad + 1
    assert [row - 5 for row, _, _ in rows(loader, 1)[0]] == order[2 * bad + 2 : 2 * bad + 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_damaged_in_the_middle_of_an_epoch(tmp_path: Path, workers: int) -> None:
    folder = write_set(tmp_path / "toy", train=40)
    source = Mapped(folder, select(folder, "train"), CPU)
    loader = Loader(source, 4, seed=0, workers=workers)
    name = loader.keys(0, 7)[2]
    row = next(row for row in read_index(folder).to_pylist() if row["key"] == name)
    with (folder / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + row["size"] - 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 8]))
    rows(loader, 7)
    with pytest.raises(UserError, match=f"the sample {name} is damaged"):
        next(loader)
    loader.step = 8
    rows(loader, 2)


def test_threads_end_with_the_loader() -> None:
    loader = Loader(Numbers(40), 4, 0, workers=3)
    wanted = rows(Loader(Numbers(40), 4, 0), 8)
    assert rows(loader, 4) == wanted[:4]
    assert len(reading_ahead()) == 3
    loader.close()
    assert not reading_ahead()
    assert rows(loader, 4) == wanted[4:]
    loader.close()
    assert not reading_ahead()
    loader = Loader(Failing(30), 4, 0, workers=3)
    with pytest.raises(UserError):
        rows(loader, 10)
    del loader
    gc.collect()
    expect_no_threads()


def memory() -> tuple[int, int, int]:
    """Resident bytes, open descriptors and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGESIZE"),
        len(os.listdir("/proc/self/fd")),
        len(threading.enumerate()),
    )


def shared_memory() -> set[str]:
    """Files of shared memory that this process has mapped; other tests may run beside it."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "/dev/shm" in line}


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_leave_nothing_behind(tmp_path: Path, workers: int) -> None:
    shared = shared_memory()
    folder = write_set(tmp_path / "toy")
    source = open_source(folder, select(folder, "train"), CPU, "mapped")
    loader = Loader(source, 4, seed=0, tail="carry", workers=workers)

    def until(epoch: int) -> tuple[int, int, int]:
        while loader.epoch < epoch:
            next(loader)
        gc.collect()
        return memory()

    bytes_before, files_before, threads_before = until(50)
    bytes_after, files_after, threads_after = until(250)
    assert (files_after, threads_after) == (files_before, threads_before)
    assert bytes_after < 1.01 * bytes_before
    loader.close()
    assert shared_memory() <= shared


def test_batches_in_use_are_never_written_over(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "toy")
    table = select(folder, "train")
    loader = Loader(open_source(folder, table, CPU, "mapped"), 3, seed=0, workers=2)
    kept = [next(loader).flat_RJC for _ in range(20)]
    fresh = Loader(open_source(folder, table, CPU, "mapped"), 3, seed=0)
    assert all(torch.equal(batch, next(fresh).flat_RJC) for batch in kept)


def test_held_out_subjects_change_no_sample_number(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "toy")
    table = select(folder, "train", without=[2])
    loader = Loader(open_source(folder, table, CPU, "mapped"), 3, seed=0)
    batch = next(loader)
    every = select(folder, "train")
    known = dict(zip(every["row"].to_pylist(), every["frames"].to_pylist(), strict=True))
    wanted = [known[row] for row in batch.row_N.tolist()]
    assert batch.frames_N.tolist() == wanted
