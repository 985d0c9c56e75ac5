"""`skelpipe table`: a paper's table, what is missing of it run, and ours beside what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skelpipe.errors import UserError, nearest

from .options import choose_device, subject_numbers
from .table_ablations import run_ablations
from .table_published import run_published
from .table_runs import seed_numbers


def table(
    name: Annotated[
        str,
        typer.Argument(
            help="slim-table-1 … slim-table-8, pcm3-table-1 … pcm3-table-10; slim-ablations: "
            "SLiM's Tables 5-7 together; pcm3-ablations: PCM3's Tables 7-10."
        ),
    ],
    scale: Annotated[
        str, typer.Option(help="paper (the paper's size), small (one GPU), or tiny (a CPU).")
    ] = "paper",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Root of prepared sets [default: $SKELPIPE_SHARDS, else data/shards]; of "
            "ablations, the one prepared set [default: the newest that fits the recipes]."
        ),
    ] = None,
    raw: Annotated[
        list[Path] | None,
        typer.Option(
            help="Where raw data is looked for that is not prepared yet. Repeatable. "
            "[default: $SKELPIPE_RAW, else data/raw]"
        ),
    ] = None,
    synth: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Rehearse on generated data: raw archives, sets and runs in DIR."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the runs of each row, such as 0,1.")] = "0",
    val_subjects: Annotated[
        str,
        typer.Option(
            help="Of ablations: training subjects held out and queried; leaves the test part alone."
        ),
    ] = "",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only these columns, such as ntu60_xsub; of ablations, these rows, by their "
            "recipes. Repeatable."
        ),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of all runs. Repeatable.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Root of the runs. [default: $SKELPIPE_RUNS, else runs]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the table. [default: beside the runs, in table]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. [default: $OMP_NUM_THREADS, else all]")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be run, no more.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start even if it will take days on this CPU.")
    ] = False,
) -> None:
    """Prepare, pre-train and evaluate what is missing of a paper's table, and write it.

    Runs lie in RUNS/tables/SCALE/METHOD-DATASET-SPLIT-seedK and are shared by the tables; those of
    ablations in RUNS/NAME/SCALE/ROW-seedK. What is finished is never repeated, what is unfinished
    goes on. Several of these commands may work on the same folder: each takes runs that no other
    one is at. Columns whose raw data is absent are left out, and it is said what to put where.

    Examples:

        skelpipe table slim-table-2 --plan

        skelpipe table slim-table-2 --seeds 0,1,2 --set train.precision=bf16

        skelpipe table slim-table-2 --scale tiny --synth rehearsal

        skelpipe table pcm3-table-4 --scale small --raw /data/ntu --only spatial_xsub

        skelpipe table slim-ablations --scale tiny --seeds 0,1 --val-subjects 8,9 --threads 1

        skelpipe table slim-table-5 --only slim-ablation-full --only slim-ablation-mfm
    """
    import torch

    from skelpipe.manifest import manifest_names
    from skelpipe.report.ablations import single_tables

    seed_list, held_out = seed_numbers(seeds), subject_numbers(val_subjects)
    single, whole = single_tables(), manifest_names("ablations")
    published = manifest_names("table")
    if name not in (*published, *single, *whole):
        raise UserError(
            f"unknown table '{name}'", remedy=nearest(name, [*published, *single, *whole])
        )
    where = choose_device(device)
    if threads:
        torch.set_num_threads(threads)
    if name in published:
        if held_out:
            raise UserError(
                "a published table queries the test part", remedy="leave out --val-subjects"
            )
        run_published(
            name, scale=scale, data=data, raw=raw or [], synth=synth, seeds=seed_list,
            only=only or [], changes=change or [], runs=runs, out=out, device=where, plan=plan,
            yes=yes,
        )  # fmt: skip
        return
    if raw or synth:
        raise UserError(
            "ablations are run on one prepared set", remedy="--data DIR instead of --raw or --synth"
        )
    ablations, number = single.get(name, (name, None))
    run_ablations(
        ablations, number, scale=scale, data=data, seeds=seed_list, val_subjects=held_out,
        only=only or [], changes=change or [], runs=runs, out=out, device=where, plan=plan, yes=yes,
    )  # fmt: skip
