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

from skelpipe.bench import gru as gru_module
from skelpipe.bench import knn as knn_module
from skelpipe.bench import linear as linear_module
from skelpipe.bench import views as views_module
from skelpipe.bench.gru import FrameByFrame, gru
from skelpipe.bench.knn import knn, tiled, whole
from skelpipe.bench.linear import linear
from skelpipe.bench.measure import Row, rows
from skelpipe.bench.memory import private_megabytes
from skelpipe.bench.prepare import memory, read_literally, speed
from skelpipe.bench.recordings import write_raw, write_short
from skelpipe.bench.stream import stream
from skelpipe.bench.views import PlainViews, views
from skelpipe.costs.roofline import Peaks
from skelpipe.models.gru import SkeletonGRU
from skelpipe.prepare import ntu
from skelpipe.skeleton import Topology


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def check(rows: list[Row], temporary: Path) -> None:
    """Everything is positive, nothing is left behind."""
    for row in rows:
        assert row.value > 0
        assert row.ratio is None or row.ratio > 0
        assert row.megabytes is None or row.megabytes > 0
    assert not list(temporary.glob("skelpipe-bench-*"))


def test_speed_of_prepare(temporary: Path) -> None:
    found = speed(4, copies=1, rounds=1)
    check(found, temporary)
    assert len(found) == 6
    assert found[0].ratio == 1
    assert found[-1].unit == "s"


def test_memory_of_prepare(temporary: Path) -> None:
    found = memory([100])
    check(found, temporary)
    assert [row.what.partition(" of ")[2] for row in found] == [
        "a worker, 100 files",
        "the run's process, 100 files",
    ]
    assert all(10 < row.value < 400 for row in found)


def test_private_memory_is_told_of_a_process_and_of_its_children() -> None:
    hold = "import time; block = b'1' * (100 << 20); time.sleep(0.5)"
    own, children = private_megabytes(exec, hold)
    assert 100 < own < 150
    assert children == 0
    own, children = private_megabytes(
        exec, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    )
    assert own < 50
    assert 100 < children < 150
    with pytest.raises(RuntimeError, match="ended with 3"):
        private_megabytes(exec, "raise SystemExit(3)")


def test_short_recordings_are_whole_and_as_many_as_wanted(tmp_path: Path) -> None:
    write_short(tmp_path / "raw", 120)
    files = list((tmp_path / "raw").iterdir())
    assert len(files) == 120
    read = [ntu.parse(file.read_bytes()) for file in files]
    assert {recording.frames for recording in read} == {30}
    assert sum(len(recording.frame_R) > 0 for recording in read) >= 118


def test_stream(temporary: Path) -> None:
    with warnings.catch_warnings():
        # webdataset leaves the files it has read to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        found = stream(8, copies=1, batch=3, rounds=1, least=0)
        gc.collect()
    check(found, temporary)
    assert len(found) == 5
    assert found[0].ratio == 1


def test_views_leave_the_number_of_threads_alone(temporary: Path) -> None:
    before = torch.get_num_threads()
    found = views(6, batch=2, threads=2, rounds=1, least=0)
    check(found, temporary)
    assert len(found) == 6
    assert found[0].ratio == 1
    assert sum(row.value for row in found if row.unit == "% of the time") == pytest.approx(100)
    assert torch.get_num_threads() == before


def test_gru(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gru_module, "measure_peaks", lambda device, dtype: Peaks(1e9, 1e9))
    before = torch.get_num_threads()
    sizes = {"frames": 5, "channels": 6, "hidden": 8, "layers": 2}
    found = gru(3, **sizes, device=torch.device("cpu"), threads=1, rounds=1)
    check(found, temporary)
    assert torch.get_num_threads() == before
    plain, ours, floor, difference = found
    assert plain.ratio == 1
    assert ours.what == "whole sequences, 4 calls"
    weights = 2 * 3 * 8 * (6 + 8) + 2 * 3 * 8 * (16 + 8)
    assert floor.value == pytest.approx(1e9 / (5 * 2 * 3 * weights))
    assert difference.value < 1e-6


def test_frame_by_frame_goes_back_to_the_same_gradients() -> None:
    torch.manual_seed(0)
    encoder = SkeletonGRU(6, hidden=8, layers=2, direction="forward").double()
    plain = FrameByFrame(encoder).double()
    x_NTC = torch.randn(3, 5, 6, dtype=torch.float64)
    gradients = []
    for way in (plain, encoder):
        way.zero_grad()
        gru_module._run(way, x_NTC, False)
        assert encoder.input_norm.weight.grad is not None
        gradients.append(encoder.input_norm.weight.grad)
    assert torch.allclose(*gradients, rtol=1e-10)


def test_ratio_is_the_median_over_rounds_of_neighbouring_measurements() -> None:
    rates = {"plain": [10.0, 1.0, 10.0], "ours": [20.0, 3.0, 50.0]}
    plain, ours = rows(rates, "samples/s")
    assert (plain.value, plain.ratio) == (10, 1)
    assert (ours.value, ours.ratio) == (20, 3)


def test_literal_reader_reads_what_ours_does(tmp_path: Path) -> None:
    size = write_raw(tmp_path / "raw", 30, 2)
    files = sorted((tmp_path / "raw").iterdir())
    assert len(files) == 60
    assert size == sum(file.stat().st_size for file in files)
    for file in files[::2]:
        plain, ours = read_literally(file), ntu.parse(file.read_bytes())
        assert plain.id_R is not None
        assert ours.id_R is not None
        assert plain.frames == ours.frames
        assert sorted(zip(plain.frame_R, plain.id_R, strict=True)) == sorted(
            zip(ours.frame_R, ours.id_R, strict=True)
        )
        for number in np.unique(ours.id_R):
            np.testing.assert_allclose(  # published code reads into float32
                plain.xyz_RJC[plain.id_R == number], ours.xyz_RJC[ours.id_R == number], rtol=1e-7
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


def plain_views(topology: Topology) -> PlainViews:
    parts = [np.array(part) for part in topology.parts.values()]
    return PlainViews([(64, (0.5, 1.0)), (16, (0.15, 0.4))], topology.mirrored, parts, 8)


def test_command_names_the_machine_and_prints_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("plain", 1234.0, "views/s", 1.0)
    monkeypatch.setattr(views_module, "views", lambda recordings, threads: [row])
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["views"])
    assert result.exit_code == 0, result.output
    assert "torch" in result.output
    assert "1,234 views/s" in result.output


def test_command_measures_as_many_clips_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(clips: int, *, device: torch.device, bf16: bool) -> list[Row]:
        return [Row(f"{clips} clips on {device.type}, {bf16}", 1234.0, "clips/s", 1.0)]

    monkeypatch.setattr(gru_module, "gru", measured)
    app = typer.Typer()
    app.command()(command)
    for words, wanted in ((["--rows", "7"], "7 clips on cpu, False"), ([], "16 clips on cpu")):
        result = CliRunner().invoke(app, ["gru", "--device", "cpu", *words])
        assert result.exit_code == 0, result.output
        assert wanted in result.output


def peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    return Peaks(flop_per_s=1e9, bytes_per_s=1e9)


def test_the_probe_is_measured_beside_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "measure_peaks", peaks)
    found = linear(40, features=6, classes=3, device=torch.device("cpu"), threads=1, rounds=1)
    assert [row.ratio is None for row in found] == [False, False, False, True, True]
    assert all(row.value > 0 for row in found)
    assert found[2].value == pytest.approx(1e9 / (4 * 6 * 3))  # two products of 2 FLOP
    assert found[3].value == pytest.approx(100 * 40 / found[1].value)


def test_retrieval_is_measured_beside_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {whole: 200.0, tiled: 50.0}  # fresh processes take seconds to start
    monkeypatch.setattr(knn_module, "measure_peaks", peaks)
    monkeypatch.setattr(knn_module, "_working_memory", lambda way, *sizes: memory[way])
    found = knn(300, features=8, device=torch.device("cpu"), threads=1, rounds=1)
    assert [row.unit for row in found] == ["queries/s"] * 3 + ["MB"] * 2 + ["%"]
    assert all(row.value > 0 for row in found[:3])
    assert [(row.value, row.ratio) for row in found[3:]] == [(200, 1), (50, 0.25), (100, None)]


def test_both_ways_of_retrieval_score_classes_alike() -> None:
    query, gallery = (
        torch.randn(n, 9, generator=torch.Generator().manual_seed(n)) for n in (9, 700)
    )
    problem = query, gallery, torch.arange(700) % 120
    for one, other in zip(whole(problem), tiled(problem), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_tiles_take_less_memory_than_the_matrix() -> None:
    found = {row.what: row for row in knn(12000, features=16, device=torch.device("cpu"), rounds=1)}
    # Resident memory: some pages of the matrix may be ones that were freed before.
    assert found["working memory, whole matrix"].value > 0.8 * 4 * 12000 * 9600 / 1e6
    assert found["working memory, tiles"].ratio < 0.7
