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
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from skelpipe.checkpoint import (
    Run,
    check_recipe,
    resume_checkpoint,
    save_checkpoint,
    write_json,
)
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.files import write_whole
from skelpipe.methods import build_method
from skelpipe.methods.slim import SLiM
from skelpipe.optim import build_optimiser, set_rates
from skelpipe.shards.card import Card, read_fitting_card
from skelpipe.stream.loader import Loader
from skelpipe.stream.order import steps_per_epoch
from skelpipe.stream.source import open_source, select

Record = dict[str, float]


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
    if (folder / "recipe.json").exists():
        raise UserError(
            "a run stands here already",
            file=folder,
            remedy="continue it with --resume, or choose another --out",
        )
    record: dict[str, Any] = {
        "folder": str(data.resolve()),
        "dataset": card.dataset,
        "split": card.split,
        "data_digest": card.data_digest,
        "card_digest": card.digest,
        "warnings": list(card.warnings),
        "val_subjects": list(val_subjects),
        "seed": seed,
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
    validate: Callable[[SLiM], Record] | None = None,
    stop_after: int | None = None,
) -> Path:
    """Pre-train until the recipe's last epoch, from the run's newest complete checkpoint if any.

    Args:
        run: Of `start_run` or `read_run`.
        data: The prepared set; its data digest must be the run's.
        device: Where everything computes.
        report: Called after every step with its record, as written to metrics.jsonl.
        warn: Called with what the user should know.
        validate: Called at the end of every ``train.knn_every``-th epoch, for more of the record.
        stop_after: Stop, with a checkpoint, once this many steps are done.

    Returns:
        The last checkpoint.

    Raises:
        UserError: Data of another digest; a loss that is not finite (step and sample keys named).
        RunInterrupted: A signal asked to stop.
    """
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
    seed = int(run.data["seed"])
    table = select(data, "train", without=run.data["val_subjects"])
    loader = Loader(open_source(data, table, device, recipe.train.source), recipe.train.batch, seed)
    total = loader.steps * recipe.train.epochs

    method = build_method(recipe, card.topology, seed).to(device)
    optimiser = build_optimiser(method.student, recipe)
    state = _environment(run, card, loader)
    step = 0
    found = resume_checkpoint(folder, method.student, method.teacher, optimiser, warn)
    if found:
        saved_at, saved = found
        _check_state(saved, state, warn)
        check_recipe(saved, recipe)
        step = int(saved["step"])
        loader.epoch, loader.step = int(saved["epoch"]), int(saved["epoch_step"])
        if step >= total:
            return saved_at

    stopped = step
    precision = torch.bfloat16 if recipe.train.precision == "bf16" else None
    with _metrics(folder, step) as log, _stop_signals() as asked:
        while step < total:
            began = time.perf_counter()
            epoch, epoch_step = loader.epoch, loader.step
            batch = next(loader)
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                losses = method.losses(batch, step / total)
            names = list(losses)
            values = dict(zip(names, torch.stack([losses[n] for n in names]).tolist(), strict=True))
            if not math.isfinite(values["loss"]):
                raise _not_finite(values, step, loader.keys(epoch, epoch_step))

            lr = set_rates(optimiser, recipe, step / total)
            optimiser.zero_grad(set_to_none=True)
            losses["loss"].backward()
            norms = clip_gradients(method.student, recipe.optim.clip)
            if not all(math.isfinite(norm) for norm in norms.values()):
                raise _not_finite(norms, step, loader.keys(epoch, epoch_step))
            optimiser.step()
            step += 1
            method.update_teacher(step / total)

            seconds = time.perf_counter() - began
            record: Record = {
                "step": step,
                "epoch": step / loader.steps,
                "lr": lr,
                **values,
                **norms,
                "samples_per_s": len(batch) / seconds,
            }
            every = recipe.train.knn_every * loader.steps
            if validate and every and step % every == 0:
                record |= validate(method)
            log(record)
            report(record)

            stop = asked()
            last = step in (total, stop_after) or stop
            if last or step % (recipe.train.checkpoint_every * loader.steps) == 0:
                place = {"step": step, "epoch": loader.epoch, "epoch_step": loader.step}
                saved_at = save_checkpoint(
                    folder,
                    step,
                    method.student,
                    method.teacher,
                    optimiser,
                    {**state, **place},
                    recipe.train.keep,
                )
                stopped = step
            if loader.step == 0:
                release_memory()
            if stop:
                raise RunInterrupted
            if step == stop_after:
                break
    assert stopped == step
    return saved_at


def total_steps(run: Run, data: Path) -> int:
    """Steps of the whole run on its prepared set."""
    samples = len(select(data, "train", without=run.data["val_subjects"]))
    return run.recipe.train.epochs * steps_per_epoch(samples, run.recipe.train.batch)


def clip_gradients(student: nn.Module, limit: float) -> Record:
    """Clip the gradient norm of each sub-network by itself (S25); returns the norms before."""
    return {
        f"{name}_grad_norm": float(nn.utils.clip_grad_norm_(part.parameters(), limit))
        for name, part in student.named_children()
    }


def _environment(run: Run, card: Card, loader: Loader) -> dict[str, Any]:
    """What a bit-exact continuation depends on beside the weights."""
    return {
        "seed": loader.seed,
        "recipe": run.recipe.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
        "world": 1,
        "global_batch": loader.batch,
        "steps_per_epoch": loader.steps,
        "data_digest": card.data_digest,
        "device": str(loader.source.device),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("skelpipe", "torch", "numpy")},
    }


def _check_state(saved: dict[str, Any], now: dict[str, Any], warn: Callable[[str], None]) -> None:
    for name in ("seed", "global_batch", "steps_per_epoch", "data_digest"):
        if saved.get(name) != now[name]:
            raise UserError(
                f"the run cannot be continued with another {name.replace('_', ' ')}",
                found=now[name],
                expected=saved.get(name),
            )
    for name in ("threads", "device", "machine", "versions"):
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
        remedy="lower optim.lr or raise optim.warmup; the last checkpoint is untouched",
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
