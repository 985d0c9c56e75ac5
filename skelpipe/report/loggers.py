"""Where a run's records go beside metrics.jsonl: TensorBoard and Weights & Biases, both extras."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from skelpipe.checkpoint import Run
from skelpipe.errors import UserError, nearest

Record = dict[str, float]
Log = Callable[[Record], None]


def open_logger(name: str, run: Run) -> AbstractContextManager[Log]:
    """What takes each step's record, "tensorboard" or "wandb"; on leaving, all is written.

    Raises:
        UserError: There is no such logger, its package is not installed, or it cannot start.
    """
    if name not in LOGGERS:
        raise UserError(f"unknown logger '{name}'", remedy=nearest(name, LOGGERS))
    return LOGGERS[name](run)


@contextmanager
def tensorboard(run: Run) -> Iterator[Log]:
    """Events in RUN/tensorboard; those of steps that are done again after a kill are purged."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard", error) from error
    writer: SummaryWriter | None = None

    def log(record: Record) -> None:
        nonlocal writer
        step = int(record["step"])
        if writer is None:
            writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=step)
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, step)

    try:
        yield log
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def wandb(run: Run) -> Iterator[Log]:
    """A run of W&B, its files in RUN/wandb; the same one for all parts of a resumed run.

    Its project is "skelpipe" and its mode online, unless WANDB_PROJECT and WANDB_MODE say
    otherwise. Of a step that is done again after a kill W&B keeps the first record.
    """
    try:
        import wandb as library
    except ImportError as error:
        raise _missing("wandb", error) from error
    # data.json tells runs apart, so it makes an id that stays when the folder is moved.
    identity = f"{run.recipe.name} {run.data['started']} {run.data['seed']}"
    try:
        opened = library.init(
            project=os.environ.get("WANDB_PROJECT", "skelpipe"),
            name=run.folder.name,
            id=hashlib.sha256(identity.encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run.folder),
            config={**run.recipe.model_dump(mode="json"), "data": run.data},
            settings=library.Settings(console="off"),  # the screen is ours
        )
    except library.Error as error:
        raise UserError(
            "W&B cannot start",
            found=error,
            remedy="`wandb login`, or set WANDB_MODE=offline and `wandb sync` later",
        ) from error
    with opened:
        yield lambda record: opened.log(record, step=int(record["step"]))


def _missing(extra: str, error: ImportError) -> UserError:
    return UserError(
        f"--log {extra} needs a package that is not installed",
        found=error,
        remedy=f"pip install 'skelpipe[{extra}]'",
    )


LOGGERS: dict[str, Callable[[Run], AbstractContextManager[Log]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
}
