from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from builders import CPU, tiny_pcm3_recipe, write_set
from recordings import recording_of, write_recordings
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.protocols.detection_segments import unpack_segments
from skelpipe.report.tables import comparable, gains, read_results
from skelpipe.train import start_run, train

QUICK = ("epochs=2", "drops=[1]", "batch=16", "window=8", "strides=[1,2]", "test_stride=1")


def skelpipe(*words: str | Path) -> Any:
    (script,) = entry_points(group="console_scripts", name="skelpipe")
    app = sys.modules[script.load().__module__].app
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_run_detects_in_the_newest_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "shards"))
    clips = write_set(tmp_path / "shards" / "toy" / "agcn" / "half", pipeline="agcn")
    run = start_run(tmp_path / "run", tiny_pcm3_recipe("train.epochs=1"), clips, seed=0)
    train(run, clips, device=CPU)
    words: list[str | Path] = ["evaluate", "--protocol", "detection", "--run", run.folder]
    words += [word for change in QUICK for word in ("--set", change)]

    refused = skelpipe(*words)
    assert isinstance(refused.exception, UserError)
    assert "skelpipe prepare pku1 --split xsub --pipeline recordings" in str(refused.exception)

    data = tmp_path / "shards" / "pku1" / "recordings" / "xsub"
    write_recordings(
        data, [recording_of(number, part) for part in ("train", "test") for number in range(3)]
    )
    assert skelpipe(*words, "--random-init").exit_code == 0
    result = skelpipe(*words)
    assert result.exit_code == 0, result.output
    stored = run.folder / "results" / "detection.json"
    record = json.loads(stored.read_text())
    floor = json.loads(stored.with_name("detection-random-init.json").read_text())
    (row,), (below,) = record["results"], floor["results"]
    assert f"{row['map_a'] - below['map_a']:+.1f}" in result.output
    for name in ("mAP_a", "mAP_v", "F1", "3 recordings, learned from 3"):
        assert name in " ".join(result.output.split())
    groups = comparable(read_results(run.folder))
    assert [len(group) for group in groups] == [2]
    assert gains(groups[0]) == []  # which are of accuracies
    segments = stored.with_name("detection.segments.parquet").read_bytes()
    _, truths = unpack_segments(segments)
    assert {truth.recording for truth in truths} == {"test00", "test01", "test02"}
    bars = stored.with_name("detection.bars.png")
    assert bars.read_bytes().startswith(b"\x89PNG")
    assert f"look at: {bars}" in result.output
