"""Preparation on a Dask cluster: the same bytes, whoever is lost on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import raw

from skelpipe.errors import UserError
from skelpipe.prepare import plan
from skelpipe.prepare.engine import Progress, prepare

distributed = pytest.importorskip("distributed", reason="the optional extra dask")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD_BYTES", 40_000)


@pytest.fixture
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return raw.write_zip(tmp_path / "raw.zip", raw.some_recordings(72, frames=60))


def test_dask_gives_the_same_bytes_and_survives_a_killed_worker(
    place: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("ntu60", raw=[place], out=tmp_path / "here", workers=1)
    monkeypatch.chdir(tmp_path)  # where the workers are not
    victim = cluster.workers[0].process.pid
    killed = threading.Event()

    def kill() -> None:
        while not list((tmp_path / "there").rglob("group-*.json")):
            time.sleep(0.002)
        os.kill(victim, signal.SIGKILL)
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    seen: list[Progress] = []
    prepare(
        "ntu60",
        raw=[Path("raw.zip")],
        out=Path("there"),
        engine="dask",
        scheduler=cluster.scheduler_address,
        progress=seen.append,
    )
    assert killed.is_set()
    assert seen[-1].recordings == seen[-1].of_recordings == 72
    assert raw.all_files(tmp_path / "there") == raw.all_files(tmp_path / "here")
    assert not list((tmp_path / "there").rglob(".*"))


def test_errors_of_a_worker_reach_the_user(place: Path, tmp_path: Path, cluster: Any) -> None:
    bad = {raw.key(subject=5, replication=1 + i): b"1\n-1\n" for i in range(11)}
    place = raw.write_zip(tmp_path / "bad.zip", raw.some_recordings(24) | bad)
    with pytest.raises(UserError, match="too many recordings"):
        prepare("ntu60", raw=[place], out=tmp_path / "out", engine="dask",
                scheduler=cluster.scheduler_address)  # fmt: skip
    assert not raw.all_files(tmp_path / "out")


def test_a_scheduler_that_does_not_answer(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skelpipe.prepare import cluster

    monkeypatch.setattr(cluster, "_PATIENCE", 1)
    for address in ("tcp://127.0.0.1:9", "nowhere"):
        with pytest.raises(UserError, match="does not answer") as caught:
            prepare("ntu60", raw=[place], out=tmp_path, engine="dask", scheduler=address)
        assert "dask scheduler" in str(caught.value)
