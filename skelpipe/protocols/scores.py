"""Scores of a part's samples as a Parquet file: what a fusion of streams adds up.

Columns: key (string), label (int32), score (a list of one float32 for each class).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from skelpipe.errors import UserError


@dataclass(frozen=True)
class Scores:
    """What a network answers on N samples: the class of the largest score.

    Attributes:
        keys: Of the samples.
        label_N: Their true classes.
        score_NC: For each class, float32; on the CPU as the labels are.
    """

    keys: tuple[str, ...]
    label_N: Tensor
    score_NC: Tensor


def pack_scores(keys: Sequence[str], label_N: Tensor, score_NC: Tensor) -> bytes:
    """The bytes of a file of scores; the same for the same scores under one version of pyarrow."""
    flat = pa.array(score_NC.detach().float().cpu().contiguous().view(-1).numpy())
    table = pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "label": pa.array(label_N.cpu().numpy(), pa.int32()),
            "score": pa.FixedSizeListArray.from_arrays(flat, score_NC.shape[1]),
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
            else than finite scores of these classes, once a key.
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
    columns = {"key": pa.string(), "label": pa.int32(), "score": pa.list_(pa.float32(), classes)}
    try:
        table = pq.read_table(BytesIO(data), schema=pa.schema(list(columns.items())))
        table = table.sort_by("key").combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise UserError("the scores are damaged", file=file, found=error, remedy=remedy) from error
    keys = tuple(table["key"].to_pylist())
    flat = table["score"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    score_NC = torch.tensor(flat, dtype=torch.float32)
    whole = len(flat) == len(keys) * classes and not any(table[name].null_count for name in columns)
    if not whole or len(set(keys)) < len(keys) or not bool(score_NC.isfinite().all()):
        raise UserError(
            "the scores are damaged",
            file=file,
            expected=f"{classes} finite scores for each key, once",
            remedy=remedy,
        )
    label_N = torch.tensor(table["label"].to_numpy(), dtype=torch.int64)
    return Scores(keys, label_N, score_NC.view(len(keys), classes))
