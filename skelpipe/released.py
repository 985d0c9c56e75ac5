"""Runs made of weights that others released: read without trusting the file, and never continued.

This is the one place where a file of `torch.save` is opened, and of its pickle only tensors and
plain containers are let in; of MAMP's an `argparse.Namespace` too, which is not kept.
"""

from __future__ import annotations

import hashlib
import platform
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from skelpipe.checkpoint import Run, check_free, save_checkpoint, write_json
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.manifest import load_topology
from skelpipe.methods import cmd_released, mamp_released, pcm3_released
from skelpipe.methods.pcm3_released import Stream

_SKELETON = "kinect_v2"
"""Of all these weights."""
_REMEDY = "download the file again, and give it as the authors' link gives it"


@dataclass(frozen=True)
class Form:
    """How a training script saves.

    Attributes:
        state: The entry that holds the tensors.
        beside: Entries that may stand beside it.
        admitted: Types that may stand in these, beside tensors and plain containers.
    """

    state: str
    beside: tuple[str, ...]
    admitted: tuple[type, ...] = ()


MOCO = Form("state_dict", ("epoch", "arch", "optimizer", "best_acc1", "best_acc5"))
"""The MoCo family's: PCM3's and CMD's."""
MAE = Form("model", ("optimizer", "epoch", "scaler", "args"), (Namespace,))
"""The MAE family's: MAMP's."""


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        tensors: Its state, by the authors' names.
        epoch: As the file tells it, if it does.
    """

    tensors: dict[str, Tensor]
    epoch: int | None


def import_pcm3(
    file: Path, out: Path, stream: Stream = "joint", changes: Sequence[str] = ()
) -> Run:
    """Make a run of a checkpoint of PCM3 as its authors released it.

    The run's one checkpoint is that of step 0, of what was trained here: the file tells no steps.
    Its epoch, if it tells one, stands in state.json and data.json, with the file's name and digest.

    Args:
        file: The authors' ".pth.tar".
        out: Folder of the new run.
        stream: What it was trained on, which it does not say.
        changes: Settings of the recipe that win over what is read from the file.

    Raises:
        UserError: The file cannot be read or is no such checkpoint; a run stands in ``out``.
    """
    check_free(out)
    released = read_released(file, MOCO)
    method = pcm3_released.convert(released.tensors, stream, file, changes)
    recipe = method.recipe
    prompted = pcm3_released.has_prompts(released.tensors)
    prompts = "kept" if recipe.prompts.task else "left out" if prompted else "absent"
    source = _source("pcm3", file, released) | {
        "prompts": prompts,
        "parameters": _parameters(method),
    }
    return _store(
        out, recipe, method.student, method.teacher, source, "linear-pcm3", recipe.readings()
    )


def import_cmd(
    file: Path, out: Path, stream: Stream | None = None, changes: Sequence[str] = ()
) -> dict[Stream, Run]:
    """Make runs of a checkpoint of CMD as its authors released it: encoders alone, one a stream.

    Args:
        file: The authors' ".pth.tar".
        out: Folder of the runs, each in a folder by its stream's name; of the run, if one is asked.
        stream: The only one that is wanted; all three if None.
        changes: Settings of the recipes that win over what is read from the file.

    Returns:
        Stream -> its run, whose student is the query and whose teacher the key encoder.

    Raises:
        UserError: As `import_pcm3`; nothing is written then.
    """
    wanted: tuple[Stream, ...] = (stream,) if stream else ("joint", "motion", "bone")
    folders = {name: out if stream else out / name for name in wanted}
    for folder in (out, *folders.values()):
        check_free(folder)
    released = read_released(file, MOCO)
    branches = cmd_released.convert(released.tensors, wanted, file, changes)
    source = _source("cmd", file, released)
    return {
        name: _store(
            folders[name],
            branch.recipe,
            branch.query,
            branch.key,
            source | {"stream": name, "parameters": _parameters(branch.query)},
            "linear-cmd",
            branch.readings(),
        )
        for name, branch in branches.items()
    }


def import_mamp(file: Path, out: Path, changes: Sequence[str] = ()) -> Run:
    """Make a run of a checkpoint of MAMP as its authors released it: its encoder alone.

    Args:
        file: The authors' ".pth".
        out: Folder of the new run.
        changes: Settings of the recipe that win over what is read from the file: heads, epsilon and
            absent bodies, of which it says nothing.

    Raises:
        UserError: As `import_pcm3`.
    """
    check_free(out)
    released = read_released(file, MAE)
    found = mamp_released.convert(released.tensors, file, changes)
    source = _source("mamp", file, released) | {"parameters": _parameters(found.network)}
    return _store(out, found.recipe, found.network, None, source, "linear", found.readings())


def _source(method: str, file: Path, released: Released) -> dict[str, Any]:
    return {
        "method": method,
        "file": file.name,
        "sha256": _digest(file),
        "epoch": released.epoch,
    }


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _store(
    out: Path,
    recipe: Recipe,
    student: nn.Module,
    teacher: nn.Module | None,
    source: Mapping[str, Any],
    probe: str,
    readings: Sequence[str],
) -> Run:
    """Write a run with one checkpoint, of step 0.

    Args:
        out: Its folder.
        recipe: Gives the encoder's shape and its view.
        student, teacher: Their states are stored.
        source: Where they are from.
        probe: The protocol by which the authors evaluate.
        readings: What the file does not tell, as it is read.
    """
    topology = load_topology(_SKELETON)
    state = {
        "step": 0,
        "epoch": source["epoch"],
        "imported": source,
        "recipe": recipe.model_dump(mode="json"),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("skelpipe", "torch", "numpy")},
    }
    save_checkpoint(out, 0, student, teacher, None, state, keep=1)
    data: dict[str, Any] = {
        "folder": None,
        "url": None,
        "dataset": None,
        "split": None,
        "data_digest": None,
        "joints": len(topology.joints),
        "topology": topology.model_dump(mode="json"),
        "card_digest": None,
        "warnings": [],
        "val_subjects": [],
        "seed": 0,
        "launch": None,
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
        "readings": list(readings),
        "probe": probe,
        "imported": source,
    }
    write_json(out / "data.json", data)
    write_json(out / "recipe.json", recipe.model_dump())  # last: now it is a run
    return Run(out, recipe, data)


def read_released(file: Path, form: Form) -> Released:
    """Read a file of `torch.save`: a state of tensors, or one beside the other entries of a form.

    Raises:
        UserError: There is no such file, or it is damaged, asks for more than tensors, claims more
            than it holds, or has an entry that is unknown or no tensor.
    """
    _check_kind(file)
    content = _load(file, form)
    if not isinstance(content, Mapping):
        raise _refusal(file, found=type(content).__name__, expected="tensors by their names")
    epoch, state = None, content
    if form.state in content:
        for name in content:
            if name != form.state and name not in form.beside:
                raise _refusal(
                    file, place=_plain(name), found=f"an unknown entry beside {form.state}",
                    expected=f"only {', '.join(form.beside)}",
                )  # fmt: skip
        epoch, state = _epoch(content, file), content[form.state]
        if not isinstance(state, Mapping):
            raise _refusal(
                file, place=form.state, found=type(state).__name__,
                expected="tensors by their names",
            )  # fmt: skip
    if not state:
        raise _refusal(file, found="no tensor")
    return Released(_checked(state, file), epoch)


def _check_kind(file: Path) -> None:
    """Refuse what is no file of `torch.save`, and what unpacks to more than it is."""
    if file.is_dir():
        run = (file / "recipe.json").exists()
        raise UserError(
            "this is a run already" if run else "this is a folder",
            file=file,
            expected="a file, such as checkpoint_0450.pth.tar",
            remedy=f"skelpipe evaluate --protocol knn --run {file}" if run else "",
        )
    if not file.is_file():
        raise UserError("there is no such file", file=file)
    with file.open("rb") as opened:
        head = opened.read(9)
    if head.endswith(b"{"):
        raise _refusal(file, found=_first_key(file), expected="a file of torch.save")
    if head.startswith(b"PK\x03\x04"):
        _check_zip(file)
    elif not head.startswith(b"\x80"):
        raise _refusal(
            file, found=f"first bytes {head!r}", expected="a zip or a pickle, as torch.save writes"
        )


def _first_key(file: Path) -> str:
    try:
        with safe_open(file, "pt") as opened:
            keys = sorted(opened.keys())
    except (OSError, SafetensorError) as error:
        return f"what looks like safetensors: {error}"
    return f"safetensors with unknown keys, the first is {keys[0]}" if keys else "safetensors"


def _check_zip(file: Path) -> None:
    """Refuse damage, and what unpacks to more than the file: `torch.save` compresses nothing."""
    try:
        with zipfile.ZipFile(file) as opened:
            members = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise _refusal(file, found=error, expected="a whole zip, as torch.save writes") from error
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    claimed, size = sum(member.file_size for member in members), file.stat().st_size
    if packed or claimed > size:
        found = f"{packed[0]} is compressed" if packed else f"{claimed:,} bytes claimed in {size:,}"
        raise _refusal(file, found=found, expected="a zip without compression")
    with zipfile.ZipFile(file) as opened:
        try:
            damaged = opened.testzip()
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
            damaged = str(error)
    if damaged:
        raise _refusal(
            file, place=damaged, found="bytes of another checksum", expected="a whole zip"
        )


def _load(file: Path, form: Form) -> Any:
    try:
        with torch.serialization.safe_globals(list(form.admitted)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a hostile file: of any kind
        asked = re.search(r"GLOBAL (\S+)", str(error))
        lines = str(error).splitlines() or [""]
        if asked:
            found = f"a pickle that asks for {asked[1]}: it was not run"
        elif type(error).__name__ == "UnpicklingError":  # its text tells how to run it all the same
            found = "a pickle of more than tensors: it was not run"
        else:
            found = f"{type(error).__name__}: {lines[0][:200]}"
        raise _refusal(file, found=found, expected="a whole file of tensors alone") from error


def _epoch(content: Mapping[Any, Any], file: Path) -> int | None:
    epoch = content.get("epoch")
    if epoch is not None and (type(epoch) is not int or epoch < 0):
        raise _refusal(file, place="epoch", found=repr(epoch)[:60], expected="a number of epochs")
    return epoch


def _checked(state: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    """The state, of dense tensors that are no larger than the file all together."""
    for key, tensor in state.items():
        plain = type(tensor) in (Tensor, nn.Parameter)
        if not isinstance(key, str) or not plain or tensor.layout != torch.strided:
            found = "another kind of tensor" if plain else type(tensor).__name__
            found = found if isinstance(key, str) else "a key that is no text"
            raise _refusal(file, place=_plain(key), found=found, expected="a dense tensor")
        if key != _plain(key):
            raise _refusal(file, place=_plain(key), found="a key that is no name")
        if tensor.device.type != "cpu":
            raise _refusal(file, place=key, found=tensor.device, expected="a tensor with values")
    # An expanded tensor, of stride 0, is as large as it likes.
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if claimed > file.stat().st_size:
        key = max(state, key=lambda key: state[key].numel())
        raise _refusal(
            file, place=key, found=f"{tuple(state[key].shape)}: more than the file's bytes",
            expected="tensors that are stored whole",
        )  # fmt: skip
    return {key: tensor.detach() for key, tensor in state.items()}


def _plain(key: object) -> str:
    """A key as it may be shown: a name as it is, else without what a screen would obey."""
    text = str(key) if str(key).isprintable() else ascii(key)
    return text[:200]


def _refusal(file: Path, *, found: object, place: str = "", expected: str = "") -> UserError:
    return UserError(
        "this file holds no weights that can be imported",
        file=file,
        place=place,
        found=found,
        expected=expected,
        remedy=_REMEDY,
    )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
