from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import CPU, tiny_pcm3_recipe, tiny_recipe, write_set
from runs import write_run
from skelpipe.cli import main as cli
from typer.testing import CliRunner

import skelpipe
from skelpipe.checkpoint import read_json, write_json
from skelpipe.errors import UserError


def run(*words: object) -> str:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("others")
    data = write_set(root / "set", train=5, test=3)
    write_run(root / "run", tiny_recipe(), data)
    return root


def test_features_are_written(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.h5"
    words = ("embed", root / "run", root / "set", "--out", out, "--device", CPU)
    told = run(*words)
    assert told == f"8 samples, 16 features each: {out}\n"
    with pytest.raises(UserError, match="--force replaces it"):
        run(*words, "--part", "test")
    run(*words, "--part", "test", "--features", "both", "--network", "teacher", "--force")
    with h5py.File(out) as opened:
        assert opened["features"].shape == (3, 32)
        assert opened.attrs["network"] == "teacher"
    out = tmp_path / "raw.parquet"
    words = ("embed", root / "run", root / "set", "--out", out, "--raw-features", "--device", CPU)
    run(*words, "--part", "train")
    assert pq.read_table(out)["key"].to_pylist() == [f"train00{number}" for number in range(1, 6)]
    for more in (("--features", "class"), ("--network", "student")):
        with pytest.raises(UserError, match=f"--raw-features with {more[0]}"):
            run(*words, *more)


def test_an_encoder_is_exported_and_gives_the_features_that_were_written(
    root: Path, tmp_path: Path
) -> None:
    out, features = tmp_path / "encoder.safetensors", tmp_path / "features.h5"
    words = ("export", root / "run", "--to", "safetensors", "--out", out)
    choice = ("--features", "class", "--network", "teacher")
    told = run(*words, *choice)
    assert "rows of 8 samples: largest difference 0," in told
    with pytest.raises(UserError, match="--force replaces it"):
        run(*words)
    run("embed", root / "run", root / "set", "--out", features, *choice, "--device", CPU)
    encoder = skelpipe.load_encoder(out)
    (batch,) = skelpipe.open_set(root / "set", "all").batches(8)
    with h5py.File(features) as opened:
        wanted = opened["features"][:]
    assert np.abs(encoder(batch.x, batch.frames).numpy() - wanted).max() <= 1e-6
    out = tmp_path / "encoder.onnx"
    told = run("export", root / "run", "--to", "onnx", "--out", out)
    assert "10 rows of 8 samples" in told
    assert out.exists()


def test_an_imported_run_is_compared_on_a_set_of_its_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "shards"))
    data = write_set(tmp_path / "set", pipeline="agcn")
    found = write_run(tmp_path / "run", tiny_pcm3_recipe(), data)
    imported = {**read_json(found.folder / "data.json"), "folder": None, "imported": {}}
    write_json(found.folder / "data.json", imported)
    out = tmp_path / "encoder.safetensors"
    words = ("export", found.folder, "--to", "safetensors", "--out", out)
    with pytest.raises(UserError, match="no set prepared with pipeline 'agcn'"):
        run(*words)
    assert "of 18 samples" in run(*words, "--data", data)
    data = write_set(tmp_path / "shards" / "toy" / "agcn" / "half", 3, 1, pipeline="agcn")
    assert "of 4 samples" in run(*words, "--force")
