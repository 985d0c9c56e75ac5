"""What the recipes of all methods have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from skelpipe.config.settings import Settings


class Train(Settings):
    """How long, how much at once, and how exactly."""

    epochs: int = Field(150, ge=1)
    batch: int = Field(768, ge=1, description="global batch")
    micro_batch: int = Field(0, ge=0, description="samples at once on a device; 0: what fits")
    tail: Literal["drop", "carry"] = Field(
        "drop", description="samples beyond an epoch's last full batch; carry: they open the next"
    )
    precision: Literal["float32", "bf16", "float64"] = "float32"
    compile: bool = Field(False, description="torch.compile the encoder")
    source: Literal["resident", "mapped"] = "resident"
    workers: int = Field(0, ge=0, description="threads that read ahead; a resident set needs none")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    checkpoint_every: int = Field(10, ge=1, description="epochs between checkpoints")
    knn_every: int = Field(0, ge=0, description="epochs between k-NN on held-out subjects; 0: none")


class AnyRecipe(Settings):
    """One pre-training run, but for its data, seed and place; each method adds its sections."""

    kind: Literal["recipe"] = "recipe"
    name: str
    title: str = ""
    method: str
    pipeline: str
    train: Train = Train()
