"""`skelpipe new-dataset`: a manifest to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import console
from .options import write_new


def new_dataset(
    name: Annotated[str, typer.Argument(help="Of the data set: letters, digits, - and _.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: NAME.toml, here.")
    ] = None,
) -> None:
    """Write a manifest for skeletons of your own, every key of it explained.

    Examples:

        skelpipe new-dataset kitchen

        skelpipe new-dataset kitchen --out data/raw/kitchen/kitchen.toml
    """
    from skelpipe.manifest import new_manifest

    file = out or Path(f"{name}.toml")
    write_new(file, new_manifest(name))
    then = f"{file}: a whole example. Change it to what you have, then\n  skelpipe prepare {file}"
    console.print(then, soft_wrap=True, markup=False)
