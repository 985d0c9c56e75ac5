from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CPU, TINY, tiny_pcm3_recipe, tiny_recipe, write_set
from safetensors.torch import load_file

from skelpipe import distributed
from skelpipe.checkpoint import Run
from skelpipe.errors import UserError
from skelpipe.protocols.features import extract, raw_features, view
from skelpipe.stream.source import open_source, select
from skelpipe.train import read_metrics, start_run, train

EXACT = ("train.precision=float64", "train.batch=16", "train.epochs=13")  # 52 steps of 64 samples

PCM3_EXACT = ("train.precision=float64", "train.batch=16", "train.epochs=5", "loss.queue=37")

# What each of two ranks does; it writes what it found to a file of its own.
WORKER = """
import json, sys
from functools import partial
from pathlib import Path
import torch
from builders import tiny_pcm3_recipe, tiny_recipe
from safetensors.torch import save_file
from skelpipe import distributed
from skelpipe.checkpoint import read_run
from skelpipe.errors import UserError
from skelpipe.protocols.features import extract, raw_features, view
from skelpipe.stream.source import open_source, select
from skelpipe.train import start_run, train

torch.set_num_threads(1)
folder, data, damaged, agcn = (Path(word) for word in sys.argv[1:5])
cpu = torch.device("cpu")
found = {}

def refused(name, work):
    try:
        work()
    except UserError as error:
        found[name] = str(error)

def begin(name, data, *changes):
    recipe = (tiny_pcm3_recipe if data == agcn else tiny_recipe)(*changes)
    def start():
        return str(start_run(folder / name, recipe, data, seed=1).folder)
    return read_run(Path(distributed.first_rank_alone(start)))

with distributed.process_group(cpu, 60):
    rank = distributed.rank()
    rows, first = distributed.gather_rows(torch.full((1 + 2 * rank, 2), float(rank)))
    found["gathered"] = [rows[:, 0].tolist(), first]
    found["any"] = distributed.on_any_rank(rank == 1, False, device=cpu)
    for name, changes in json.loads(sys.argv[5]).items():
        given = agcn if name == "pcm3" else data
        last = 1 if name == "single" else None
        train(begin(name, given, *changes), given, device=cpu, stop_after=last)
    refused("again", lambda: begin("exact", data))
    odd = begin("odd", data, "train.batch=15")
    refused("odd", lambda: train(odd, data, device=cpu))
    hurt = begin("hurt", damaged, "train.source=mapped", "train.batch=16", "train.epochs=1")
    refused("hurt", lambda: train(hurt, damaged, device=cpu))
    refused("other", lambda: train(odd, damaged, device=cpu))
    source = open_source(data, select(data, "train"), cpu, "mapped")
    see = partial(view, frames=16, centre=1.0, absent_body="skip")
    for count in (64, 7, 1):
        source.table = source.table.slice(0, count)
        parts = extract(source, [raw_features], see)
        save_file({"features": parts[0]}, folder / f"features{count}-rank{rank}.safetensors")
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
"""


def torchrun(*words: str | Path, restarts: int = 0, wait: float = 300) -> tuple[int, str]:
    """Run two ranks on this host; the exit code and all that was printed."""
    process = start_torchrun(*words, restarts=restarts)
    out, _ = process.communicate(timeout=wait)
    return process.returncode, out


def start_torchrun(*words: str | Path, restarts: int = 0) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    tests = str(Path(__file__).parent)
    return subprocess.Popen(
        [*launcher, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=64)


@pytest.fixture(scope="module")
def ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two ranks did the worker's work."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    damaged = write_set(folder / "damaged", train=64, seed=3)
    shard = damaged / "train-000011.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1  # in the first sample's payload
    shard.write_bytes(content)
    agcn = write_set(folder / "agcn", train=64, pipeline="agcn")
    recipes = {"exact": EXACT, "single": ("train.batch=16", "train.epochs=13"), "pcm3": PCM3_EXACT}
    words = (folder, data, damaged, agcn, json.dumps(recipes))
    code, out = torchrun(folder / "worker.py", *words)
    assert code == 0, out
    return folder


def told(ranks: Path) -> list[dict[str, Any]]:
    return [json.loads((ranks / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def alone(folder: Path, data: Path, *changes: str, stop_after: int | None = None) -> Run:
    run = start_run(folder, tiny_recipe(*changes), data, seed=1)
    train(run, data, device=CPU, stop_after=stop_after)
    return run


def differences(folder: Path, run: Run) -> float:
    """Largest difference between what two runs recorded, relative to the value."""
    pairs = zip(read_metrics(folder), read_metrics(run.folder), strict=True)
    return max(
        abs(one[name] - other[name]) / max(abs(other[name]), 1)
        for one, other in pairs
        for name in other.keys() - {"samples_per_s"}
    )


@pytest.mark.parametrize(
    "micro",
    [
        pytest.param(0, id="two ranks as one"),
        pytest.param(4, id="two ranks as micro-batches", marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_do_not_depend_on_the_division(
    ranks: Path, data: Path, tmp_path: Path, micro: int
) -> None:
    run = alone(tmp_path / "run", data, *EXACT, f"train.micro_batch={micro}")
    assert len(read_metrics(run.folder)) == 52
    assert differences(ranks / "exact", run) < 1e-9
    weights = load_file(run.checkpoint() / "student.safetensors")
    others = load_file(Run(ranks / "exact", run.recipe, {}).checkpoint() / "student.safetensors")
    for name, tensor in weights.items():
        assert float((others[name] - tensor).abs().max()) < 1e-9, name


def test_pcm3_does_not_depend_on_the_number_of_ranks(ranks: Path, tmp_path: Path) -> None:
    data = ranks / "agcn"
    run = start_run(tmp_path / "run", tiny_pcm3_recipe(*PCM3_EXACT), data, seed=1)
    train(run, data, device=CPU)
    assert len(read_metrics(run.folder)) == 20
    assert differences(ranks / "pcm3", run) < 1e-9
    other = Run(ranks / "pcm3", run.recipe, {}).checkpoint()
    for network in ("student", "teacher"):  # the queue and all statistics are in them
        tensors = [load_file(path / f"{network}.safetensors") for path in (run.checkpoint(), other)]
        for name, tensor in tensors[0].items():
            assert float((tensors[1][name] - tensor).abs().max()) < 1e-9, name


def test_the_first_step_agrees_in_float32(ranks: Path, data: Path, tmp_path: Path) -> None:
    changes = ("train.batch=16", "train.epochs=13")
    for micro in (0, 4):
        run = alone(
            tmp_path / str(micro), data, *changes, f"train.micro_batch={micro}", stop_after=1
        )
        assert differences(ranks / "single", run) < 1e-5


def test_rows_are_gathered_in_the_order_of_ranks(ranks: Path) -> None:
    assert [record["gathered"] for record in told(ranks)] == [[[0, 1, 1, 1], 0], [[0, 1, 1, 1], 1]]
    assert all(record["any"] == [True, False] for record in told(ranks))


def test_every_rank_tells_what_the_first_one_met(ranks: Path) -> None:
    for record in told(ranks):
        assert "a run stands here already" in record["again"]


def test_a_batch_that_ranks_cannot_share_is_refused_on_every_rank(ranks: Path) -> None:
    for record in told(ranks):
        assert "a batch of 15 cannot be shared evenly by 2 ranks" in record["odd"]
        assert "--batch 14 or 16" in record["odd"]


def test_a_damaged_sample_stops_every_rank_with_a_message(ranks: Path) -> None:
    texts = [record["hurt"] for record in told(ranks)]
    damaged = ["is damaged" in text for text in texts]
    elsewhere = ["another rank could not read its samples" in text for text in texts]
    assert sorted(zip(damaged, elsewhere, strict=True)) == [(False, True), (True, False)]


def test_other_data_are_refused_on_every_rank(ranks: Path) -> None:
    for record in told(ranks):
        assert "the run was started on other data" in record["other"]


def test_features_are_of_every_sample_once_and_in_order(ranks: Path, data: Path) -> None:
    source = open_source(data, select(data, "train"), CPU, "mapped")
    see = partial(view, frames=16, centre=1.0, absent_body="skip")
    (wanted,) = extract(source, [raw_features], see)
    for count in (64, 7, 1):  # of one sample the second rank has none
        for rank in (0, 1):
            found = load_file(ranks / f"features{count}-rank{rank}.safetensors")["features"]
            assert torch.equal(found, wanted[:count])


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "1"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "2"}],
    ids=["no world", "no number", "no address"],
)
def test_an_incomplete_launch_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="the launcher's environment is incomplete"):
        distributed.launch()


def test_without_a_launcher_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.launch() == distributed.Launch(0, 1, 0, "", 0)
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.first_rank_alone(lambda: "done") == "done"


def recipe_file(folder: Path, epochs: int) -> Path:
    """The tiny recipe for so many epochs of four steps, as a file."""
    table = TINY | {"train": {"epochs": epochs, "batch": 16, "checkpoint_every": 3}}
    lines = ['kind = "recipe"', 'name = "tiny"']
    for section in ("views", "encoder", "head", "optim", "train"):
        lines.append(f"[{section}]")
        for key, value in table[section].items():
            if key == "local":
                rows = [f"{{frames = {v['frames']}, ratio = {v['ratio']}}}" for v in value]
                value = f"[{', '.join(rows)}]"
            lines.append(f"{key} = {value}")
    path = folder / "tiny.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def pretrain(recipe: Path, data: Path, out: Path) -> list[str | Path]:
    return [
        "-m",
        "--",
        "skelpipe.cli",
        "pretrain",
        "--recipe",
        recipe,
        "--data",
        data,
        "--out",
        out,
    ]


def ranks_at_step(run: Path, step: int) -> list[int]:
    """Process ids of both ranks, once the run has done so many steps."""
    metrics = run / "metrics.jsonl"
    end = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
        assert time.monotonic() < end
        time.sleep(0.05)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.joinpath("cmdline").exists():
            words = entry.joinpath("cmdline").read_bytes().split(b"\0")
            if str(run).encode() in words and b"torch.distributed.run" not in words:
                found.append(int(entry.name))
    assert len(found) == 2
    return sorted(found)


@pytest.mark.slow
def test_a_killed_rank_is_replaced_and_the_weights_are_the_same(data: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, 50)
    code, out = torchrun(*pretrain(recipe, data, tmp_path / "whole"))
    assert code == 0, out
    # Patience, for a busy machine: how soon a rank is given up is not what is tested here.
    words = [*pretrain(recipe, data, tmp_path / "killed"), "--timeout", "200"]
    process = start_torchrun(*words, restarts=1)
    os.kill(ranks_at_step(tmp_path / "killed", 60)[1], signal.SIGKILL)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "newest checkpoint: step" in out
    for name in ("student", "teacher", "optimiser"):
        files = [
            tmp_path / run / "checkpoints" / "200" / f"{name}.safetensors"
            for run in ("whole", "killed")
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "limit"), [(signal.SIGKILL, 30), (signal.SIGSTOP, 60)], ids=["killed", "hung"]
)
def test_a_lost_rank_ends_the_other(
    data: Path, tmp_path: Path, number: signal.Signals, limit: float
) -> None:
    process = start_torchrun(*pretrain(recipe_file(tmp_path, 1000), data, tmp_path / "run"))
    first, second = ranks_at_step(tmp_path / "run", 20)
    os.kill(second, number)
    out, _ = process.communicate(timeout=limit + 10)  # the launcher's own end is in it
    assert process.returncode != 0
    assert out.count("another rank was lost or does not answer") == 1, out
    for rank in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_once_and_stops_both(data: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, 1000)
    process = start_torchrun(*pretrain(recipe, data, tmp_path / "run"))
    os.kill(ranks_at_step(tmp_path / "run", 20)[1], signal.SIGUSR1)
    out, _ = process.communicate(timeout=120)
    assert out.count("stopped and saved") == 1, out
    done = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert done == len(read_metrics(tmp_path / "run"))


def test_a_ranks_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def meet(place: distributed.Launch) -> None:
        assert len(chosen) == 1
        raise UserError("far enough")

    monkeypatch.setattr(distributed, "_meet", meet)
    with (
        pytest.raises(UserError, match="far enough"),
        distributed.process_group(torch.device("cuda", 1), 5),
    ):
        pass
    assert chosen == [torch.device("cuda", 1)]
