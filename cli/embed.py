"""`skelpipe embed`: the features of a prepared set in a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skelpipe.errors import UserError

from .console import console
from .options import Features, NetworkName, choose_device, set_folder

if TYPE_CHECKING:
    from skelpipe.protocols.features import Kind


class PartName(StrEnum):
    """Of a prepared set."""

    train = "train"
    test = "test"
    all = "all"


def embed(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    data: Annotated[
        Path, typer.Argument(parser=set_folder, metavar="DIR|URL", help="Prepared set.")
    ],
    out: Annotated[Path, typer.Option(help="The .h5, .hdf5 or .parquet to write.")],
    part: Annotated[PartName, typer.Option(help="Of the set.")] = PartName.all,
    features: Annotated[
        Features | None,
        typer.Option(
            help="Of SLiM: mean of patch tokens, class token, or both joined. "
            "[default: the method's own]"
        ),
    ] = None,
    network: Annotated[
        NetworkName | None, typer.Option(help="Of the run. [default: student]")
    ] = None,
    raw_features: Annotated[
        bool, typer.Option("--raw-features", help="The plain resampled skeleton instead.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write the features of every sample, with its key, label, part and subject.

    They are those that `skelpipe evaluate` has: of the centre crop, frozen, float32, one row a
    sample in the order of keys. One process writes them, in as much memory for a large set as for a
    small one.

    Examples:

        skelpipe embed runs/NAME data/shards/ntu60/ctrgcn/xsub --out features.h5

        skelpipe embed runs/NAME data/shards/ntu60/ctrgcn/xsub --out test.parquet --part test
    """
    from skelpipe.checkpoint import read_run
    from skelpipe.protocols.embed import embed as write

    from .progress import counting_progress

    if raw_features and (features or network):
        raise UserError(
            "the raw skeleton comes from no network",
            found="--raw-features with " + ("--features" if features else "--network"),
            remedy="leave out one of them",
        )
    kind: Kind | None = features.value if features else None
    with counting_progress("samples") as report:
        samples, width = write(
            read_run(run),
            data,
            out,
            device=choose_device(device),
            part=part.value,
            kind=kind,
            network=network.value if network else "student",
            raw=raw_features,
            replace=force,
            report=report,
        )
    console.print(
        f"{samples:,} samples, {width:,} features each: {out}", soft_wrap=True, markup=False
    )
