"""The raw formats: how each is listed, and how a unit of it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from skelpipe.errors import UserError
from skelpipe.manifest import AnyDataset, NtuDataset

from . import ntu
from .archive import Reader
from .listing import Listing, Unit
from .ntu_listing import list_ntu
from .recording import Recording


def switches_of(dataset: AnyDataset) -> dict[str, tuple[str, ...]]:
    """Switches of a data set's raw format, beside its pipeline's: values, the default first."""
    return {}


def list_raw(
    dataset: AnyDataset,
    raw: Sequence[Path],
    *,
    pipeline: str,
    switches: Mapping[str, str],
    missing_list: Path | None,
) -> Listing:
    """What a raw source of a data set holds.

    Raises:
        UserError: nothing of the data set, or what is there cannot be used.
    """
    if pipeline == "recordings":
        raise UserError(
            f"{dataset.title} has no whole recordings beside its samples",
            remedy="choose pipeline ctrgcn or agcn",
        )
    assert isinstance(dataset, NtuDataset)
    return list_ntu(dataset, raw, missing_list)


def read(unit: Unit, dataset: AnyDataset, reader: Reader) -> Recording:
    """Read a unit.

    Raises:
        RejectedError: it is damaged.
        UserError: its file cannot be read.
    """
    return ntu.parse(reader.read(unit.member))
