from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import CPU, TINY, tiny_recipe, write_set
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.checkpoint import complete_checkpoints
from skelpipe.errors import UserError
from skelpipe.train import start_run, train

EPOCHS = 25

# Runs one task and keeps its arguments and process id.
SRUN = """#!/bin/bash
echo "srun ${*//$'\n'/ }" >> "$CALLS"
while [ "$1" != bash ]; do shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0
echo $$ > "$CALLS.pid"
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; echo elsewhere; exit; fi
echo "scontrol $*" >> "$CALLS"
"""


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["new-job", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "job.sbatch"
    assert f"sbatch {file}" in run("night", "--out", file)
    return file


def test_what_is_written_is_a_script_that_comes_back(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    words = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH --" in line]
    for word in ("--job-name=night", "--signal=USR1@120", "--requeue", "--open-mode=append"):
        assert word in words
    assert "NAME" not in text
    # Slurm reads directives until the first command.
    first = next(n for n, line in enumerate(text.splitlines()) if line and line[0] != "#")
    assert "#SBATCH" not in "\n".join(text.splitlines()[first:])


def test_nothing_is_replaced(script: Path) -> None:
    with pytest.raises(UserError, match="exists already"):
        run("night", "--out", script)


def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="becomes a folder"):
        run("../night", "--out", tmp_path / "job.sbatch")


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun and scontrol only keep what they were asked."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "CALLS": str(tmp_path / "calls"),
        "SKELPIPE_RUNS": str(tmp_path / "runs"),
        "SKELPIPE_SHARDS": str(tmp_path / "shards"),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "1",
        "SLURM_CPUS_PER_TASK": "1",
    }


@pytest.mark.slow
def test_a_job_that_is_signalled_is_requeued_and_finishes(
    script: Path, slurm: dict[str, str], tmp_path: Path
) -> None:
    data = write_set(tmp_path / "shards" / "toy" / "ctrgcn" / "half")
    recipe = tiny_recipe(f"train.epochs={EPOCHS}")
    (tmp_path / "tiny.toml").write_text(toml(TINY), encoding="utf-8")
    text = script.read_text(encoding="utf-8")
    start = f"START=(--recipe {tmp_path}/tiny.toml --seed 1 --set train.epochs={EPOCHS})"
    script.write_text(text.replace("START=(--recipe slim)", start), encoding="utf-8")
    assert start in script.read_text(encoding="utf-8")
    folder, calls = tmp_path / "runs" / "night", Path(slurm["CALLS"])

    job = subprocess.Popen(["bash", str(script)], env=slurm)
    metrics = folder / "metrics.jsonl"
    while job.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.01)
    os.kill(int(Path(f"{calls}.pid").read_text()), signal.SIGUSR1)
    assert job.wait() == 75
    asked = calls.read_text().splitlines()
    assert asked[1:] == ["scontrol requeue 77"]
    assert "--recipe" in asked[0]
    step = int(complete_checkpoints(folder)[-1].name)
    assert 3 < step < 3 * EPOCHS

    assert subprocess.run(["bash", str(script)], env=slurm).returncode == 0
    asked = calls.read_text().splitlines()
    assert len(asked) == 3
    assert asked[2].endswith(f"task --resume --out {folder}")
    assert f"--out {folder}" in asked[0]

    whole = start_run(tmp_path / "whole", recipe, data, seed=1)
    wanted = train(whole, data, device=CPU)
    found = complete_checkpoints(folder)[-1]
    assert found.name == wanted.name
    for name in ("student", "teacher", "optimiser"):
        file = f"{name}.safetensors"
        assert (found / file).read_bytes() == (wanted / file).read_bytes()


def toml(table: dict[str, object], prefix: str = "") -> str:
    """A recipe's table as TOML: sections, and values that JSON and TOML write alike."""
    lines = []
    for name, value in table.items():
        if isinstance(value, dict) and not prefix:
            lines += [f"[{name}]", toml(value, name)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ", ".join("{" + toml(row, name).replace("\n", ", ") + "}" for row in value)
            lines.append(f"{name} = [{rows}]")
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines)
