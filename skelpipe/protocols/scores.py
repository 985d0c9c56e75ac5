"""Scores of a part's samples as a Parquet file: what a fusion of streams adds up.

Columns: repeat (int32, from 0: which training of what is trained by labels), key (string), label
(int32), score (a list of one float32 for each class).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from skelpipe.errors import UserError


@dataclass(frozen=True)
class Scores:
    """What a network answers on N samples, by each of R trainings: the class of the largest score.

    Attributes:
        keys: Of the samples.
        label_N: Their true classes.
        score_RNC: For each class, float32; on the CPU as the labels are.
    """

    keys: tuple[str, ...]
    label_N: Tensor
    score_RNC: Tensor


def pack_scores(keys: Sequence[str], label_N: Tensor, scores: Sequence[Tensor]) -> bytes:
    """The bytes of a file of scores; the same for the same scores under one version of pyarrow.

    Args:
        keys, label_N: Of the samples.
        scores: Of each training, shape (N, C).
    """
    score_RNC = torch.stack(list(scores)).detach().float().cpu()
    repeats, samples, classes = score_RNC.shape
    table = pa.table(
        {
            "repeat": pa.array(np.arange(repeats).repeat(samples), pa.int32()),
            "key": pa.array([*keys] * repeats, pa.string()),
            "label": pa.array(label_N.cpu().repeat(repeats).numpy(), pa.int32()),
            "score": pa.FixedSizeListArray.from_arrays(
                pa.array(score_RNC.flatten().numpy()), classes
            ),
        }
    )
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def digest(data: bytes) -> str:
    """What a record names its scores by: their sha256."""
    return hashlib.sha256(data).hexdigest()


def read_scores(file: Path, *, sha256: str, classes: int, remedy: str) -> Scores:
    """The scores of a file, sorted by key.

    Args:
        file: Of `pack_scores`.
        sha256: Of its bytes, as the record beside it has it.
        classes: C.
        remedy: What makes the file anew.

    Raises:
        UserError: The file is missing, is not what the record was written with, or holds something
            else than finite scores of these classes, once a key in every repeat.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(
            "the scores cannot be read", file=file, found=error, remedy=remedy
        ) from error
    found = digest(data)
    if found != sha256:
        raise UserError(
            "the scores are damaged, or another evaluation's",
            file=file,
            found=f"{len(data)} bytes with sha256 {found}",
            expected=f"sha256 {sha256}, as the record beside them says",
            remedy=remedy,
        )
    columns = {"repeat": pa.int32(), "key": pa.string(), "label": pa.int32(),
               "score": pa.list_(pa.float32(), classes)}  # fmt: skip
    try:
        table = pq.read_table(BytesIO(data), schema=pa.schema(list(columns.items())))
        table = table.sort_by([("repeat", "ascending"), ("key", "ascending")]).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise UserError("the scores are damaged", file=file, found=error, remedy=remedy) from error
    keys = table["key"].to_pylist()
    flat = table["score"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    score = torch.tensor(flat, dtype=torch.float32)
    once, repeats = sorted(set(keys)), len(set(table["repeat"].to_pylist()))
    whole = len(flat) == len(keys) * classes and not any(table[name].null_count for name in columns)
    label = table["label"].to_pylist()
    if (
        not whole
        or keys != once * repeats
        or label != label[: len(once)] * repeats
        or not bool(score.isfinite().all())
    ):
        raise UserError(
            "the scores are damaged, or an older version's",
            file=file,
            expected=f"{classes} finite scores for each key, once in every repeat",
            remedy=remedy,
        )
    label_N = torch.tensor(label[: len(once)], dtype=torch.int64)
    return Scores(tuple(once), label_N, score.view(repeats, len(once), classes))
