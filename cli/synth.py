"""`skelpipe synth`: generated recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from .console import console


def synth(
    dataset: Annotated[
        str, typer.Argument(help="Data set whose layout to write: ntu60, ntu120, pku1 or pku2.")
    ],
    out: Annotated[Path, typer.Argument(help="The zip to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Of performers, executions and faults.")] = 0,
    classes: Annotated[
        int, typer.Option(min=1, help="Number of classes; at most 60, 120, 51, 41.")
    ] = 12,
    subjects: Annotated[
        int, typer.Option(min=1, help="Number of performers; at most 40, 106, 66, 13.")
    ] = 12,
    cameras: Annotated[int, typer.Option(min=1, max=3, help="Number of cameras.")] = 3,
    replications: Annotated[
        int,
        typer.Option(min=1, help="Executions of a class, or PKU recordings, by each performer."),
    ] = 2,
    actions: Annotated[
        int, typer.Option(min=1, help="Actions in a PKU recording, a quarter more or less.")
    ] = 8,
    force: Annotated[bool, typer.Option("--force", help="Replace the zip if it exists.")] = False,
) -> None:
    """Generate procedural human motion as a raw archive, with a sensor's faults.

    The same seed and sizes give the same bytes. Nothing in it is recorded from people: use it to
    try the whole path without a download, never to say anything about NTU RGB+D or PKU-MMD.

    Examples:

        skelpipe synth ntu60 data/raw/synthetic.zip

        skelpipe synth ntu120 large.zip --classes 120 --subjects 106 --seed 1

        skelpipe synth pku1 continuous.zip --actions 20
    """
    from skelpipe.prepare.synth import write_recordings

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("generating", total=None)
        count = write_recordings(
            dataset,
            out,
            seed=seed,
            classes=classes,
            subjects=subjects,
            cameras=cameras,
            replications=replications,
            actions=actions,
            force=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    size = out.stat().st_size / 1e6
    console.print(f"{count:,} generated recordings, {size:.1f} MB: {out}", soft_wrap=True)
