from __future__ import annotations

from pathlib import Path

import pytest
import raw
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.errors import UserError


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    bad = {raw.key(subject=5): b"1\n"}
    return raw.write_zip(tmp_path / "raw.zip", raw.some_recordings() | bad)


def test_prints_counts_rejections_and_warnings(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "ntu60", "--split", "xsub", "--raw", place, "--workers", 1]
    output = run(*command, "--out", tmp_path / "out") + "".join(capfd.readouterr())
    assert "18 │    40,091" in output
    assert "truncated file │          1" in output
    assert "rejected.jsonl" in output
    assert "a part of NTU RGB+D: 24 of 56,578 samples" in output
    again = run(*command, "--out", tmp_path / "out")
    assert "nothing to do" in again


def test_roots_come_from_the_environment(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKELPIPE_RAW", str(place))
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "shards"))
    run("prepare", "ntu60", "--workers", 1)
    for split in ("xsub", "xview"):
        assert (tmp_path / "shards" / "ntu60" / "ctrgcn" / split / "card.json").exists()


def test_mistakes_end_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="there are no raw data"):
        run("prepare", "ntu60", "--raw", tmp_path / "nowhere", "--out", tmp_path)
    monkeypatch.setattr("sys.argv", ["skelpipe", "prepare", "ntu60", "--raw", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "no recordings of NTU RGB+D here" in capsys.readouterr().err
