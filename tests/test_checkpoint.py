from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import KINECT, tiny_recipe
from safetensors.torch import load_file, save_file

from skelpipe import checkpoint as checkpoints
from skelpipe.checkpoint import (
    complete_checkpoints,
    load_checkpoint,
    load_network,
    newest_run,
    read_json,
    read_run,
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
    (good.parent / "3.part").mkdir()
    (good.parent / "3.part" / "complete").touch()
    (good.parent / "notes").mkdir()
    (good.parent / "notes" / "complete").touch()
    assert complete_checkpoints(tmp_path) == [good]


def test_left_overs_of_a_kill_do_not_disturb(tmp_path: Path) -> None:
    part = tmp_path / "checkpoints" / "5.part"
    part.mkdir(parents=True)
    (part / "student.safetensors").write_bytes(b"half")
    half = tmp_path / "checkpoints" / "6"
    half.mkdir()
    (half / "student.safetensors").write_bytes(b"half")
    assert save(tmp_path, 5).name == "5"
    assert save(tmp_path, 6).name == "6"
    assert not part.exists()
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
    with pytest.raises(UserError, match=r"encoder\.norm\.(weight|gain)"):
        load_network(path, "teacher", stepped()[0].teacher)


class Burglar:
    """A pickle that leaves a trace if anyone loads it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["student", "optimiser"])
@pytest.mark.parametrize("content", ["pickle", "torch", "truncated", "empty", "absent"])
def test_a_damaged_file_is_refused_and_nothing_is_unpickled(
    tmp_path: Path, name: str, content: str
) -> None:
    path = save(tmp_path, 1)
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
    with pytest.raises(UserError, match=rf"{name}\.safetensors"):
        load_checkpoint(path, method.student, method.teacher, optimiser)
    assert not trace.exists()


def test_an_optimiser_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    tensors = load_file(path / "optimiser.safetensors")
    tensors.pop("exp_avg.encoder.norm.weight")
    save_file(tensors, path / "optimiser.safetensors")
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
