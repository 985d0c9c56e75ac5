from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
import torch
from builders import CPU, write_set

from skelpipe.errors import UserError
from skelpipe.random import fold
from skelpipe.stream.loader import Loader
from skelpipe.stream.source import Resident, open_source, select


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    folder = write_set(tmp_path_factory.mktemp("set") / "toy", train=13, test=4)
    return Resident(folder, select(folder, "train"), CPU)


def rows(loader: Loader, steps: int) -> list[tuple[list[int], list[int]]]:
    batches = [next(loader) for _ in range(steps)]
    return [(batch.row_N.tolist(), batch.key_N.tolist()) for batch in batches]


def test_an_epoch_visits_full_batches_of_different_samples(source: Resident) -> None:
    loader = Loader(source, 4, seed=3)
    assert loader.steps == 3
    seen = [row for batch, _ in rows(loader, 3) for row in batch]
    assert len(set(seen)) == 12
    assert (loader.epoch, loader.step) == (1, 0)
    assert {row for batch, _ in rows(loader, 3) for row in batch} != set()


def test_resuming_at_any_step_gives_the_same_rest(source: Resident) -> None:
    whole = rows(Loader(source, 4, seed=3), 9)
    for epoch, step in product(range(3), range(3)):
        begun = epoch * 3 + step
        resumed = Loader(source, 4, seed=3, epoch=epoch, step=step)
        assert rows(resumed, 9 - begun) == whole[begun:]
        moved = Loader(source, 4, seed=3)
        next(moved)
        moved.epoch, moved.step = epoch, step
        assert rows(moved, 9 - begun) == whole[begun:]


def test_the_state_is_three_integers(source: Resident) -> None:
    loader = Loader(source, 4, seed=3)
    plain = {field.name for field in fields(loader) if isinstance(getattr(loader, field.name), int)}
    assert plain - {"batch", "rank", "world", "workers"} == {"seed", "epoch", "step"}


def test_keys_are_a_function_of_seed_epoch_and_sample(source: Resident) -> None:
    loader = Loader(source, 4, seed=3)
    for number in range(6):
        batch = next(loader)
        assert torch.equal(batch.key_N, fold(3, number // 3, batch.row_N))


def test_batches_differ_between_epochs_and_seeds(source: Resident) -> None:
    first = rows(Loader(source, 4, seed=3), 3)
    assert rows(Loader(source, 4, seed=3, epoch=1), 3) != first
    assert rows(Loader(source, 4, seed=4), 3) != first
    assert rows(Loader(source, 4, seed=3), 3) == first


def test_names_of_a_batch(source: Resident) -> None:
    loader = Loader(source, 4, seed=3)
    names = loader.keys(0, 1)
    next(loader)
    batch = next(loader)
    name_of_row = dict(
        zip(source.table["row"].to_pylist(), source.table["key"].to_pylist(), strict=True)
    )
    assert names == [name_of_row[row] for row in batch.row_N.tolist()]


def test_a_batch_larger_than_the_part_is_refused(source: Resident) -> None:
    with pytest.raises(UserError, match="13 samples"):
        Loader(source, 14, seed=0)


def test_held_out_subjects_change_no_sample_number(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "toy")
    table = select(folder, "train", without=[2])
    loader = Loader(open_source(folder, table, CPU, "mapped"), 3, seed=0)
    batch = next(loader)
    every = select(folder, "train")
    known = dict(zip(every["row"].to_pylist(), every["frames"].to_pylist(), strict=True))
    wanted = [known[row] for row in batch.row_N.tolist()]
    assert batch.frames_N.tolist() == wanted
