"""The `skelpipe` command: its sub-commands, and what an error looks like."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import skelpipe
from skelpipe.errors import UserError

from .bench import bench
from .compare import compare
from .console import console, errors, show_error
from .demo import demo
from .embed import embed
from .evaluate import evaluate
from .export import export
from .import_ import import_
from .info import info
from .new_dataset import new_dataset
from .new_job import new_job
from .prepare import prepare
from .pretrain import pretrain
from .show import show
from .synth import synth
from .table import table
from .verify import verify

app = typer.Typer(
    name="skelpipe",
    help="Self-supervised skeleton-based action recognition: raw archive in, table row out.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (
    synth, new_dataset, prepare, info, show, verify, pretrain, new_job, import_, evaluate, compare,
    table, embed, export, demo, bench,
)  # fmt: skip
for command in COMMANDS:
    app.command(command.__name__.strip("_").replace("_", "-"))(command)


def _version(asked: bool) -> None:
    if asked:
        console.print(f"skelpipe {skelpipe.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["SKELPIPE_DEBUG"] = "1"


def main() -> None:
    """Run the command line. Exit code 2 is the user's mistake, 1 is ours."""
    try:
        app()
    except UserError as error:
        if os.environ.get("SKELPIPE_DEBUG"):
            raise
        show_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)
    except OSError as error:
        if os.environ.get("SKELPIPE_DEBUG"):
            raise
        show_error(f"{error.strerror or error}\n  file: {error.filename or 'not named'}")
        sys.exit(2)
    except Exception as error:
        if os.environ.get("SKELPIPE_DEBUG"):
            raise
        show_error(
            f"{type(error).__name__}: {error}\n"
            "  this is a fault of skelpipe's; run again with `skelpipe --debug …` for the traceback"
        )
        sys.exit(1)
