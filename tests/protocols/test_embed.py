from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import CPU, KINECT, tiny_pcm3_recipe, tiny_recipe, write_set
from runs import write_run
from safetensors.torch import load_file, save_file

from skelpipe.checkpoint import Run
from skelpipe.errors import UserError
from skelpipe.protocols import embed as module
from skelpipe.protocols.embed import COLUMNS, embed
from skelpipe.protocols.features import CENTRE, encode_by, extract, raw_features, viewer
from skelpipe.protocols.question import load_encoder
from skelpipe.stream.source import Resident, select

Place = tuple[Path, Run]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("embed")
    data = write_set(root / "set", train=11, test=5)
    return data, write_run(root / "run", tiny_recipe(), data)


def read(file: Path) -> tuple[dict[str, list[Any]], np.ndarray[Any, Any], dict[str, str]]:
    """Columns, features and what is told of them."""
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        told = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        assert table.schema.field("features").type == pa.list_(pa.float32(), 16)
        features = table["features"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return {name: table[name].to_pylist() for name in COLUMNS}, features, told
    with h5py.File(file) as opened:
        columns: dict[str, list[Any]] = {
            name: (opened[name].asstr() if name in ("key", "part") else opened[name])[:].tolist()
            for name in COLUMNS
        }
        assert set(opened) == {*COLUMNS, "features"}
        return columns, opened["features"][:], dict(opened.attrs)


@pytest.mark.parametrize("name", ["features.h5", "features.parquet"])
def test_every_sample_stands_there_once_with_the_features_of_evaluation(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, run = place
    monkeypatch.setattr(module, "_CHUNK", 6)  # three blocks, the last one smaller
    told_of: list[tuple[int, int]] = []
    file = tmp_path / "new" / name
    assert embed(
        run, data, file, device=CPU, report=lambda *done: told_of.append(done)
    ) == (16, 16)  # fmt: skip
    assert told_of == [(6, 16), (12, 16), (16, 16)]
    columns, features, told = read(file)
    table = select(data, "all")
    assert columns == {name: table[name].to_pylist() for name in COLUMNS}
    assert columns["key"] == sorted(columns["key"])
    assert columns["part"].count("test") == 5
    encode = encode_by(load_encoder(run, KINECT).eval(), "patch")
    see = viewer(run.recipe, KINECT, CENTRE)
    for part in ("train", "test"):
        wanted = extract(Resident(data, select(data, part), CPU), [encode], see)[0]  # type: ignore[arg-type]
        found = features[[own == part for own in columns["part"]]]
        assert found.dtype == np.float32
        assert np.abs(found - wanted.numpy()).max() <= 1e-6
    assert told["run"] == "run"
    assert (told["recipe"], told["checkpoint"], told["network"]) == ("tiny", "0", "student")
    assert (told["kind"], told["part"], told["split"]) == ("patch", "all", "half")
    assert told["view"] == "centre crop of 0.95 of a recording, 16 frames"
    assert len(told["data_digest"]) == 64
    assert json.loads(told["classes"]) == ["rest", "shift"]
    assert json.loads(told["readings"]) == run.recipe.readings()
    assert [path.name for path in file.parent.iterdir()] == [name]


def test_what_is_asked_for_is_what_is_written(place: Place, tmp_path: Path) -> None:
    data, run = place

    def written(**options: Any) -> tuple[np.ndarray[Any, Any], dict[str, str]]:
        file = tmp_path / "features.hdf5"
        embed(run, data, file, device=CPU, part="test", replace=True, **options)
        _, features, told = read(file)
        return features, told

    student, _ = written()
    assert student.shape == (5, 16)
    teacher, told = written(network="teacher")
    assert told["network"] == "teacher"
    assert np.abs(teacher - student).max() > 1e-2
    both, told = written(kind="both")
    assert told["kind"] == "both"
    assert np.array_equal(both[:, :16], student)
    raw, told = written(raw=True)
    assert (told["network"], told["kind"]) == ("raw skeleton", "raw coordinates")
    source = Resident(data, select(data, "test"), CPU)
    wanted = extract(source, [raw_features], viewer(run.recipe, KINECT, CENTRE))[0]
    assert np.array_equal(raw, wanted.numpy())


def test_thousands_of_class_names_find_room(place: Place, tmp_path: Path) -> None:
    table = select(place[0], "test")
    about = {"classes": json.dumps([f"a class with number {number}" for number in range(9000)])}
    file = tmp_path / "features.h5"
    module._write_hdf5(file, table, iter([np.ones((5, 2), np.float32)]), about)
    with h5py.File(file) as opened:
        assert dict(opened.attrs) == about


def test_what_cannot_be_written_is_refused(place: Place, tmp_path: Path) -> None:
    data, run = place
    for name in ("features.npy", "features"):
        with pytest.raises(UserError, match=r"\.h5, \.hdf5 or \.parquet"):
            embed(run, data, tmp_path / name, device=CPU)
    file = tmp_path / "features.h5"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        embed(run, data, file, device=CPU)
    assert file.read_text() == "mine"
    other = write_run(
        tmp_path / "pcm3", tiny_pcm3_recipe(), write_set(tmp_path / "agcn", pipeline="agcn")
    )
    with pytest.raises(UserError, match="prepared with pipeline 'agcn'"):
        embed(other, data, tmp_path / "other.h5", device=CPU)
    with pytest.raises(UserError, match="no features 'last'"):
        embed(run, data, tmp_path / "other.h5", device=CPU, kind="last")


@pytest.mark.parametrize("name", ["features.h5", "features.parquet"])
def test_features_that_are_no_numbers_leave_what_was_there(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    data, run = place
    broken = Run(tmp_path / "run", run.recipe, run.data)
    shutil.copytree(run.folder, broken.folder)
    student = broken.folder / "checkpoints" / "0" / "student.safetensors"
    tensors = load_file(student)
    # Only the second block has a sample whose features this makes infinite.
    monkeypatch.setattr(module, "_CHUNK", 6)
    keys = select(data, "all")["key"].to_pylist()
    file = tmp_path / name
    file.write_text("mine")

    def spoil(x: torch.Tensor) -> torch.Tensor:
        rows = raw_features(x)
        rows[-1] = torch.nan
        return rows

    monkeypatch.setattr(module, "raw_features", spoil)
    with pytest.raises(UserError, match=rf"not finite\n  found: {keys[5]}\n"):
        embed(run, data, file, device=CPU, raw=True, replace=True)
    tensors["encoder.norm.bias"][0] = torch.nan
    save_file(tensors, student)
    (student.parent / "complete").write_text("")
    with pytest.raises(UserError, match=f"6 samples .*\n  found: {', '.join(keys[:5])}\n"):
        embed(broken, data, file, device=CPU, replace=True)
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "run"])
