"""What every raw format is read into, and the one way a recording is turned down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FARTHEST = 1e6  # metres; beyond it sums of squares would overflow, and no sensor sees so far


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

    Where a format knows no identities (`of_slots`), body m of every frame is the same slot m, and
    there is a row for every slot in every frame, zeros where it is empty.

    Attributes:
        frames: Number of frames, the empty ones among them.
        frame_R: Frame of each row, from 0, never decreasing.
        id_R: The sensor's number for the body, exact (they exceed 2^53); None where the format
            knows no identities.
        xyz_RJC: Joint positions in metres.
    """

    frames: int
    frame_R: npt.NDArray[np.int64]
    id_R: npt.NDArray[np.int64] | None
    xyz_RJC: npt.NDArray[np.float64]

    @classmethod
    def of_slots(cls, poses_MTJC: npt.NDArray[np.floating]) -> Recording:
        """A recording without identities: shape (M, T, J, 3), zeros where a slot is empty."""
        bodies, frames, joints, _ = poses_MTJC.shape
        return cls(
            frames=frames,
            frame_R=np.repeat(np.arange(frames), bodies),
            id_R=None,
            xyz_RJC=np.swapaxes(poses_MTJC, 0, 1)
            .astype(np.float64)
            .reshape(frames * bodies, joints, 3),
        )

    def slots(self) -> npt.NDArray[np.float64]:
        """Bodies by their place within the frame, shape (M, T, J, 3), zeros where there is none."""
        starts_T = np.searchsorted(self.frame_R, np.arange(self.frames))
        slot_R = np.arange(len(self.frame_R)) - starts_T[self.frame_R]
        bodies = int(slot_R.max(initial=-1)) + 1
        poses = np.zeros((bodies, self.frames, *self.xyz_RJC.shape[1:]))
        poses[slot_R, self.frame_R] = self.xyz_RJC
        return poses

    def cut(self, start: int, stop: int) -> Recording:
        """Frames from start on to before stop; what lies outside the recording is left away."""
        start, stop = max(start, 0), min(stop, self.frames)
        rows = slice(*np.searchsorted(self.frame_R, [start, max(stop, start)]))
        return Recording(
            frames=max(stop - start, 0),
            frame_R=self.frame_R[rows] - start,
            id_R=None if self.id_R is None else self.id_R[rows],
            xyz_RJC=self.xyz_RJC[rows],
        )
