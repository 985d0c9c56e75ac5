"""`skelpipe import`: a run of weights that others released."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from skelpipe.errors import UserError, nearest

from .console import console, show_warning

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
    method: Annotated[str, typer.Argument(help="Whose weights: pcm3.")],
    file: Annotated[Path, typer.Argument(help="The authors' checkpoint, a .pth.tar.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    stream: Annotated[
        Stream, typer.Option(help="What it was trained on: the file does not say.")
    ] = Stream.joint,
) -> None:
    """Make a run of weights that others released; it is evaluated like any other.

    Of the file only tensors are read: a pickle that asks for more is refused, not run.

    Examples:

        skelpipe import pcm3 checkpoint_0450.pth.tar --out runs/pcm3-released

        skelpipe import pcm3 bone.pth.tar --stream bone --out runs/pcm3-released-bone
    """
    if method != "pcm3":
        raise UserError(
            f"weights of '{method}' cannot be imported", remedy=nearest(method, ["pcm3"])
        )

    from skelpipe.config import PCM3Recipe
    from skelpipe.released import import_pcm3

    run = import_pcm3(file, out, stream.value)
    recipe, source = run.recipe, run.data["imported"]
    assert isinstance(recipe, PCM3Recipe)
    epoch = "not told" if source["epoch"] is None else source["epoch"]
    console.print(
        f"read {file}: epoch {epoch}, {recipe.encoder.layers} layers, hidden "
        f"{recipe.encoder.hidden:,}, {recipe.loss.queue:,} keys of {recipe.loss.embedding}, "
        f"{source['parameters']:,} parameters\nprompts: {_PROMPTS[source['prompts']]}",
        soft_wrap=True,
        markup=False,
    )
    show_warning(
        "the file does not say what it was trained on: evaluate it on the split it was released for"
    )
    console.print(
        f"next: skelpipe evaluate --protocol knn --run {quote(str(run.folder))}",
        soft_wrap=True,
        markup=False,
    )
