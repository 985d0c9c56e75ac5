"""`skelpipe import`: runs of weights that others released."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from skelpipe.errors import UserError, nearest

from .console import console, show_warning

if TYPE_CHECKING:
    from skelpipe.checkpoint import Run

_METHODS = ("mamp", "cmd", "pcm3")
_PROMPTS = {
    "kept": "before the input norm, as released",
    "left out": "left out: this stream trains none",
    "absent": "none in the file",
}


class Stream(StrEnum):
    """What the network was trained on."""

    joint = "joint"
    bone = "bone"
    motion = "motion"


def import_(
    method: Annotated[str, typer.Argument(help="Whose weights: mamp, cmd or pcm3.")],
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint, a .pth or .pth.tar.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run; of cmd's, one in it a stream.")],
    stream: Annotated[
        Stream | None,
        typer.Option(
            help="Of pcm3: what it was trained on, which the file does not say. Of cmd: import "
            "this one alone, as --out. [default: joint of pcm3, all of cmd]"
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change the recipe where the file is mute: views.absent_body=copy. Repeatable.",
        ),
    ] = None,
) -> None:
    """Make a run of weights that others released; it is evaluated like any other.

    Of the file only tensors are read: a pickle that asks for more is refused, not run.

    Examples:

        skelpipe import mamp checkpoint-399.pth --out runs/mamp

        skelpipe import cmd checkpoint_0450.pth.tar --out runs/cmd

        skelpipe import pcm3 checkpoint_0450.pth.tar --out runs/pcm3-released

        skelpipe import pcm3 bone.pth.tar --stream bone --out runs/pcm3-released-bone
    """
    if method not in _METHODS:
        raise UserError(
            f"weights of '{method}' cannot be imported", remedy=nearest(method, _METHODS)
        )
    if method == "mamp" and stream is not None:
        raise UserError("weights of mamp are of joints", remedy="leave out --stream")

    from skelpipe.released import import_cmd, import_mamp, import_pcm3

    changes = change or []
    if method == "mamp":
        runs = [import_mamp(file, out, changes)]
    elif method == "cmd":
        runs = list(import_cmd(file, out, stream.value if stream else None, changes).values())
    else:
        runs = [import_pcm3(file, out, stream.value if stream else "joint", changes)]
    epoch = runs[0].data["imported"]["epoch"]
    _say(f"read {file}: epoch {'not told' if epoch is None else epoch}")
    for run in runs:
        _say(f"{run.folder}: {_what(run)}")
    if method != "pcm3":
        _say(f"our reading: {'; '.join(runs[0].data['readings'])}")
    show_warning(
        "the file does not say what it was trained on: evaluate it on the split it was released for"
    )
    for run in runs:
        command = f"skelpipe evaluate --protocol {run.data['probe']}"
        _say(f"next: {command} --run {quote(str(run.folder))}")


def _what(run: Run) -> str:
    """A run's encoder and what else was kept, in words."""
    from skelpipe.config import SLiMRecipe

    recipe, source = run.recipe, run.data["imported"]
    size = f"{recipe.encoder.layers} layers"
    if isinstance(recipe, SLiMRecipe):
        encoder, frames = recipe.encoder, recipe.views.frames
        size += f", dim {encoder.dim:,}, {frames} frames in patches of {encoder.patch_frames}"
        beside: Sequence[str] = ["the encoder alone"]
    else:
        size += f", hidden {recipe.encoder.hidden:,}"
        beside = ["query and key encoder alone"]
        if "prompts" in source:
            beside = [
                f"{recipe.loss.queue:,} keys of {recipe.loss.embedding}",
                f"prompts {_PROMPTS[source['prompts']]}",
            ]
    return f"{size}, {', '.join(beside)}; {source['parameters']:,} parameters"


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)
