"""Runs made of weights that others released: read without trusting the file, and never continued.

This is the one place where a file of `torch.save` is opened, and of its pickle only tensors and
plain containers are let in.
"""

from __future__ import annotations

import hashlib
import platform
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from skelpipe.checkpoint import Run, check_free, save_checkpoint, write_json
from skelpipe.errors import UserError
from skelpipe.methods.pcm3_released import Stream, convert, has_prompts

_BESIDE = ("epoch", "arch", "optimizer", "best_acc1", "best_acc5")
"""What training scripts of the MoCo family save beside "state_dict"."""
_REMEDY = "download the file again, and give it as the authors' link gives it"


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        tensors: Its state, by the authors' names.
        epoch: As the file tells it, if it does.
    """

    tensors: dict[str, Tensor]
    epoch: int | None


def import_pcm3(file: Path, out: Path, stream: Stream = "joint") -> Run:
    """Make a run of a checkpoint of PCM3 as its authors released it.

    The run's one checkpoint is that of step 0, of what was trained here: the file tells no steps.
    Its epoch, if it tells one, stands in state.json and data.json, with the file's name and digest.

    Args:
        file: The authors' ".pth.tar".
        out: Folder of the new run.
        stream: What it was trained on, which it does not say.

    Raises:
        UserError: The file cannot be read or is no such checkpoint; a run stands in ``out``.
    """
    check_free(out)
    released = read_released(file)
    method = convert(released.tensors, stream, file)
    recipe = method.recipe
    kept = recipe.prompts.task
    source = {
        "file": file.name,
        "sha256": _digest(file),
        "epoch": released.epoch,
        "prompts": "kept" if kept else "left out" if has_prompts(released.tensors) else "absent",
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
    }
    state = {
        "step": 0,
        "epoch": released.epoch,
        "imported": source,
        "recipe": recipe.model_dump(mode="json"),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("skelpipe", "torch", "numpy")},
    }
    save_checkpoint(out, 0, method.student, method.teacher, None, state, keep=1)
    data: dict[str, Any] = {
        "folder": None,
        "url": None,
        "dataset": None,
        "split": None,
        "data_digest": None,
        "joints": len(method.topology.joints),
        "topology": method.topology.model_dump(mode="json"),
        "card_digest": None,
        "warnings": [],
        "val_subjects": [],
        "seed": 0,
        "launch": None,
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
        "readings": recipe.readings(),
        "imported": source,
    }
    write_json(out / "data.json", data)
    write_json(out / "recipe.json", recipe.model_dump())  # last: now it is a run
    return Run(out, recipe, data)


def read_released(file: Path) -> Released:
    """Read a file of `torch.save`: a state of tensors, or the "state_dict" beside other entries.

    Raises:
        UserError: There is no such file, or it is damaged, asks for more than tensors, claims more
            than it holds, or has an entry that is unknown or no tensor.
    """
    _check_kind(file)
    content = _load(file)
    if not isinstance(content, Mapping):
        raise _refusal(file, found=type(content).__name__, expected="tensors by their names")
    epoch, state = None, content
    if "state_dict" in content:
        for name in content:
            if name != "state_dict" and name not in _BESIDE:
                raise _refusal(
                    file, place=_plain(name), found="an unknown entry beside state_dict",
                    expected=f"only {', '.join(_BESIDE)}",
                )  # fmt: skip
        epoch, state = _epoch(content, file), content["state_dict"]
        if not isinstance(state, Mapping):
            raise _refusal(
                file, place="state_dict", found=type(state).__name__,
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


def _load(file: Path) -> Any:
    try:
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
