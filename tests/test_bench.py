from __future__ import annotations

import gc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from builders import KINECT
from skelpipe.cli.bench import bench as command
from typer.testing import CliRunner

from skelpipe import bench
from skelpipe.prepare import ntu
from skelpipe.skeleton import Topology


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def check(rows: list[bench.Row], temporary: Path) -> None:
    """Everything is positive, the baseline comes first, nothing is left behind."""
    assert rows[0].ratio == 1
    for row in rows:
        assert row.rate > 0
        assert row.ratio is None or row.ratio > 0
        assert row.megabytes is None or row.megabytes > 0
    assert not list(temporary.glob("skelpipe-bench-*"))


def test_prepare(temporary: Path) -> None:
    rows = bench.prepare(4, copies=1, rounds=1)
    check(rows, temporary)
    assert len(rows) == 6
    assert rows[-1].unit == "s"


def test_stream(temporary: Path) -> None:
    with warnings.catch_warnings():
        # webdataset leaves the files it has read to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        rows = bench.stream(8, copies=1, batch=3, rounds=1, least=0)
        gc.collect()
    check(rows, temporary)
    assert len(rows) == 4


def test_views_leave_the_number_of_threads_alone(temporary: Path) -> None:
    before = torch.get_num_threads()
    rows = bench.views(6, batch=2, threads=2, rounds=1, least=0)
    check(rows, temporary)
    assert len(rows) == 2
    assert torch.get_num_threads() == before


def test_ratio_is_the_median_over_rounds_of_neighbouring_measurements() -> None:
    rates = {"plain": [10.0, 1.0, 10.0], "ours": [20.0, 3.0, 50.0]}
    plain, ours = bench._rows(rates, "samples/s")
    assert (plain.rate, plain.ratio) == (10, 1)
    assert (ours.rate, ours.ratio) == (20, 3)


def test_literal_reader_reads_what_ours_does(tmp_path: Path) -> None:
    size = bench.write_raw(tmp_path / "raw", 30, 2)
    files = sorted((tmp_path / "raw").iterdir())
    assert len(files) == 60
    assert size == sum(file.stat().st_size for file in files)
    for file in files[::2]:
        plain, ours = bench.read_literally(file), ntu.parse(file.read_bytes())
        assert plain.frames == ours.frames
        assert sorted(zip(plain.frame_R, plain.id_R, strict=True)) == sorted(
            zip(ours.frame_R, ours.id_R, strict=True)
        )
        for number in np.unique(ours.id_R):
            np.testing.assert_array_equal(
                plain.xyz_RJC[plain.id_R == number], ours.xyz_RJC[ours.id_R == number]
            )


def test_plain_views_have_the_shapes_and_masked_shares_of_ours() -> None:
    plain = plain_views(KINECT)
    rng = np.random.default_rng(0)
    for frames in (3, 20, 150):
        views = plain(rng.normal(size=(2, frames, 25, 3)).astype(np.float32))
        assert [x.shape for x, _ in views] == [(2, 64, 25, 3), (2, 16, 25, 3)]
        assert [mask.shape for _, mask in views] == [(8, 25), (2, 25)]
        assert all(x.dtype == np.float32 for x, _ in views)
        assert all(mask.mean() >= 0.5 for _, mask in views)


def plain_views(topology: Topology) -> bench.PlainViews:
    parts = [np.array(part) for part in topology.parts.values()]
    return bench.PlainViews([(64, (0.5, 1.0)), (16, (0.15, 0.4))], topology.mirrored, parts, 8)


def test_command_names_the_machine_and_prints_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = bench.Row("plain", 1234.0, "views/s", 1.0)
    monkeypatch.setattr(bench, "views", lambda recordings, threads: [row])
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["views"])
    assert result.exit_code == 0, result.output
    assert "torch" in result.output
    assert "1,234 views/s" in result.output
