"""The raw formats: how each is listed, and how a unit of it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from skelpipe.errors import UserError
from skelpipe.manifest import AnyDataset, ArrayDataset, NtuDataset, PkuDataset

from . import arrays, ntu, pku, pku_listing, published
from .archive import Reader
from .arrays_listing import list_arrays
from .listing import Listing, Unit
from .normalise import find_pipeline
from .ntu_listing import list_ntu
from .published_files import find_published
from .published_listing import list_published
from .recording import Recording


def switches_of(dataset: AnyDataset) -> dict[str, tuple[str, ...]]:
    """Switches of a data set's raw format, beside its pipeline's: values, the default first."""
    return dict(pku_listing.SWITCHES) if isinstance(dataset, PkuDataset) else {}


def list_raw(
    dataset: AnyDataset,
    raw: Sequence[Path],
    *,
    splits: Sequence[str] = (),
    pipeline: str,
    switches: Mapping[str, str],
    missing_list: Path | None,
) -> Listing:
    """What a raw source of a data set holds; ``splits`` are those that are asked for.

    Raises:
        UserError: nothing of the data set, or what is there cannot be used.
    """
    if not isinstance(dataset, ArrayDataset) and (found := find_published(raw)):
        return list_published(
            found,
            dataset,
            splits,
            pipeline=pipeline,
            switches=switches,
            known={**find_pipeline(pipeline).switches, **switches_of(dataset)},
            missing_list=missing_list,
        )
    if missing_list is not None and not isinstance(dataset, NtuDataset):
        raise UserError(
            f"{dataset.title} has no list of missing recordings",
            file=missing_list,
            remedy="leave out --missing-list",
        )
    if isinstance(dataset, PkuDataset):
        whole = pipeline == "recordings"
        return pku_listing.list_pku(
            dataset, raw, splits, whole=whole, reversed=switches["reversed"]
        )
    if pipeline == "recordings":
        raise UserError(
            f"{dataset.title} has no whole recordings beside its samples",
            remedy="choose pipeline ctrgcn or agcn",
        )
    if isinstance(dataset, ArrayDataset):
        return list_arrays(dataset, raw)
    return list_ntu(dataset, raw, missing_list)


def read(unit: Unit, dataset: AnyDataset, reader: Reader) -> Recording:
    """Read a unit.

    Raises:
        RejectedError: it is damaged.
        UserError: its file cannot be read.
    """
    if isinstance(unit.member, published.Block):
        return published.read(unit.member, reader)
    if isinstance(dataset, ArrayDataset):
        assert isinstance(unit.member, arrays.Piece)
        return arrays.read(unit.member, dataset, reader)
    data = reader.read(unit.member)
    return pku.parse(data) if isinstance(dataset, PkuDataset) else ntu.parse(data)
