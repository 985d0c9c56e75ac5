from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from builders import CPU, tiny_recipe, write_set

from skelpipe.checkpoint import Run, read_run
from skelpipe.errors import UserError
from skelpipe.report.loggers import open_logger
from skelpipe.train import read_metrics, start_run, train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_set(tmp_path / "toy")


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Run:
    return start_run(tmp_path / "run", tiny_recipe(), data, seed=1)


def logged(run: Run, data: Path, name: str, stop_after: int | None = None) -> None:
    with open_logger(name, run) as log:
        train(run, data, device=CPU, report=log, stop_after=stop_after)


def test_tensorboard_has_what_the_metrics_have(run: Run, data: Path) -> None:
    logged(run, data, "tensorboard")
    assert scalars(run) == from_metrics(run)


def test_tensorboard_forgets_the_steps_that_are_done_again(run: Run, data: Path) -> None:
    # As after a kill: checkpoint 3, events until 5 of values that will not come again.
    logged(run, data, "tensorboard", stop_after=3)
    with open_logger("tensorboard", run) as log:
        for step in (4, 5):
            log({"step": step, "loss": 99.0, "stray": 1.0})
    logged(read_run(run.folder), data, "tensorboard")
    found = scalars(run)
    found.pop("stray")
    assert found == from_metrics(run)


def scalars(run: Run) -> dict[str, list[tuple[int, float]]]:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the dev extra"
    )
    folder = events.EventAccumulator(str(run.folder / "tensorboard"))
    folder.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value, rel=1e-6)) for event in folder.Scalars(tag)]
        for tag in folder.Tags()["scalars"]
    }


def from_metrics(run: Run) -> dict[str, list[tuple[int, float]]]:
    records = read_metrics(run.folder)
    names = records[0].keys() - {"step"}
    return {name: [(int(r["step"]), r[name]) for r in records] for name in names}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in ("tensorboard", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(UserError, match=f"--log {name} needs a package") as error,
        open_logger(name, run),
    ):
        pass
    assert f"skelpipe[{name}]" in str(error.value)


def test_an_unknown_logger_suggests_the_nearest(run: Run) -> None:
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        open_logger("wand", run)


class FakeWandb(ModuleType):
    """Takes the calls that we make and keeps them."""

    class Error(Exception):
        """As the real one's."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: list[type[BaseException] | None] = []
        self.fault = ""

    def Settings(self, **settings: str) -> dict[str, str]:  # noqa: N802 -- the real one's name
        return settings

    def init(self, **words: Any) -> FakeWandb:
        if self.fault:
            raise self.Error(self.fault)
        self.opened.append(words)
        return self

    def log(self, record: dict[str, float], step: int) -> None:
        self.logged.append((step, record))

    def __enter__(self) -> FakeWandb:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.ended.append(kind)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def test_wandb_gets_every_record_and_a_resumed_run_is_the_same_one(
    run: Run, data: Path, fake: FakeWandb, tmp_path: Path
) -> None:
    logged(run, data, "wandb", stop_after=3)
    logged(read_run(run.folder), data, "wandb")
    assert [record for _, record in fake.logged] == read_metrics(run.folder)
    assert [step for step, _ in fake.logged] == [1, 2, 3, 4, 5, 6]
    first, second = fake.opened
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["project"] == "skelpipe"
    assert first["dir"] == str(run.folder)
    assert first["config"]["optim"]["lr"] == run.recipe.optim.lr
    assert first["config"]["data"]["data_digest"] == run.data["data_digest"]
    json.dumps(first["config"])
    assert fake.ended == [None, None]

    other = start_run(tmp_path / "other", run.recipe, data, seed=1)
    with open_logger("wandb", other):
        pass
    assert fake.opened[-1]["id"] != first["id"]


def test_wandb_that_cannot_start_is_the_users_error(run: Run, fake: FakeWandb) -> None:
    fake.fault = "no API key"
    with pytest.raises(UserError, match="W&B cannot start") as error, open_logger("wandb", run):
        pass
    assert "no API key" in str(error.value)
    assert "WANDB_MODE=offline" in str(error.value)


@pytest.mark.filterwarnings("default")  # what its dependencies warn of is not ours
def test_the_real_wandb_writes_offline(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb, 60 MB and twenty packages, is not in dev")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged(run, data, "wandb", stop_after=3)
    logged(read_run(run.folder), data, "wandb")
    (first, second) = sorted((run.folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert first.name == second.name  # the id
    for file, steps in ((first, (1, 2, 3)), (second, (4, 5, 6))):
        # Its own process writes the file, and may lag behind the end of the run.
        until = time.monotonic() + 60
        while steps_of(file) != list(steps) and time.monotonic() < until:
            time.sleep(0.1)
        assert steps_of(file) == list(steps)


def steps_of(file: Path) -> list[int]:
    """The steps in W&B's own record file."""
    from wandb.proto import wandb_internal_pb2

    steps = []
    for content in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        for item in record.history.item:
            if item.key == "step" or list(item.nested_key) == ["step"]:
                steps.append(int(float(item.value_json)))
    return steps


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of a file in LevelDB's log format: blocks of 32 KiB, each chunk with a crc first."""
    place, record = 7, b""  # after W&B's own header
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + length > len(data):
            return  # still being written
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last chunk of one
            yield record
            record = b""
