"""The thin trainer: one visible loop."""

from __future__ import annotations

import ctypes
import json
import math
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from skelpipe import distributed
from skelpipe.checkpoint import (
    Run,
    check_free,
    check_own,
    resume_checkpoint,
    save_checkpoint,
    write_json,
)
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.estimate import micro_batch
from skelpipe.files import write_whole
from skelpipe.methods import Method, build_method
from skelpipe.methods.slim import SLiM
from skelpipe.optim import build_optimiser, set_rates
from skelpipe.shards.card import Card, read_fitting_card
from skelpipe.stream.loader import Loader
from skelpipe.stream.order import Order
from skelpipe.stream.remote import url_of
from skelpipe.stream.source import Batch, Source, open_source, select

Record = dict[str, float]

_DTYPE = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}
"""Of weights and optimiser."""


class RunInterrupted(Exception):  # noqa: N818 -- nothing went wrong
    """A signal or Ctrl-C came: a checkpoint is saved, the run can be continued."""


def start_run(
    folder: Path, recipe: Recipe, data: Path, *, seed: int, val_subjects: tuple[int, ...] = ()
) -> Run:
    """Write a new run's recipe and data records.

    Raises:
        UserError: The folder holds a run already, or the set was prepared by another pipeline.
    """
    card = read_fitting_card(data, recipe.pipeline)
    check_free(folder)
    record: dict[str, Any] = {
        "folder": str(data.resolve()),
        "url": url_of(data),
        "dataset": card.dataset,
        "split": card.split,
        "data_digest": card.data_digest,
        "joints": len(card.topology.joints),
        **card.model_dump(
            mode="json", include={"topology", "fps", "metric", "precision", "pipeline"}
        ),
        "card_digest": card.digest,
        "warnings": list(card.warnings),
        "val_subjects": list(val_subjects),
        "seed": seed,
        "launch": distributed.launch().name,
        "started": datetime.now(UTC).isoformat(timespec="microseconds"),
        "readings": recipe.readings(),
    }
    write_json(folder / "data.json", record)
    write_json(folder / "recipe.json", recipe.model_dump())
    return Run(folder, recipe, record)


def train(
    run: Run,
    data: Path,
    *,
    device: torch.device,
    report: Callable[[Record], None] = lambda record: None,
    warn: Callable[[str], None] = lambda text: None,
    validate: Callable[[Method], Record] | None = None,
    stop_after: int | None = None,
) -> Path:
    """Pre-train until the recipe's last epoch, from the run's newest complete checkpoint if any.

    Every rank calls this with the same arguments; the first one alone writes, reports and warns.

    Args:
        run: Of `start_run` or `read_run`.
        data: The prepared set; its data digest must be the run's.
        device: Where this rank computes.
        report: Called after every step with its record, as written to metrics.jsonl.
        warn: Called with what the user should know.
        validate: Called every `train.knn_every` epochs; what it gives joins the step's record.
        stop_after: Stop, with a checkpoint, once this many steps are done.

    Returns:
        The last checkpoint.

    Raises:
        UserError: An imported run; data of another digest or order; a loss that is not finite (step
            and sample keys named); a sample that cannot be read, on this or another rank.
        RunInterrupted: A signal asked to stop, on this or another rank.
    """
    with _stop_signals() as asked:
        return _train(run, data, device, report, warn, validate, stop_after, asked)


def _train(
    run: Run,
    data: Path,
    device: torch.device,
    report: Callable[[Record], None],
    warn: Callable[[str], None],
    validate: Callable[[Method], Record] | None,
    stop_after: int | None,
    asked: Callable[[], bool],
) -> Path:
    check_own(run)
    recipe, folder = run.recipe, run.folder
    card = read_fitting_card(data, recipe.pipeline)
    # The splits of one archive share its data digest.
    identity = [card.dataset, card.split, card.data_digest]
    started = [run.data[name] for name in ("dataset", "split", "data_digest")]
    if identity != started:
        raise UserError(
            "the run was started on other data",
            file=data,
            found=f"{identity[0]} {identity[1]}, data digest {identity[2]}",
            expected=f"{started[0]} {started[1]}, data digest {started[2]}",
            remedy="name the run's own prepared set with --data, or start a new run",
        )
    alone = distributed.rank() == 0
    table = select(data, "train", without=run.data["val_subjects"])
    loader = open_loader(open_source(data, table, device, recipe.train.source), run)
    total = loader.total_steps(recipe.train.epochs)
    if not total:
        raise UserError(
            f"a batch of {loader.batch} is larger than what the run reads in all",
            found=f"{len(table)} samples, epochs: {recipe.train.epochs}",
            remedy=f"--batch with at most {len(table) * recipe.train.epochs}, or more epochs",
        )
    bodies = sum(table["bodies"].to_pylist()) / len(table)
    micro = micro_batch(recipe, bodies=bodies, joints=len(card.topology.joints), device=device)

    method = build_method(recipe, card.topology, loader.seed).to(
        device, _DTYPE[recipe.train.precision]
    )
    if recipe.train.compile:
        compile_blocks(method)
    optimiser = build_optimiser(method.student, recipe)
    state = _environment(run, card, loader, micro)
    step = 0
    found = resume_checkpoint(
        folder, method.student, method.teacher, optimiser, warn if alone else _unheard, recipe
    )
    if found:
        saved_at, saved = found
        _check_state(saved, state, warn if alone else _unheard)
        step = int(saved["step"])
        loader.epoch, loader.step = int(saved["epoch"]), int(saved["epoch_step"])
    distributed.wait_for_all()
    _check_agreement(step, device)
    if step >= total:
        return saved_at

    def save(place: dict[str, int]) -> str:
        networks = method.student, method.teacher
        keep = recipe.train.keep
        path = save_checkpoint(folder, step, *networks, optimiser, {**state, **place}, keep)
        return str(path)

    with _metrics(folder, step) if alone else nullcontext(_unheard) as log:
        while step < total:
            began = time.perf_counter()
            epoch, epoch_step = loader.epoch, loader.step
            batch, error = _next(loader)
            failed, stop = distributed.on_any_rank(error is not None, asked(), device=device)
            if failed:
                raise error or UserError(
                    "another rank could not read its samples: see what it says"
                )
            if stop:
                if step:  # before the first, there is nothing to save
                    place = {"step": step, "epoch": epoch, "epoch_step": epoch_step}
                    distributed.first_rank_alone(partial(save, place))
                raise RunInterrupted
            assert batch is not None
            try:
                values = take_step(method, optimiser, _typed(batch, recipe), micro, step, total)
            except NotFinite as bad:
                raise _not_finite(bad.values, step, loader.keys(epoch, epoch_step)) from bad
            step += 1

            seconds = time.perf_counter() - began
            record: Record = {
                "step": step,
                "epoch": loader.epoch + loader.step / max(loader.steps, 1),
                **values,
                "samples_per_s": loader.batch / seconds,
            }
            last = step in (total, stop_after)
            if validate and _passes(epoch, loader.epoch, recipe.train.knn_every):
                record |= validate(method)
            log(record)
            if alone:
                report(record)
            if last or _passes(epoch, loader.epoch, recipe.train.checkpoint_every):
                place = {"step": step, "epoch": loader.epoch, "epoch_step": loader.step}
                saved_at = Path(distributed.first_rank_alone(partial(save, place)))
            if loader.epoch > epoch:
                release_memory()
            if last:
                break
    return saved_at


def compile_blocks(method: Method) -> None:
    """torch.compile the encoders block by block: all share one code, which is compiled once."""
    assert isinstance(method, SLiM)  # recipes of PCM3 refuse it
    for network in (method.student, method.teacher):
        for block in network.encoder.blocks:
            block.compile(dynamic=True)


class NotFinite(Exception):  # noqa: N818 -- told to the user with the samples' names
    """A loss or gradient is not finite."""

    def __init__(self, values: Record) -> None:
        super().__init__()
        self.values = values


def take_step(
    method: Method,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    micro: int,
    step: int,
    total: int,
) -> Record:
    """Learn from one global batch.

    Args:
        method, optimiser: What learns, changed in place.
        batch: This rank's part of it.
        micro: Samples at once.
        step: Steps done before, of ``total``.

    Returns:
        Learning rate, losses and gradient norms, the same on all ranks.

    Raises:
        NotFinite: Before weights or optimiser have changed; statistics and queue may have.
    """
    recipe, device = method.recipe, batch.key_N.device
    optimiser.zero_grad(set_to_none=True)
    bf16 = recipe.train.precision == "bf16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        losses = method.learn(batch, step / total, micro)
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise NotFinite(values)
    distributed.sum_gradients(method.student)
    norms = clip_gradients(method.student, recipe.optim.clip or math.inf)
    if not all(math.isfinite(norm) for norm in norms.values()):
        raise NotFinite(norms)
    lr = set_rates(optimiser, recipe, step / total)
    optimiser.step()
    method.update_teacher((step + 1) / total)
    return {"lr": lr, **values, **norms}


def open_loader(source: Source, run: Run) -> Loader:
    """This rank's batches of a run."""
    settings = run.recipe.train
    return Loader(
        source,
        settings.batch,
        int(run.data["seed"]),
        tail=settings.tail,
        rank=distributed.rank(),
        world=distributed.world(),
        workers=settings.workers,
    )


def _next(loader: Loader) -> tuple[Batch | None, UserError | None]:
    """The next batch, or why there is none: other ranks must hear of it before this one ends."""
    try:
        return next(loader), None
    except UserError as error:
        return None, error


def _typed(batch: Batch, recipe: Recipe) -> Batch:
    """The batch in the type that views are computed in: float64 is for checks on small sets."""
    if recipe.train.precision != "float64":
        return batch
    return replace(batch, flat_RJC=batch.flat_RJC.double())


def _passes(before: int, now: int, every: int) -> bool:
    """Whether a multiple of ``every`` epochs was reached; never for 0."""
    return every > 0 and now // every > before // every


def _unheard(text: object) -> None:
    """Records and warnings are the first rank's."""


def _check_agreement(step: int, device: torch.device) -> None:
    """Raise a UserError unless all ranks continue at one step."""
    steps, _ = distributed.gather_rows(torch.tensor([step], device=device))
    if len(steps.unique()) > 1:
        raise UserError(
            "the ranks found different checkpoints",
            found=f"steps {steps.tolist()}",
            expected="one run folder that all hosts see, and the same files in it",
        )


def total_steps(run: Run, data: Path) -> int:
    """Steps of the whole run on its prepared set."""
    samples = len(select(data, "train", without=run.data["val_subjects"]))
    train = run.recipe.train
    return Order(samples, train.batch, 0, train.tail).steps_before(train.epochs)


def clip_gradients(student: nn.Module, limit: float) -> Record:
    """Clip the gradient norm of each sub-network by itself (S25); returns the norms before."""
    return {
        f"{name}_grad_norm": float(nn.utils.clip_grad_norm_(part.parameters(), limit))
        for name, part in student.named_children()
    }


def _environment(run: Run, card: Card, loader: Loader, micro: int) -> dict[str, Any]:
    """What a bit-exact continuation depends on beside the weights."""
    return {
        "seed": loader.seed,
        "recipe": run.recipe.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
        "world": loader.world,
        "global_batch": loader.batch,
        "micro_batch": micro,
        "steps_per_epoch": loader.steps,
        "order_digest": loader.order_digest(),
        "data_digest": card.data_digest,
        "device": loader.source.device.type,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("skelpipe", "torch", "numpy")},
    }


def _check_state(saved: dict[str, Any], now: dict[str, Any], warn: Callable[[str], None]) -> None:
    for name in ("seed", "global_batch", "data_digest", "order_digest"):
        if saved.get(name) != now[name]:
            raise UserError(
                f"the run cannot be continued with another {name.replace('_', ' ')}",
                found=now[name],
                expected=saved.get(name),
                remedy="give it the recipe, the data and the version of skelpipe that it was "
                "started with, or start a new run",
            )
    for name in ("threads", "world", "micro_batch", "device", "machine", "versions"):
        if saved.get(name) != now[name]:
            warn(
                f"continuing with another {name} ({now[name]}, was {saved.get(name)}): "
                "the result will not equal an uninterrupted run's bit for bit"
            )


def _not_finite(values: Record, step: int, keys: list[str]) -> UserError:
    shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return UserError(
        f"training stopped: a loss or gradient is not finite at step {step + 1}",
        found=shown,
        place=f"the batch of {', '.join(keys)}",
        remedy="lower optim.lr or clip harder (optim.clip); the last checkpoint is untouched",
    )


def release_memory() -> None:
    """Give freed memory back to the system.

    Masked tokens are another number in every step, so glibc's heap fragments: without this a run
    of `slim-tiny` grows by some 2 MB a step, and an epoch's worth is given back in milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextmanager
def _metrics(folder: Path, step: int) -> Iterator[Callable[[Record], None]]:
    """Append records to metrics.jsonl, after dropping those a resumed run will write again."""
    path = folder / "metrics.jsonl"
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break  # the line a kill cut off: it lies beyond the checkpoint
            if record["step"] > step:
                break
            kept.append(line)
    write_whole(path, "".join(line + "\n" for line in kept).encode())
    with path.open("a", encoding="utf-8") as file:

        def log(record: Record) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        yield log


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether to stop: SIGTERM or SIGUSR1, as schedulers send, or a first Ctrl-C has come."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt  # asked twice: leave at once, without saving
        came.append(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_metrics(folder: Path) -> list[Record]:
    """The records of a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
