"""Runs and their checkpoints: written under a temporary name, marked, and renamed last.

A run folder holds recipe.json, data.json, metrics.jsonl, checkpoints/STEP/ and results/. A
checkpoint holds student, teacher and optimiser as safetensors, state.json and the marker
"complete" with the SHA-256 of each; one without the marker does not exist as far as anything here
is concerned. In a marker of older runs nothing stands: those files are taken as they are. A run
that was imported has one checkpoint without an optimiser, perhaps of encoders alone, and data.json
says where it is from.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skelpipe.config import RECIPE, Recipe
from skelpipe.errors import UserError
from skelpipe.files import flush, into_place, leftovers, new_name, write_whole

_MARKER = "complete"
_MOMENTS = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}
"""What optimisers keep of each parameter."""
_FREE = ("name", "title", "train.source", "train.workers", "train.micro_batch", "train.compile",
         "train.keep", "train.checkpoint_every", "train.knn_every")  # fmt: skip
"""Settings that decide no weight beyond rounding: a run may be continued with others."""


class DamagedCheckpointError(UserError):
    """A file of a checkpoint is not what was saved."""


@dataclass(frozen=True)
class Run:
    """A run folder that holds a recipe.

    Attributes:
        folder: Where it lies.
        recipe: As resolved when it started.
        data: data.json: the prepared set's folder, digests, split, held-out subjects. An imported
            run has none of these, but says under "imported" where it is from, and under "probe" the
            linear evaluation that it was published with.
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


def check_free(folder: Path) -> None:
    """Refuse a folder for a new run in which one stands."""
    if (folder / "recipe.json").exists():
        raise UserError(
            "a run stands here already",
            file=folder,
            remedy="continue it with --resume, or choose another --out",
        )


def check_own(run: Run) -> None:
    """Refuse to continue a run that was imported: it has no optimiser, no data and no seed."""
    if "imported" in run.data:
        raise UserError(
            "an imported run cannot be continued",
            file=run.folder,
            found=f"weights of {run.data['imported']['file']}",
            remedy=f"evaluate it: skelpipe evaluate --run {run.folder}; or start a new run",
        )


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
            remedy="name a folder that `skelpipe pretrain` or `skelpipe import` has made",
        )
    try:
        recipe = RECIPE.validate_json((folder / "recipe.json").read_bytes())
        data = read_json(folder / "data.json")
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            "the run's recipe is damaged",
            file=folder / "recipe.json",
            place=".".join(str(part) for part in first["loc"]),
            found=first["msg"],
            remedy="put it back as it was when the run started",
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


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """A JSON object from a file; an error says what to do about a damaged one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError("a record cannot be read", file=path, found=error, remedy=remedy) from error
    if not isinstance(value, dict):
        raise UserError("a record is damaged", file=path, expected="a JSON object", remedy=remedy)
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object in one step: it stands there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def save_checkpoint(
    run: Path,
    step: int,
    student: nn.Module,
    teacher: nn.Module | None,
    optimiser: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Save a checkpoint so that it stands whole or not at all, then drop older ones but ``keep``.

    Later ones go too: a run that went back behind a damaged checkpoint leaves it behind. Without an
    optimiser it can be evaluated, not continued; without a teacher it has none to evaluate.

    Raises:
        UserError: The disk is full; the checkpoints before this one stand.
    """
    final = run / "checkpoints" / str(step)
    new = new_name(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for left in leftovers(final.parent):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir()
        save_file(student.state_dict(), new / "student.safetensors")
        if teacher is not None:
            save_file(teacher.state_dict(), new / "teacher.safetensors")
        if optimiser is not None:
            save_file(_optimiser_tensors(student, optimiser), new / "optimiser.safetensors")
        write_json(new / "state.json", state)
        digests = {path.name: _digest(path) for path in sorted(new.iterdir())}
        for name in digests:
            flush(new / name)
        write_json(new / _MARKER, digests)
        if final.exists():
            _remove(final)
        into_place(new, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        needed = sum(4 * tensor.numel() for tensor in student.state_dict().values()) * 4
        raise UserError(
            "the disk is full" if full else "the checkpoint cannot be written",
            file=final,
            found=error,
            expected=f"about {needed:,} bytes free",
            remedy="make room, then import it again"
            if optimiser is None
            else "make room, then continue with `skelpipe pretrain --resume --out "
            f"{run}`; checkpoints before this one stand",
        ) from error
    standing = complete_checkpoints(run)
    place = standing.index(final)
    for other in standing[: max(place + 1 - keep, 0)] + standing[place + 1 :]:
        _remove(other)
    return final


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; its name goes first, so that it never stands there in part."""
    gone = new_name(checkpoint)
    checkpoint.replace(gone)
    shutil.rmtree(gone, ignore_errors=True)  # what cannot go yet is a left-over of the next save


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resume_checkpoint(
    run: Path,
    student: nn.Module,
    teacher: nn.Module,
    optimiser: torch.optim.Optimizer,
    warn: Callable[[str], None] = lambda text: None,
    recipe: Recipe | None = None,
) -> tuple[Path, dict[str, Any]] | None:
    """Restore the newest complete checkpoint that is not damaged; None where none is complete.

    Args:
        run: The run's folder.
        student, teacher, optimiser: Restored in place.
        warn: Called with the damage of each checkpoint that is passed over.
        recipe: What the checkpoint must have been saved under, see `check_recipe`.

    Returns:
        The checkpoint and its state.

    Raises:
        UserError: All complete ones are damaged, or one does not fit the recipe.
    """
    found = complete_checkpoints(run)
    for checkpoint in reversed(found):
        try:
            return checkpoint, load_checkpoint(checkpoint, student, teacher, optimiser, recipe)
        except DamagedCheckpointError as error:
            if checkpoint == found[0]:
                raise
            warn(f"{error}\n  the checkpoint before it is used")
    return None


def check_recipe(state: Mapping[str, Any], recipe: Recipe) -> None:
    """Hold the recipe of a run against the one its checkpoint was saved under.

    Raises:
        UserError: A setting that decides the weights is another; the first one is named.
    """
    saved, now = _flat(state.get("recipe", {})), _flat(recipe.model_dump(mode="json"))
    for name in saved:  # the method first: it stands before its sections
        if name not in _FREE and saved[name] != now.get(name):
            raise UserError(
                "the checkpoint was saved under another recipe",
                place=name,
                found=now.get(name, "no such setting"),
                expected=saved[name],
                remedy="put recipe.json back as it was, or start a new run",
            )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by ``section.key``."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        inside = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if inside else {prefix + name: value}
    return found


def load_checkpoint(
    checkpoint: Path,
    student: nn.Module,
    teacher: nn.Module,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Restore everything in place; returns the state.

    Raises:
        DamagedCheckpointError: A file is not what was saved.
        UserError: It was saved under another recipe than this, or a tensor does not fit the
            networks; the first that differs is named.
    """
    _check_digest(checkpoint / "state.json")
    state = read_json(checkpoint / "state.json")
    if recipe is not None:
        check_recipe(state, recipe)
    load_network(checkpoint, "student", student)
    load_network(checkpoint, "teacher", teacher)
    path = checkpoint / "optimiser.safetensors"
    moments = _MOMENTS[type(optimiser)]
    expected = {
        f"{kind}.{name}": parameter.shape if kind != "step" else torch.Size()
        for name, parameter in student.named_parameters()
        for kind in moments
    }
    tensors = _read_fitting(path, expected)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            optimiser.state[parameter] = {
                kind: tensors[f"{kind}.{names[id(parameter)]}"].to(
                    "cpu" if kind == "step" else parameter.device,
                    copy=True,  # else it would stay mapped to a file that may be deleted
                )
                for kind in moments
            }
    return state


def has_network(checkpoint: Path, name: str) -> bool:
    """Whether a checkpoint has a "student" or "teacher"; all but imported ones have both."""
    return (checkpoint / f"{name}.safetensors").is_file()


def load_network(checkpoint: Path, name: str, network: nn.Module, part: str = "") -> None:
    """Load "student" or "teacher", or a part of it, into a network of the same shape.

    Args:
        checkpoint: Its folder.
        name: Of the file.
        network: What is loaded into.
        part: What the part's names begin with, such as "encoder."; all of it where empty.

    Raises:
        DamagedCheckpointError: The file is not what was saved.
        UserError: A tensor is missing, too many or of another shape; the first one is named.
    """
    expected = {part + key: tensor.shape for key, tensor in network.state_dict().items()}
    tensors = _read_fitting(checkpoint / f"{name}.safetensors", expected, part)
    network.load_state_dict({key.removeprefix(part): tensor for key, tensor in tensors.items()})


def _read_fitting(
    path: Path, expected: Mapping[str, torch.Size], part: str = ""
) -> dict[str, Tensor]:
    """The tensors of a file whose names begin so, which must be exactly these in these shapes."""
    tensors = {key: value for key, value in _read_tensors(path).items() if key.startswith(part)}
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
                remedy="put recipe.json back as it was when the run started",
            )
    return tensors


def _read_tensors(path: Path) -> dict[str, Tensor]:
    _check_digest(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, found=error, expected="safetensors") from error


def _check_digest(path: Path) -> None:
    """Hold a file of a checkpoint against the marker, where that says something."""
    marker = path.parent / _MARKER
    if not marker.exists() or not marker.stat().st_size:
        return
    try:
        expected = json.loads(marker.read_bytes())[path.name]
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(
            marker, found=error, expected=f"JSON with a digest of {path.name}"
        ) from error
    try:
        found = _digest(path)
    except OSError as error:
        raise _damaged(path, found=error) from error
    if found != expected:
        size = f"{path.stat().st_size:,} bytes with sha256 {found}"
        raise _damaged(path, found=size, expected=f"sha256 {expected}, as saved")


def _damaged(path: Path, *, found: object, expected: object = "") -> DamagedCheckpointError:
    if path.is_file():
        with path.open("rb") as file:
            # A zip, as torch.save writes, or a bare pickle; in safetensors the ninth byte is {.
            head = file.read(9)
        if head.startswith((b"PK\x03\x04", b"\x80")) and not head.endswith(b"{"):
            found, expected = "a pickle, as torch.save writes: it was not opened", "safetensors"
    return DamagedCheckpointError(
        "the checkpoint is damaged",
        file=path,
        found=found,
        expected=expected,
        remedy=f"delete {path.parent}: the complete checkpoint before it, if any, is used then",
    )


def _optimiser_tensors(student: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": tensor
        for name, parameter in student.named_parameters()
        for kind, tensor in optimiser.state[parameter].items()
    }
