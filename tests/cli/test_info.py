from __future__ import annotations

from pathlib import Path

import pytest
import raw
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.prepare.engine import prepare


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["info", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_shows_the_card_of_the_newest_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "shards"))
    with pytest.raises(UserError, match="there is no prepared set"):
        run()
    place = raw.write_zip(tmp_path / "raw.zip", raw.some_recordings())
    for split in ("xsub", "xview"):
        result = prepare("ntu60", [split], raw=[place], out=tmp_path / "shards", workers=1)
    card = result.sets[0].card
    newest = run()
    assert "split xview" in newest
    assert "ctrgcn version 1" in newest
    assert card.data_digest[:40] in newest
    assert "drink water" in newest
    assert "59 more classes have no sample" in newest
    named = run(tmp_path / "shards" / "ntu60" / "ctrgcn" / "xsub")
    assert "split xsub" in named
    assert "1: 6  2: 6  4: 6" in named


def test_a_folder_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="skelpipe prepare"):
        run(tmp_path)
