"""Features of all samples of a prepared set in one file, for whoever goes on with them elsewhere.

Features are made block by block and written as they come, so that memory does not grow with the
set. One process does it: frozen features of all of NTU RGB+D take a GPU minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from skelpipe.checkpoint import Run
from skelpipe.errors import UserError
from skelpipe.files import into_place, new_name
from skelpipe.protocols.features import (
    CENTRE,
    Encode,
    Kind,
    See,
    default_kind,
    encode_by,
    features_of,
    raw_features,
    viewer,
)
from skelpipe.protocols.question import Network, check_finite, load_encoder, recipe_readings
from skelpipe.shards.card import read_fitting_card
from skelpipe.stream.source import Parts, Source, open_source, select

Block = npt.NDArray[np.float32]

COLUMNS = ("key", "part", "label", "subject", "camera", "setup", "bodies", "frames")
"""Of the set's index: what stands beside the features of each sample."""
_CHUNK = 256  # samples, as `extract` takes them


def embed(
    run: Run,
    data: Path,
    file: Path,
    *,
    device: torch.device,
    part: Parts = "all",
    kind: Kind | None = None,
    network: Network = "student",
    raw: bool = False,
    replace: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, int]:
    """Write the features of every sample once, in key order: those that `evaluate` has.

    HDF5 has a dataset, and Parquet a column, for each of `COLUMNS` and for "features" (float32).
    Attributes, or the schema's metadata, tell what they are of; lists are JSON.

    Args:
        run: Its newest complete checkpoint is used, and its recipe's view.
        data: The prepared set.
        file: The .h5, .hdf5 or .parquet to write; it stands there whole, or not at all.
        device: Where features are computed.
        part: Of the set.
        kind: What stands for a sample; the method's own features if None.
        network: "student" or "teacher".
        raw: The plain resampled skeleton instead of any network's features.
        replace: Whether a file that exists is replaced.
        report: Called with samples done and in all.

    Returns:
        N samples, of D features each.

    Raises:
        UserError: Another suffix, a file that exists, a set or network that does not fit; features
            that are not finite, whose samples are named.
    """
    write = _writer(file)
    if file.exists() and not replace:
        raise UserError("the file exists already", file=file, remedy="--force replaces it")
    card = read_fitting_card(data, run.recipe.pipeline)
    kind = kind or default_kind(run.recipe)
    encode: Encode = raw_features
    if not raw:
        encoder = load_encoder(run, card.topology, network)
        encode = encode_by(encoder.to(device).eval(), kind)
    source = open_source(data, select(data, part), device, "mapped")
    views = run.recipe.views
    about = {
        "run": run.folder.resolve().name,
        "recipe": run.recipe.name,
        "method": run.recipe.method,
        "checkpoint": "" if raw else run.checkpoint().name,
        "network": "raw skeleton" if raw else network,
        "kind": "raw coordinates" if raw else kind,
        "view": f"centre crop of {CENTRE:g} of a recording, {views.frames} frames",
        "dataset": card.dataset,
        "split": card.split,
        "part": part,
        "data_digest": card.data_digest,
        "classes": json.dumps(card.classes),
        "readings": json.dumps(recipe_readings(run.recipe, run)),
        "warnings": json.dumps(card.warnings),
        "versions": json.dumps({name: version(name) for name in ("skelpipe", "torch", "numpy")}),
    }
    see = viewer(run.recipe, card.topology, CENTRE)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = new_name(file)
    try:
        width = write(new, source.table, _blocks(source, encode, see, report), about)
        into_place(new, file)
    finally:
        new.unlink(missing_ok=True)
    return len(source), width


@torch.no_grad()
def _blocks(
    source: Source, encode: Encode, see: See, report: Callable[[int, int], None]
) -> Iterator[Block]:
    """Features of all samples in their order, a block of them at a time, shape (n, D)."""
    for first in range(0, len(source), _CHUNK):
        last = min(first + _CHUNK, len(source))
        found = features_of(source.take(torch.arange(first, last)), [encode], see)
        check_finite(found, source, first)
        yield found[0].cpu().numpy()
        report(last, len(source))


_Write = Callable[[Path, pa.Table, Iterable[Block], Mapping[str, str]], int]
"""Writes blocks of features and the rows they belong to; returns the features' width."""


def _writer(file: Path) -> _Write:
    suffix = file.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return _write_hdf5
    if suffix == ".parquet":
        return _write_parquet
    raise UserError(
        f"cannot write features as '{suffix or file.name}'",
        file=file,
        expected="a name that ends in .h5, .hdf5 or .parquet",
    )


def _write_hdf5(
    file: Path, table: pa.Table, blocks: Iterable[Block], about: Mapping[str, str]
) -> int:
    width, done = 0, 0
    # The newest layout has room for attributes beyond 64 KiB: names of thousands of classes.
    with h5py.File(file, "w", libver="latest") as opened:
        opened.attrs.update(about)
        for name in COLUMNS:
            values = table[name].to_pylist()
            kind = h5py.string_dtype() if isinstance(values[0], str) else np.int32
            opened.create_dataset(name, data=values, dtype=kind)
        for block in blocks:
            if not done:
                width = block.shape[1]
                opened.create_dataset("features", (len(table), width), np.float32)
            opened["features"][done : done + len(block)] = block
            done += len(block)
    return width


def _write_parquet(
    file: Path, table: pa.Table, blocks: Iterable[Block], about: Mapping[str, str]
) -> int:
    width, done, writer = 0, 0, None
    table = table.select(COLUMNS).replace_schema_metadata(about)
    try:
        for block in blocks:
            width = block.shape[1]
            features = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), width)
            rows = table.slice(done, len(block)).append_column("features", features)
            writer = writer or pq.ParquetWriter(file, rows.schema, compression="zstd")
            writer.write_table(rows)
            done += len(block)
    finally:
        if writer:
            writer.close()
    return width
