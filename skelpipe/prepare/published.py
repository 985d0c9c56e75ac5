"""Samples of arrays that others have prepared -> Recording.

`ctrgcn-npz`: CTR-GCN's `NTU60_CS.npz` and the like: x_train and x_test (N, 300, 150), of each frame
two bodies of 25 joints; y_train and y_test (N, classes), one in each row.
`2s-agcn-npy`: 2s-AGCN's `train_data_joint.npy` (N, 3, 300, 25, 2), with `train_label.pkl` (names,
labels), and the same of `val`; where skeleton-contrast or CMD wrote it, `train_num_frame.npy`.
`pyskl-pickle`: pyskl's {"split": {"xsub_train": names, …}, "annotations": [{"frame_dir": name,
"label": from 0, "keypoint": (M, T, 25, 3) float16}, …]}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .archive import Member, Reader
from .recording import FARTHEST, Recording, RejectedError
from .unpickle import Array

Layout = Literal["ctrgcn-npz", "2s-agcn-npy", "pyskl-pickle"]

JOINTS = 25
BODIES = 2  # of CTR-GCN's and 2s-AGCN's arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Block(Member):
    """The numbers of one sample, which lie one after the other in a file.

    Attributes:
        layout: Whose.
        array: Their type and shape; where its bytes lie, says the member.
        length: Of a 2s-AGCN sample, how many of its frames were recorded; None where nobody says.
    """

    layout: Layout
    array: Array
    length: int | None = None


def read(block: Block, reader: Reader) -> Recording:
    """Read a sample: metres, without identities, and without what is padding.

    Padding are zero frames behind the last one that is not (of 2s-AGCN, frames behind the sample's
    length where that is known), bodies that are zero throughout, and a second body equal to the
    first, by which CTR-GCN fills NTU RGB+D 120's arrays. Only these bytes are read: the checksum of
    an npz is over a whole array, and is not looked at.

    Raises:
        RejectedError: a position is no number, or the bytes do not fit the array.
        UserError: the file cannot be read.
    """
    data = reader.read(block)
    try:
        values = block.array.from_bytes(data)
    except ValueError as error:
        raise RejectedError("damaged array", found=str(error)) from error
    with np.errstate(invalid="ignore"):  # a NaN may be of the kind that signals
        far = ~(np.abs(values.astype(np.float64)) <= FARTHEST)  # true for NaN as well
    if far.any():
        raise RejectedError("no number in x, y, z", found=str(values[far][0]), expected="metres")
    poses_MTJC = _bodies(values, block.layout)
    if block.length is not None:
        poses_MTJC = poses_MTJC[:, : block.length]
    elif block.layout != "pyskl-pickle":
        seen = np.flatnonzero(poses_MTJC.any(axis=(0, 2, 3)))
        poses_MTJC = poses_MTJC[:, : seen.max(initial=-1) + 1]
    if block.layout == "ctrgcn-npz" and np.array_equal(*poses_MTJC):
        poses_MTJC = poses_MTJC[:1]
    return Recording.of_slots(poses_MTJC[poses_MTJC.any(axis=(1, 2, 3))])


def _bodies(values: npt.NDArray[Any], layout: Layout) -> npt.NDArray[Any]:
    """A sample as (M, T, J, 3)."""
    match layout:
        case "ctrgcn-npz":
            return values.reshape(len(values), BODIES, JOINTS, 3).swapaxes(0, 1)
        case "2s-agcn-npy":
            return values.transpose(3, 1, 2, 0)
        case "pyskl-pickle":
            return values
