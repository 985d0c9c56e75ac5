from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import KINECT, tiny_recipe
from safetensors.torch import load_file, save_file

from skelpipe import checkpoint as checkpoints
from skelpipe.checkpoint import (
    DamagedCheckpointError,
    check_recipe,
    complete_checkpoints,
    load_checkpoint,
    load_network,
    newest_run,
    read_json,
    read_run,
    resume_checkpoint,
    save_checkpoint,
    write_json,
)
from skelpipe.errors import UserError
from skelpipe.methods.slim import SLiM
from skelpipe.optim import build_optimiser

RECIPE = tiny_recipe()


def stepped(seed: int = 0) -> tuple[SLiM, torch.optim.AdamW]:
    """A method after one optimiser step on made-up gradients."""
    torch.manual_seed(seed)
    method = SLiM(RECIPE, KINECT)
    optimiser = build_optimiser(method.student, RECIPE)
    for parameter in method.student.parameters():
        parameter.grad = torch.randn_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = 1e-3
    optimiser.step()
    return method, optimiser


def save(run: Path, step: int, keep: int = 2, seed: int = 0) -> Path:
    method, optimiser = stepped(seed)
    return save_checkpoint(
        run, step, method.student, method.teacher, optimiser, {"step": step}, keep
    )


def without_digests(checkpoint: Path) -> None:
    """What older versions wrote: a marker in which nothing stands."""
    (checkpoint / "complete").write_bytes(b"")


def write_run(folder: Path, started: str, steps: tuple[int, ...] = ()) -> Path:
    write_json(folder / "recipe.json", RECIPE.model_dump())
    write_json(folder / "data.json", {"started": started})
    for step in steps:
        save(folder, step)
    return folder


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    method, optimiser = stepped()
    path = save_checkpoint(
        tmp_path, 7, method.student, method.teacher, optimiser, {"step": 7, "epoch": 2}, 2
    )
    other, other_optimiser = stepped(1)
    assert load_checkpoint(path, other.student, other.teacher, other_optimiser) == {
        "step": 7,
        "epoch": 2,
    }
    for ours, theirs in zip(method.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for a, b in zip(method.student.parameters(), other.student.parameters(), strict=True):
        was, now = optimiser.state[a], other_optimiser.state[b]
        assert was.keys() == now.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(was[name], now[name]) for name in was)


def test_a_checkpoint_holds_plain_files(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert {file.name for file in path.iterdir()} == {
        "student.safetensors",
        "teacher.safetensors",
        "optimiser.safetensors",
        "state.json",
        "complete",
    }
    assert (
        load_file(path / "student.safetensors").keys() == stepped()[0].student.state_dict().keys()
    )


def test_the_newest_ones_are_kept_by_number(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        save(tmp_path, step, keep=3)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["9", "10", "100"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "100", "9"]


def test_what_has_no_marker_or_no_number_is_ignored(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    (save(tmp_path, 2) / "complete").unlink()
    (good.parent / ".new-1234-3").mkdir()
    (good.parent / ".new-1234-3" / "complete").touch()
    (good.parent / "notes").mkdir()
    (good.parent / "notes" / "complete").touch()
    assert complete_checkpoints(tmp_path) == [good]


def test_left_overs_of_a_kill_do_not_disturb(tmp_path: Path) -> None:
    part = tmp_path / "checkpoints" / ".new-1234-5"
    part.mkdir(parents=True)
    (part / "student.safetensors").write_bytes(b"half")
    (part / ".new-1234-state.json").write_bytes(b"half")
    half = tmp_path / "checkpoints" / "6"
    half.mkdir()
    (half / "student.safetensors").write_bytes(b"half")
    assert save(tmp_path, 5).name == "5"
    assert save(tmp_path, 6).name == "6"
    assert sorted(path.name for path in half.parent.iterdir()) == ["5", "6"]
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["5", "6"]


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 5, seed=0)
    path = save(tmp_path, 5, seed=1)
    wanted = stepped(1)[0].student.state_dict()
    assert all(
        torch.equal(tensor, wanted[name])
        for name, tensor in load_file(path / "student.safetensors").items()
    )


@pytest.mark.parametrize("broken", ["student", "teacher", "optimiser"])
def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    good = save(tmp_path, 1)

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name.startswith(broken):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        save(tmp_path, 2)
    assert complete_checkpoints(tmp_path) == [good]
    assert [path.name for path in good.parent.iterdir()] == ["1"]


def test_another_shape_names_the_tensor(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    other = SLiM(tiny_recipe("head.prototypes=13"), KINECT)
    with pytest.raises(UserError, match=r"class_head\.prototypes") as error:
        load_network(path, "student", other.student)
    assert "(12, 8)" in str(error.value)
    assert "(13, 8)" in str(error.value)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_missing_or_extra_tensor_is_named(tmp_path: Path, change: str) -> None:
    path = save(tmp_path, 1)
    file = path / "teacher.safetensors"
    tensors = load_file(file)
    if change == "missing":
        tensors.pop("encoder.norm.weight")
    else:
        tensors["encoder.norm.gain"] = torch.ones(3)
    save_file(tensors, file)
    without_digests(path)
    with pytest.raises(UserError, match=r"encoder\.norm\.(weight|gain)"):
        load_network(path, "teacher", stepped()[0].teacher)


class Burglar:
    """A pickle that leaves a trace if anyone loads it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


FILES = ("student.safetensors", "teacher.safetensors", "optimiser.safetensors", "state.json")


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("name", ["student", "optimiser"])
@pytest.mark.parametrize("content", ["pickle", "torch", "truncated", "empty", "absent"])
def test_a_damaged_file_is_refused_and_nothing_is_unpickled(
    tmp_path: Path, name: str, content: str, digests: bool
) -> None:
    path = save(tmp_path, 1)
    if not digests:
        without_digests(path)
    file, trace = path / f"{name}.safetensors", tmp_path / "trace"
    if content == "pickle":
        file.write_bytes(pickle.dumps(Burglar(trace)))
    elif content == "torch":
        torch.save(Burglar(trace), file)
    elif content == "absent":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100] if content == "truncated" else b"")
    method, optimiser = stepped()
    with pytest.raises(DamagedCheckpointError, match=rf"{name}\.safetensors") as error:
        load_checkpoint(path, method.student, method.teacher, optimiser)
    assert ("a pickle" in str(error.value)) == (content in ("pickle", "torch"))
    assert f"delete {path}" in str(error.value)
    assert not trace.exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 1.0])
def test_one_flipped_bit_is_seen_wherever_it_is(tmp_path: Path, name: str, where: float) -> None:
    path = save(tmp_path, 1)
    flip(path / name, where)
    method, optimiser = stepped()
    with pytest.raises(DamagedCheckpointError, match=re.escape(name)) as error:
        load_checkpoint(path, method.student, method.teacher, optimiser)
    assert "sha256" in str(error.value)


def flip(file: Path, where: float = 0.6) -> None:
    content = bytearray(file.read_bytes())
    content[int(where * (len(content) - 1))] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("marker", [b"{", b"[]", b"{}", b"\xff\xff"])
def test_a_damaged_marker_is_named(tmp_path: Path, marker: bytes) -> None:
    path = save(tmp_path, 1)
    (path / "complete").write_bytes(marker)
    with pytest.raises(DamagedCheckpointError, match="complete"):
        load_network(path, "student", stepped()[0].student)


def test_a_checkpoint_of_an_older_version_loads(tmp_path: Path) -> None:
    path = save(tmp_path, 1, seed=3)
    without_digests(path)
    method, optimiser = stepped(1)
    found = resume_checkpoint(tmp_path, method.student, method.teacher, optimiser, refuse)
    assert found == (path, {"step": 1})
    assert same(method, stepped(3)[0])


def refuse(text: str) -> None:
    raise AssertionError(text)


def same(method: SLiM, other: SLiM) -> bool:
    pairs = zip(method.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("name", FILES)
def test_the_checkpoint_before_a_damaged_one_is_used_and_that_is_said(
    tmp_path: Path, name: str
) -> None:
    before, newest = save(tmp_path, 1, seed=3), save(tmp_path, 2, seed=4)
    flip(newest / name)
    said: list[str] = []
    method, optimiser = stepped(5)
    found = resume_checkpoint(tmp_path, method.student, method.teacher, optimiser, said.append)
    assert found == (before, {"step": 1})
    wanted, wanted_optimiser = stepped(3)
    assert same(method, wanted)
    for ours, theirs in zip(optimiser.state.values(), wanted_optimiser.state.values(), strict=True):
        assert all(torch.equal(ours[kind], theirs[kind]) for kind in theirs)
    (text,) = said
    assert str(newest / name) in text
    assert "the checkpoint before it is used" in text

    # An evaluation takes the newest one or none.
    if name == "student.safetensors":
        with pytest.raises(DamagedCheckpointError, match="damaged"):
            load_network(complete_checkpoints(tmp_path)[-1], "student", method.student)


def test_where_all_are_damaged_the_oldest_is_the_error(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (1, 2)]
    for path in paths:
        flip(path / "teacher.safetensors")
    method, optimiser = stepped()
    said: list[str] = []
    with pytest.raises(DamagedCheckpointError, match=re.escape(str(paths[0]))):
        resume_checkpoint(tmp_path, method.student, method.teacher, optimiser, said.append)
    assert len(said) == 1


def test_no_checkpoint_is_nothing_to_resume(tmp_path: Path) -> None:
    method, optimiser = stepped()
    assert resume_checkpoint(tmp_path, method.student, method.teacher, optimiser, refuse) is None


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_that_was_left_behind_goes(tmp_path: Path, keep: int) -> None:
    for step in (10, 20):
        save(tmp_path, step, keep=2)
    flip(tmp_path / "checkpoints" / "20" / "student.safetensors")
    save(tmp_path, 15, keep=keep)
    kept = [path.name for path in complete_checkpoints(tmp_path)]
    assert kept == ["10", "15"][-keep:]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optim.lr=0.5", "optim.lr"),
        ("views.crops=1", "views.crops"),
        ("views.local=[{frames = 8, ratio = [0.1, 0.2]}]", "views.local"),
    ],
)
def test_another_recipe_is_refused_by_the_setting(change: str, named: str) -> None:
    state = {"recipe": json.loads(json.dumps(RECIPE.model_dump(mode="json")))}
    check_recipe(state, RECIPE)
    with pytest.raises(UserError, match="another recipe") as error:
        check_recipe(state, tiny_recipe(change))
    assert f"place: {named}" in str(error.value)


def test_settings_that_decide_no_weight_may_change_and_so_may_what_is_new() -> None:
    state = {"recipe": RECIPE.model_dump(mode="json")}
    check_recipe(state, tiny_recipe("train.keep=5", "train.knn_every=2", "train.source=mapped"))
    del state["recipe"]["optim"]["clip"]  # an older version had no such setting
    check_recipe(state, RECIPE)
    check_recipe({}, RECIPE)


def test_a_setting_that_is_gone_is_named() -> None:
    state = {"recipe": RECIPE.model_dump(mode="json") | {"spell": 1}}
    with pytest.raises(UserError, match="no such setting"):
        check_recipe(state, RECIPE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mount = shutil.which("mount")
    if mount is None or os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 10_000, 40_000, 100_000])
def test_a_disk_that_is_really_full_keeps_the_checkpoints_before(
    small_disk: Path, left: int
) -> None:
    good = save(small_disk, 1, seed=3)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        free = shutil.disk_usage(small_disk).free
        assert file.write(bytes(free - left)) == free - left
    assert shutil.disk_usage(small_disk).free < sum(f.stat().st_size for f in good.iterdir())
    with pytest.raises(UserError, match="the disk is full") as error:
        save(small_disk, 2)
    assert "bytes free" in str(error.value)
    assert [path.name for path in good.parent.iterdir()] == ["1"]
    method, optimiser = stepped()
    found = resume_checkpoint(small_disk, method.student, method.teacher, optimiser, refuse)
    assert found == (good, {"step": 1})
    assert same(method, stepped(3)[0])
    ballast.unlink()
    assert save(small_disk, 2).name == "2"


def test_a_file_that_may_not_grow_keeps_the_checkpoints_before(tmp_path: Path) -> None:
    good = save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="the checkpoint cannot be written"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in good.parent.iterdir()] == ["1"]


SAVER = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from skelpipe.checkpoint import complete_checkpoints, save_checkpoint

run, size = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
student, teacher = nn.Linear(size, size), nn.Linear(size, size)
optimiser = torch.optim.AdamW(student.parameters())
for parameter in student.parameters():
    parameter.grad = torch.zeros_like(parameter)
optimiser.step()

def save(step):
    with torch.no_grad():
        for number, tensor in enumerate((*student.parameters(), *teacher.parameters())):
            tensor.fill_(step + 1000 * number)
        for moments in optimiser.state.values():
            moments["exp_avg"].fill_(step + 0.25)
            moments["exp_avg_sq"].fill_(step + 0.5)
            moments["step"].fill_(step)
    save_checkpoint(run, step, student, teacher, optimiser, {"step": step}, 2)
"""

EVERY_EVENT = """
limit = 0  # kills before the event of this number
count = 0

def hook(event, arguments):
    global count
    if limit and event.startswith(("open", "os.", "shutil.")) and str(run) in str(arguments):
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
step = 1
save(step)
kills = 0
while True:
    child = os.fork()
    if not child:
        limit = kills + 1
        save(step + 1)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    standing = [int(path.name) for path in complete_checkpoints(run)]
    print(os.WIFSIGNALED(ended), *standing, flush=True)
    check(standing[-1])
    if not os.WIFSIGNALED(ended):
        break
    kills += 1
    step = standing[-1] + 1
    save(step)
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {path.name for path in complete_checkpoints(run)}, left
    assert len(left) == min(step, 2)
"""

CHECK = """
from skelpipe.checkpoint import resume_checkpoint

def refuse(text):
    raise AssertionError(text)

def check(step):
    path, state = resume_checkpoint(run, student, teacher, optimiser, refuse)
    assert path.name == str(step) and state == {"step": step}
    for number, tensor in enumerate((*student.parameters(), *teacher.parameters())):
        assert bool((tensor == step + 1000 * number).all())
    for moments in optimiser.state.values():
        assert bool((moments["exp_avg"] == step + 0.25).all())
        assert bool((moments["exp_avg_sq"] == step + 0.5).all())
        assert moments["step"] == step
"""


@pytest.mark.slow
def test_a_kill_before_any_call_that_touches_the_folder_leaves_whole_checkpoints(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", SAVER + CHECK + EVERY_EVENT, str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["True"] * (len(lines) - 1) + ["False"]
    assert len(lines) > 25
    # Kills came before the new checkpoint stood, and when two old ones stood beside it.
    assert {len(line) - 1 for line in lines} == {1, 2, 3}


RANDOM_KILLS = """
import random, time
rng = random.Random(0)
step = 2
save(1)
began = time.perf_counter()
save(2)
lasted = time.perf_counter() - began
for kill in range(30):
    child = os.fork()
    if not child:
        while True:
            step += 1
            save(step)
    time.sleep(rng.uniform(0, 2.5) * lasted)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".new-")]
    newest = int(complete_checkpoints(run)[-1].name)
    print(newest, len(left), *[file.name for path in left for file in path.iterdir()], flush=True)
    check(newest)
    assert newest >= step
    step = newest
"""


@pytest.mark.slow
def test_thirty_kills_at_random_moments_of_saving(tmp_path: Path) -> None:
    size = 1250  # 25 MB a checkpoint
    command = [sys.executable, "-c", SAVER + CHECK + RANDOM_KILLS, str(tmp_path), str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 30
    # What a kill leaves is one save's, or one deletion's; and kills did come in the midst of saves.
    assert {line[1] for line in lines} <= {"0", "1", "2"}
    assert sum("student.safetensors" in line for line in lines) > 5
    assert int(lines[-1][0]) > 10


def test_an_optimiser_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    tensors = load_file(path / "optimiser.safetensors")
    tensors.pop("exp_avg.encoder.norm.weight")
    save_file(tensors, path / "optimiser.safetensors")
    without_digests(path)
    method, optimiser = stepped()
    with pytest.raises(UserError, match=r"exp_avg\.encoder\.norm\.weight"):
        load_checkpoint(path, method.student, method.teacher, optimiser)


def test_the_newest_run_is_the_latest_started_with_a_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path / "z", "2026-01-01T00:00:00", (1,))
    write_run(tmp_path / "a", "2026-01-02T00:00:00", (1, 5))
    write_run(tmp_path / "b", "2026-01-03T00:00:00")
    run = newest_run(tmp_path)
    assert run.folder.name == "a"
    assert run.checkpoint().name == "5"
    assert run.recipe == RECIPE
    assert newest_run(tmp_path, complete=False).folder.name == "b"


def test_no_run_at_all_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run with a complete checkpoint"):
        newest_run(tmp_path)
    with pytest.raises(UserError, match="no run folder"):
        read_run(tmp_path)
    run = read_run(write_run(tmp_path / "b", "2026-01-03T00:00:00"))
    with pytest.raises(UserError, match="no complete checkpoint"):
        run.checkpoint()


@pytest.mark.parametrize("content", ["{", "[]", '{"name": 5}', '{"name": "x", "stray": 1}'])
def test_a_damaged_recipe_is_named(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "run", "2026-01-01T00:00:00")
    (folder / "recipe.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"recipe\.json"):
        read_run(folder)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.json"):
        read_json(path)
    with pytest.raises(UserError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    write_json(path, {"a": [1, 2]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 2]}
