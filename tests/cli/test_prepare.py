from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import raw
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.prepare.synth import write_recordings
from skelpipe.shards.card import read_card
from skelpipe.shards.index import read_index
from skelpipe.shards.verify import verify


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
    assert "truncated file │       1" in output
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


@pytest.fixture(scope="module")
def pku(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pku") / "pku.zip"
    write_recordings("pku1", place, seed=0, classes=4, subjects=2, actions=3)
    return place


def test_pku_mmd_keeps_whole_recordings_too(pku: Path, tmp_path: Path) -> None:
    output = run("prepare", "pku1", "--split", "xsub", "--raw", pku, "--out", tmp_path,
                 "--workers", 1, "--set", "centre=none", "--set", "reversed=as_published",
                 "--dtype", "int16")  # fmt: skip
    clips, whole = tmp_path / "pku1/ctrgcn-int16/xsub", tmp_path / "pku1/recordings/xsub"
    assert str(clips) in output
    assert output.index(str(whole)) < output.index(str(clips))  # so that clips are the newest
    card = read_card(clips)
    assert card.precision == "int16"
    assert card.pipeline.switches == {
        "gaps": "closed",
        "centre": "none",
        "reversed": "as_published",
    }
    assert read_card(whole).pipeline.switches == {"reversed": "as_published"}
    assert not verify(clips)
    assert not verify(whole)
    rows = read_index(whole).to_pylist()
    assert {row["label"] for row in rows} == {-1}
    for row in rows:
        with tarfile.open(whole / row["shard"]) as shard:
            member = shard.extractfile(f"{row['key']}.json")
            assert member is not None
            told = json.load(member)
        assert sum(frames for _, frames in told["frame_labels"]) == row["frames"]
        by_frame = np.repeat(*np.array(told["frame_labels"]).T)
        expected = np.zeros(row["frames"], dtype=int)
        for action, start, end, _ in told["actions"]:
            expected[start:end] = action
        assert (by_frame == expected).all()
        assert len(told["actions"]) > 1
    alone = run("prepare", "pku1", "--raw", pku, "--out", tmp_path / "b", "--no-recordings")
    assert "recordings/" not in alone
    assert sorted(path.name for path in (tmp_path / "b/pku1").iterdir()) == ["ctrgcn"]


def test_switches_that_there_are_not(place: Path, tmp_path: Path) -> None:
    for change, message in (
        ("gap=kept", "no switch 'gap'"),
        ("gaps=open", "closed or kept"),
        ("gaps", "turns no switch"),
    ):
        with pytest.raises(UserError) as caught:
            run("prepare", "ntu60", "--raw", place, "--out", tmp_path, "--set", change)
        assert message in str(caught.value)
    with pytest.raises(UserError, match="--engine dask"):
        run("prepare", "ntu60", "--raw", place, "--out", tmp_path, "--scheduler", "tcp://a:1")
    with pytest.raises(UserError, match="no whole recordings"):
        run("prepare", "ntu60", "--raw", place, "--out", tmp_path, "--pipeline", "recordings")


def test_sets_of_other_switches_do_not_mix(place: Path, tmp_path: Path) -> None:
    command = ["prepare", "ntu60", "--split", "xsub", "--raw", place, "--out", tmp_path]
    run(*command)
    with pytest.raises(UserError, match="other switches") as caught:
        run(*command, "--set", "gaps=kept")
    assert "gaps = closed" in str(caught.value)


def test_int16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    far = raw.skeleton([[(raw.PERSON, raw.joints(np.random.default_rng(1)) * [1, 9, 1])]])
    place = raw.write_zip(tmp_path / "far.zip", raw.some_recordings() | {raw.key(subject=5): far})
    with pytest.raises(UserError, match="does not fit into int16") as caught:
        run("prepare", "ntu60", "--raw", place, "--out", tmp_path, "--dtype", "int16",
            "--set", "centre=none", "--workers", 1)  # fmt: skip
    assert raw.key(subject=5) in str(caught.value)


def test_people_that_agcn_turns_upside_down_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    body = raw.joints(rng)
    body[[0, 1]] = [[0, 0, 3], [0, 0.3, 3]]  # spine base and middle
    body[[4, 8]] = [[-0.2, 0.5, 3], [0.2, 0.51, 3]]  # left and right shoulder, towards the sensor
    away = (body - [0, 0, 3]) * [-1, 1, -1] + [0, 0, 3]
    files = {
        raw.key(replication=number): raw.skeleton([[(raw.PERSON, pose)]] * 4)
        for number, pose in enumerate((body, away, away), 1)
    }
    place = raw.write_zip(tmp_path / "raw.zip", files)
    output = run("prepare", "ntu60", "--split", "xsub", "--raw", place, "--out", tmp_path,
                 "--pipeline", "agcn", "--workers", 1)  # fmt: skip
    assert "odd, but read: turned upside down, as published: 2" in output
