from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.bench.damage import write_set
from skelpipe.errors import UserError
from skelpipe.shards.card import CARD

SHARD = "train-000001.tar"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.app, ["verify", *map(str, arguments)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_all_sets_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "shards"
    with pytest.raises(UserError, match="there is no prepared set"):
        run("--shards", root)
    whole = write_set(root / "toy" / "ctrgcn-int16" / "half", precision="int16")
    hit = write_set(root / "toy" / "ctrgcn" / "half")
    result = run("--shards", root)
    assert result.exit_code == 0
    assert result.output.count("whole, 8 files") == 2
    flip(hit / SHARD, 700)
    monkeypatch.setenv("SKELPIPE_SHARDS", str(root))
    result = run()
    assert result.exit_code == 2
    assert f"{whole}: whole" in result.output
    assert f"{hit}: damaged" in result.output
    assert SHARD in result.output
    assert "skelpipe prepare toy --split half --pipeline ctrgcn --raw" in result.output
    assert run(whole).exit_code == 0


def test_a_set_in_the_place_of_another(tmp_path: Path) -> None:
    made = write_set(tmp_path / "toy" / "ctrgcn" / "half")
    moved = made.rename(made.parent / "whole")
    result = run("--shards", tmp_path)
    assert result.exit_code == 2
    assert "toy/ctrgcn/half" in result.output
    assert run(moved).exit_code == 0  # named by itself it may lie anywhere


def test_a_damaged_card_and_many_faults(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", precision="int16")
    for number in range(30):
        (folder / f"[{number}].part").touch()
    output = run(folder).output
    assert "faults: 30, the first 20" in output
    assert "[0].part" in output
    assert "--dtype int16 --raw … --out … --force" in output
    flip(folder / CARD, 300)
    output = run(folder, "--workers", 1).output
    assert "card.json" in output
    assert "faults: 1 " in output.replace("\n", " ")
    assert "skelpipe prepare DATASET --split SPLIT --raw" in output


def test_a_folder_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="skelpipe prepare"):
        run(tmp_path)
