"""`skelpipe export`: a run's encoder as a file that other programmes run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import console
from .options import Features, NetworkName, newest_set, set_folder

if TYPE_CHECKING:
    from skelpipe.protocols.features import Kind

_SAMPLES = 32
"""That the file is compared on."""


class FormName(StrEnum):
    """Of the file."""

    onnx = "onnx"
    safetensors = "safetensors"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    to: Annotated[
        FormName,
        typer.Option(help="onnx: the graph, for any runtime; safetensors: for load_encoder."),
    ],
    out: Annotated[Path, typer.Option(help="The .onnx or .safetensors to write.")],
    data: Annotated[
        Path | None,
        typer.Option(
            parser=set_folder,
            metavar="DIR|URL",
            help="Prepared set whose samples the file is compared on. "
            "[default: the one the run was trained on; the newest, if imported]",
        ),
    ] = None,
    features: Annotated[
        Features | None,
        typer.Option(
            help="Of SLiM: mean of patch tokens, class token, or both joined. "
            "[default: the method's own]"
        ),
    ] = None,
    network: Annotated[NetworkName, typer.Option(help="Of the run.")] = NetworkName.student,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a run's encoder to a file, and compare the file with the run on real samples.

    ONNX takes rows of the view in batches of any size: "coordinates" (batch, frames, joints, 3) of
    a body in metres (SLiM), or "channels" (batch, frames, channels) of all bodies (PCM3), and gives
    "features". A file that does not give the run's features is not kept.

    Examples:

        skelpipe export runs/NAME --to onnx --out encoder.onnx

        skelpipe export runs/NAME --to safetensors --out encoder.safetensors
    """
    import torch

    from skelpipe.api.encoders import load_encoder
    from skelpipe.checkpoint import read_run
    from skelpipe.export import export as write
    from skelpipe.shards.card import read_fitting_card
    from skelpipe.stream.source import open_source, select

    found = read_run(run)
    folder = data
    if folder is None and "imported" not in found.data:
        folder = set_folder(found.data.get("url") or found.data["folder"])
    folder = folder or newest_set(found.recipe.pipeline)
    read_fitting_card(folder, found.recipe.pipeline)
    kind: Kind | None = features.value if features else None
    encoder = load_encoder(run, network=network.value, kind=kind, data=folder)
    table = select(folder, "all").slice(0, _SAMPLES)
    samples = open_source(folder, table, torch.device("cpu"), "mapped")
    batch = samples.take(torch.arange(len(samples)))
    parity = write(encoder, batch, out, to.value, replace=force)
    console.print(
        f"compared on {parity.rows} rows of {len(samples)} samples: largest difference "
        f"{parity.difference:.2g}, of features up to {parity.largest:.3g} "
        f"(at most {parity.allowed:.2g} passes)\nwritten: {out}",
        soft_wrap=True,
        markup=False,
    )
