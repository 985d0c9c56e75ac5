"""Runs and their checkpoints: written under a temporary name, renamed, and marked last.

A run folder holds recipe.json, data.json, metrics.jsonl, checkpoints/STEP/ and results/. A
checkpoint holds student, teacher and optimiser as safetensors, state.json and the marker
"complete"; one without the marker does not exist as far as anything here is concerned.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skelpipe.config import Recipe
from skelpipe.errors import UserError

_MARKER = "complete"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


@dataclass(frozen=True)
class Run:
    """A run folder that holds a recipe.

    Attributes:
        folder: Where it lies.
        recipe: As resolved when it started.
        data: data.json: the prepared set's folder, digests, split, held-out subjects.
    """

    folder: Path
    recipe: Recipe
    data: dict[str, Any]

    def checkpoint(self) -> Path:
        """The newest complete checkpoint."""
        found = complete_checkpoints(self.folder)
        if not found:
            raise UserError(
                "the run has no complete checkpoint",
                file=self.folder,
                remedy="continue it with `skelpipe pretrain --resume --out "
                f"{self.folder}`, or name another with --run",
            )
        return found[-1]


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [marker.parent for marker in (folder / "checkpoints").glob(f"*/{_MARKER}")]
    return sorted((path for path in found if path.name.isdigit()), key=lambda path: int(path.name))


def read_run(folder: Path) -> Run:
    """A run by its folder.

    Raises:
        UserError: No run stands there, or its records are damaged.
    """
    if not (folder / "recipe.json").is_file():
        raise UserError(
            "this is no run folder",
            file=folder,
            expected="recipe.json, as `skelpipe pretrain` writes it",
        )
    try:
        recipe = Recipe.model_validate_json((folder / "recipe.json").read_bytes())
        data = read_json(folder / "data.json")
    except ValidationError as error:
        raise UserError(
            "the run's recipe is damaged", file=folder / "recipe.json", found=error
        ) from error
    return Run(folder, recipe, data)


def newest_run(root: Path, *, complete: bool = True) -> Run:
    """The run under ``root`` with the latest start, among those with a complete checkpoint."""
    folders = [path.parent for path in root.glob("*/recipe.json")]
    if complete:
        folders = [folder for folder in folders if complete_checkpoints(folder)]
    if not folders:
        raise UserError(
            "there is no run" + (" with a complete checkpoint" if complete else ""),
            file=root,
            remedy="start one with `skelpipe pretrain`, or name one with --run",
        )
    return read_run(max(folders, key=_started))


def _started(folder: Path) -> tuple[str, str]:
    return str(read_json(folder / "data.json").get("started", "")), folder.name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError("a record cannot be read", file=path, found=error) from error
    if not isinstance(value, dict):
        raise UserError("a record is damaged", file=path, expected="a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def save_checkpoint(
    run: Path,
    step: int,
    student: nn.Module,
    teacher: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Save a checkpoint so that it stands whole or not at all, then drop older ones but ``keep``.

    Raises:
        UserError: The disk is full; the checkpoints before this one stand.
    """
    final = run / "checkpoints" / str(step)
    part = run / "checkpoints" / f"{step}.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_file(student.state_dict(), part / "student.safetensors")
        save_file(teacher.state_dict(), part / "teacher.safetensors")
        save_file(_optimiser_tensors(student, optimiser), part / "optimiser.safetensors")
        write_json(part / "state.json", state)
        (part / _MARKER).touch()
        for path in (*part.iterdir(), part):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
        _sync(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        needed = sum(4 * tensor.numel() for tensor in student.state_dict().values()) * 4
        raise UserError(
            "the disk is full" if full else "the checkpoint cannot be written",
            file=final,
            found=error,
            expected=f"about {needed:,} bytes free",
            remedy="make room, then continue with `skelpipe pretrain --resume --out "
            f"{run}`; checkpoints before this one stand",
        ) from error
    for old in complete_checkpoints(run)[:-keep]:
        # Without its marker first: half deleted, it must not look complete.
        (old / _MARKER).unlink()
        shutil.rmtree(old)
    return final


def load_checkpoint(
    checkpoint: Path, student: nn.Module, teacher: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restore everything in place; returns the state."""
    load_network(checkpoint, "student", student)
    load_network(checkpoint, "teacher", teacher)
    path = checkpoint / "optimiser.safetensors"
    expected = {
        f"{kind}.{name}": parameter.shape if kind != "step" else torch.Size()
        for name, parameter in student.named_parameters()
        for kind in _MOMENTS
    }
    tensors = _read_fitting(path, expected)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            optimiser.state[parameter] = {
                kind: tensors[f"{kind}.{names[id(parameter)]}"].to(
                    "cpu" if kind == "step" else parameter.device
                )
                for kind in _MOMENTS
            }
    return read_json(checkpoint / "state.json")


def load_network(checkpoint: Path, name: str, network: nn.Module) -> None:
    """Load "student" or "teacher" into a network of the same shape.

    Raises:
        UserError: The file is damaged or of another shape; the first tensor that differs is named.
    """
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    network.load_state_dict(_read_fitting(checkpoint / f"{name}.safetensors", expected))


def _read_fitting(path: Path, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors of a file, which must have exactly these names and shapes."""
    tensors = _read_tensors(path)
    for key in sorted(tensors.keys() | expected.keys()):
        found = tuple(tensors[key].shape) if key in tensors else "nothing"
        wanted = tuple(expected[key]) if key in expected else "nothing"
        if found != wanted:
            raise UserError(
                "the checkpoint does not fit the run's recipe",
                file=path,
                place=key,
                found=found,
                expected=wanted,
            )
    return tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            "the checkpoint is damaged",
            file=path,
            found=error,
            remedy="delete its folder: the complete checkpoint before it, if any, is used then",
        ) from error


def _optimiser_tensors(student: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": tensor
        for name, parameter in student.named_parameters()
        for kind, tensor in optimiser.state[parameter].items()
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
