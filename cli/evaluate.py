"""`skelpipe evaluate`: a downstream protocol, a sweep over its settings, a fusion of streams."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skelpipe.errors import UserError

from .console import console, show_warning
from .options import (
    Features,
    choose_device,
    newest_set,
    runs_root,
    set_folder,
    shards_root,
    subject_numbers,
)
from .tables import show_table

if TYPE_CHECKING:
    import torch

    from skelpipe.checkpoint import Run
    from skelpipe.config import Recipe
    from skelpipe.protocols.evaluate import Evaluation
    from skelpipe.protocols.features import Kind
    from skelpipe.protocols.question import Subject
    from skelpipe.protocols.settings import Finetune, Protocol

_PATIENCE = 600.0
"""Seconds that a rank waits for another within a protocol."""
_LONG_HOURS = 24.0


def evaluate(
    protocol: Annotated[
        str | None,
        typer.Option(
            help="knn; linear, finetune, semi (as MAMP's); linear-pcm3; linear-cmd, finetune-cmd, "
            "semi-cmd; on another set transfer-linear, transfer-finetune, transfer-cmd; "
            "occlusion-spatial, occlusion-temporal; detection (on whole "
            "recordings); motion. "
            "[default: the linear one that the run was published with]"
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder. [default: the newest with a checkpoint]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            parser=set_folder,
            metavar="DIR|URL",
            help="Prepared set. [default: the one the run was trained on; the newest, if "
            "imported; for detection the newest of whole recordings]",
        ),
    ] = None,
    random_init: Annotated[
        bool, typer.Option("--random-init", help="Evaluate an untrained encoder of the recipe.")
    ] = False,
    raw_features: Annotated[
        bool, typer.Option("--raw-features", help="Evaluate the plain resampled skeleton.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="For a floor without a run: whose encoder and view.")
    ] = None,
    features: Annotated[
        Features | None,
        typer.Option(
            help="Of SLiM: mean of patch tokens, class token, or both joined. "
            "[default: the method's own]"
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change the protocol: k=5. With --fuse: which results. Repeatable."
        ),
    ] = None,
    val_subjects: Annotated[
        str, typer.Option(help="Query these training subjects; leave the test part alone.")
    ] = "",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Try settings on --val-subjects: lr=0.01,0.1,batch=64,256. Repeatable.",
        ),
    ] = None,
    fuse: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN RUN ...", help="Add up the scores that evaluations of these runs stored."
        ),
    ] = None,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Further runs of --fuse.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Of --fuse, one a run: 0.6,0.6,0.4. [default: equal]")
    ] = "",
    seed: Annotated[
        int, typer.Option(help="Of labels' subsets, training, an untrained encoder.")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    yes: Annotated[
        bool, typer.Option("--yes", help="Fine-tune even if it will take many hours.")
    ] = False,
) -> None:
    """Evaluate a run by a protocol; the result is stored in the run and shown as a table.

    Examples:

        skelpipe evaluate                                 (the newest run, its method's probe)

        skelpipe evaluate --protocol knn

        skelpipe evaluate --protocol linear --run runs/NAME --features class

        skelpipe evaluate --protocol knn --raw-features   (the floor without learning)

        skelpipe evaluate --protocol linear --random-init (the floor without training)

        skelpipe evaluate --protocol linear --val-subjects 8,9 --sweep lr=0.01,0.1,batch=64,256

        skelpipe evaluate --protocol detection --data data/shards/pku1/recordings/xsub

        skelpipe evaluate --protocol linear-pcm3 --fuse runs/JOINT runs/BONE runs/MOTION

        skelpipe evaluate --protocol finetune             (all labels, the whole encoder)

        skelpipe evaluate --protocol semi --set share=0.1 --random-init  (from scratch)

        torchrun --standalone --nproc-per-node 4 -m -- skelpipe.cli evaluate --protocol knn
    """
    from skelpipe import distributed
    from skelpipe.errors import nearest
    from skelpipe.protocols.settings import PROTOCOLS

    ranks = distributed.launch()
    if ranks.rank:
        console.quiet = True  # the first one tells what all have found
    where = choose_device(device, ranks.local_rank)
    if protocol is not None and protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol '{protocol}'", remedy=nearest(protocol, PROTOCOLS))
    if random_init and raw_features:
        raise UserError("--random-init and --raw-features are two floors", remedy="ask for one")
    subject: Subject = "random-init" if random_init else "raw" if raw_features else "run"
    held_out = subject_numbers(val_subjects)
    kind: Kind | None = features.value if features else None
    if fuse or more or weights:
        given = {
            "--run": bool(run),
            "--data": bool(data),
            "--recipe": bool(recipe),
            "--sweep": bool(sweep),
            "--random-init": random_init,
            "--raw-features": raw_features,
        }
        if fuse and any(given.values()):
            raise UserError(
                "--fuse adds up what is stored and computes nothing else",
                found=" ".join(name for name, value in given.items() if value),
                remedy="leave it out; evaluate each run with it first",
            )
        if not ranks.rank:
            _fuse(fuse or [], more or [], weights, protocol, kind, held_out, change or [])
        return
    asked = _ask(protocol, change or [], run, data, recipe, subject, kind, held_out, seed, where)
    with distributed.process_group(where, _PATIENCE):
        if sweep:
            _sweep(asked, sweep, change or [], first=not ranks.rank)
        else:
            _evaluate(asked, yes=yes, first=not ranks.rank)


@dataclass(frozen=True)
class _Asked:
    """What `skelpipe.protocols.evaluate.evaluate` takes, and how the user asked for it."""

    protocol: Protocol
    recipe: Recipe
    data: Path
    subject: Subject
    device: torch.device
    run: Run | None
    kind: Kind | None
    val_subjects: tuple[int, ...]
    seed: int
    words: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments by name that an evaluation and a sweep share."""
        names = ("subject", "device", "run", "kind", "val_subjects", "seed")
        return {name: getattr(self, name) for name in names}


def _ask(
    protocol: str | None,
    changes: list[str],
    run: Path | None,
    data: Path | None,
    recipe: str | None,
    subject: Subject,
    kind: Kind | None,
    val_subjects: tuple[int, ...],
    seed: int,
    device: torch.device,
) -> _Asked:
    """Fill in what the user left out: the run, its protocol, its prepared set."""
    from skelpipe.checkpoint import newest_run, read_run
    from skelpipe.config import load_recipe
    from skelpipe.protocols.detection import PIPELINE
    from skelpipe.protocols.settings import Detection, load_protocol, own_probe
    from skelpipe.protocols.transfer import check_named_set

    settings = load_protocol(protocol, changes) if protocol else None
    found = None
    if run is not None or recipe is None:
        found = read_run(run) if run else newest_run(runs_root())
    if recipe is not None and subject == "run":
        raise UserError(
            "--recipe is for the floors; a run brings its own",
            remedy="add --random-init or --raw-features, or leave out --recipe",
        )
    chosen = load_recipe(recipe) if recipe else found.recipe if found else load_recipe("slim")
    if settings is None:
        published = found.data.get("probe") if found and recipe is None else None
        settings = load_protocol(published or own_probe(chosen), changes)
        whose = f"run {found.folder.name} was" if found and published else f"{chosen.method} is"
        console.print(f"protocol {settings.name}: what {whose} published with", soft_wrap=True)
    check_named_set(settings, chosen, found, data, shards_root())
    folder = data
    if folder is None and isinstance(settings, Detection):
        folder = newest_set(PIPELINE)
    if folder is None and found and "imported" not in found.data:
        folder = set_folder(found.data.get("url") or found.data["folder"])
    folder = folder or newest_set(chosen.pipeline)
    if found and subject == "run":
        found.checkpoint()
        _warn_of_seen(found, folder, val_subjects)
    words = ["skelpipe", "evaluate", "--protocol", settings.name]
    words += ["--run", str(found.folder)] if found else []
    words += ["--data", str(data)] if data else []
    words += ["--recipe", recipe] if recipe else []
    words += ["--features", kind] if kind else []
    words += ["--seed", str(seed)] if seed else []
    words += {"run": [], "random-init": ["--random-init"], "raw": ["--raw-features"]}[subject]
    return _Asked(
        settings, chosen, folder, subject, device, found, kind, val_subjects, seed, tuple(words)
    )


def _warn_of_seen(run: Run, folder: Path, val_subjects: tuple[int, ...]) -> None:
    """Say where pre-training may have seen what is asked."""
    from skelpipe.shards.card import read_card

    seen = set(val_subjects) - set(run.data["val_subjects"])
    if seen and run.data["folder"] == str(folder.resolve()):
        show_warning(
            f"subjects {sorted(seen)} were seen in pre-training: hold them out with "
            "`skelpipe pretrain --val-subjects`"
        )
    card = read_card(folder)
    same = card.data_digest == run.data["data_digest"]
    if same and (card.dataset, card.split) != (run.data["dataset"], run.data["split"]):
        show_warning(
            f"the run was pre-trained on {run.data['split']} of the same recordings: some of "
            f"the test part of {card.split} was in its training part"
        )


def _sweep(asked: _Asked, axes: list[str], changes: list[str], *, first: bool) -> None:
    """Try every combination of settings; the first rank shows and stores what came of it."""
    from skelpipe.protocols.sweep import read_axes, sweep, write_sweep
    from skelpipe.report.tables import sweep_table

    from .progress import counting_progress

    with counting_progress(f"{asked.protocol.name} sweep") as report:
        tried = sweep(
            asked.protocol.name, changes, read_axes(axes), asked.recipe, asked.data,
            **asked.options, command=asked.words, report=report,
        )  # fmt: skip
    if not first:
        return
    show_table(sweep_table(tried))
    told = f"one test with what was chosen: {tried['command']}"
    console.print(told, soft_wrap=True, markup=False)
    if asked.run:
        console.print(f"stored: {write_sweep(asked.run.folder, tried)}", soft_wrap=True)


def _evaluate(asked: _Asked, *, yes: bool, first: bool) -> None:
    """Evaluate; the first rank shows the result beside others of the run, and stores it."""
    from skelpipe import distributed
    from skelpipe.protocols.evaluate import evaluate, write_result
    from skelpipe.protocols.settings import Detection, Finetune
    from skelpipe.report.tables import comparable, read_results, result_table

    from .progress import counting_progress

    if isinstance(asked.protocol, Finetune) and asked.subject != "raw":
        check = partial(_check_cost, asked.protocol, asked, yes=yes)
        distributed.first_rank_alone(check)
    with counting_progress(asked.protocol.name) as report:
        evaluation = evaluate(
            asked.protocol, asked.recipe, asked.data, **asked.options, report=report
        )
    if not first:
        return
    record = evaluation.record
    stored = write_result(asked.run.folder, evaluation) if asked.run else None
    beside = read_results(asked.run.folder) if asked.run else [record]
    for group in comparable(beside):
        if record in group:
            show_table(result_table(group))
    console.print(f"our reading: {'; '.join(record['readings'])}", soft_wrap=True, markup=False)
    if stored:
        console.print(f"stored: {stored}", soft_wrap=True)
    if stored and isinstance(asked.protocol, Detection):
        console.print(f"look at: {_write_bars(stored, evaluation)}", soft_wrap=True)


def _write_bars(stored: Path, evaluation: Evaluation) -> Path:
    """A picture of one recording, what is done and what was detected, beside the result."""
    from skelpipe.files import write_whole
    from skelpipe.protocols.detection import SEGMENTS
    from skelpipe.report.bars import typical_recording

    file = stored.with_suffix(".bars.png")
    write_whole(file, typical_recording(evaluation.record, evaluation.files[SEGMENTS]))
    return file


def _check_cost(protocol: Finetune, asked: _Asked, *, yes: bool) -> str:
    """Print what a fine-tuning will take, and stop where nobody can mean it."""
    from dataclasses import asdict

    from skelpipe.estimate import finetuning_hours
    from skelpipe.protocols.finetune import amount
    from skelpipe.shards.card import read_fitting_card
    from skelpipe.stream.source import select

    data, recipe, device = asked.data, asked.recipe, asked.device
    card = read_fitting_card(data, recipe.pipeline)
    train = select(data, "train", without=asked.val_subjects)
    test = select(data, "train" if asked.val_subjects else "test", subjects=asked.val_subjects)
    joints = len(card.topology.joints)
    work = amount(
        protocol, recipe, trained=len(train), tested=len(test), joints=joints,
        classes=len(card.classes),
    )  # fmt: skip
    bodies = sum(train["bodies"].to_pylist()) / len(train)
    hours = finetuning_hours(recipe, **asdict(work), bodies=bodies, joints=joints, device=device)
    time = f"about {hours:.2g} hours" if hours > 1 / 60 else "less than a minute"
    console.print(f"estimate on {device}: {time}")
    if device.type == "cpu" and hours > _LONG_HOURS and not yes:
        raise UserError(
            f"protocol '{protocol.name}' would take about {hours:.0f} hours on this CPU",
            found=f"recipe '{recipe.name}', {len(train):,} training samples, "
            f"{protocol.runs * protocol.epochs} epochs",
            remedy="a GPU, or fewer epochs: --set epochs=…; --yes starts it all the same",
        )
    return ""


def _fuse(
    first: list[Path],
    more: list[Path],
    weights: str,
    protocol: str | None,
    kind: Kind | None,
    val_subjects: tuple[int, ...],
    changes: list[str],
) -> None:
    """Fuse runs' stored scores; the result is stored in the first one and shown as a table."""
    from skelpipe.checkpoint import read_run
    from skelpipe.protocols.evaluate import write_result
    from skelpipe.protocols.fusion import Wanted, fuse
    from skelpipe.protocols.settings import own_probe
    from skelpipe.report.tables import fusion_table

    if not first:
        raise UserError(
            f"{more[0]} belongs to no option" if more else "--weights are those of --fuse",
            remedy="--fuse RUN RUN RUN, or --run RUN for one run",
        )
    if more and len(first) > 1:  # the order, which weights go by, would be lost
        raise UserError(
            "runs stand behind some --fuse, several --fuse are given",
            remedy="--fuse RUN RUN RUN, or --fuse RUN --fuse RUN --fuse RUN",
        )
    try:
        numbers = [float(number) for number in weights.replace(",", " ").split()]
    except ValueError as error:
        raise UserError(
            "--weights takes numbers", found=weights, expected="such as --weights 0.6,0.6,0.4"
        ) from error
    runs = [read_run(folder) for folder in (*first, *more)]
    if protocol is None:
        protocol = runs[0].data.get("probe") or own_probe(runs[0].recipe)
        console.print(f"protocol {protocol}: the first run's own", soft_wrap=True)
    found = fuse(runs, Wanted(protocol, kind, val_subjects, tuple(changes)), numbers)
    show_table(fusion_table(found.record))
    console.print(
        f"our reading: {'; '.join(found.record['readings'])}", soft_wrap=True, markup=False
    )
    console.print(f"stored: {write_result(runs[0].folder, found)}", soft_wrap=True)
