"""`skelpipe new-job`: a batch script to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import console
from .options import write_new


def new_job(
    name: Annotated[str, typer.Argument(help="Of the job and its run: letters, digits, - and _.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: NAME.sbatch, here.")
    ] = None,
) -> None:
    """Write a Slurm script that pre-trains on several GPUs and comes back until it is done.

    Examples:

        skelpipe new-job slim-ntu60
    """
    from importlib import resources

    from skelpipe.errors import UserError
    from skelpipe.manifest import is_name

    if not is_name(name):
        raise UserError(
            "a job's name becomes a folder", found=name, expected="letters, digits, - and _"
        )
    file = out or Path(f"{name}.sbatch")
    template = resources.files("skelpipe.manifests") / "pretrain.sbatch"
    write_new(file, template.read_text(encoding="utf-8").replace("NAME", name))
    then = f"{file}: change what your cluster needs, then\n  sbatch {file}"
    console.print(then, soft_wrap=True, markup=False)
