"""What every raw format is read into, and the one way a recording is turned down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


class RejectedError(Exception):
    """A recording that cannot be used. It is written to `rejected.jsonl`, and the work goes on.

    Args:
        kind: What is wrong, in words that are equal for equal faults: rejections are counted by it.
        line: Line of the file it is in, from 1; 0 where no line is to blame.
        found: What stands there.
        expected: What should.
    """

    def __init__(self, kind: str, *, line: int = 0, found: str = "", expected: str = "") -> None:
        details = [f"line {line}"] if line else []
        details += [f"found {found}"] if found else []
        details += [f"expected {expected}"] if expected else []
        self.kind = kind
        self.reason = f"{kind}: {', '.join(details)}" if details else kind
        super().__init__(self.reason)


@dataclass(frozen=True)
class Recording:
    """The bodies of a recording in the order of the file; R rows, one per body and frame.

    Attributes:
        frames: Number of frames, the empty ones among them.
        frame_R: Frame of each row, from 0, never decreasing.
        id_R: The sensor's number for the body, exact (they exceed 2^53).
        xyz_RJC: Joint positions in metres.
    """

    frames: int
    frame_R: npt.NDArray[np.int64]
    id_R: npt.NDArray[np.int64]
    xyz_RJC: npt.NDArray[np.float64]
