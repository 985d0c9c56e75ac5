"""Small raw recordings with any oddity, and archives of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Body = tuple[int, npt.NDArray[np.float64]]
"""A body in a frame: its id, and its joints (25, 3) in metres."""

PERSON = 72057594037944338  # ids are of this size: beyond what a float64 can tell apart


def joints(rng: np.random.Generator, width: float = 0.3) -> npt.NDArray[np.float64]:
    """A body's joints; ``width`` is about its share of the height: furniture has more than 0.8."""
    place = rng.uniform((-1, -1, 2), (1, 1, 4))
    size = (1.5 * width, 1.5, 0.3)
    return np.round(place + rng.uniform(-0.5, 0.5, (25, 3)) * size, 6)


def skeleton(
    frames: Sequence[Sequence[Body]], *, end: str = "\n", other: str = "0", tail: str = ""
) -> bytes:
    """A `.skeleton` file; ``other`` stands in the columns beside x, y, z."""
    lines = [str(len(frames))]
    rest = f"{other} " * 8 + "2"
    for bodies in frames:
        lines.append(str(len(bodies)))
        for number, xyz in bodies:
            lines += [f"{number} 0 1 1 0 0 0 {other} {other} 2", "25"]
            lines += [" ".join(f"{value:.6f}" for value in joint) + " " + rest for joint in xyz]
    return (end.join(lines) + end + tail).encode()


def plain(rng: np.random.Generator, frames: int = 4) -> bytes:
    """An ordinary recording of one person."""
    return skeleton([[(PERSON, joints(rng))] for _ in range(frames)])


def key(
    setup: int = 1, camera: int = 1, subject: int = 1, replication: int = 1, action: int = 1
) -> str:
    return f"S{setup:03}C{camera:03}P{subject:03}R{replication:03}A{action:03}"


def some_recordings(count: int = 24, frames: int = 4) -> dict[str, bytes]:
    """Key -> file, over subjects 1-4 (1, 2, 4 train) and cameras 1-3."""
    rng = np.random.default_rng(0)
    names = [
        key(camera=1 + i % 3, subject=1 + i // 3 % 4, replication=1 + i // 12) for i in range(count)
    ]
    return {name: plain(rng, frames) for name in names}


def write_zip(file: Path, recordings: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in recordings.items():
            archive.writestr(f"nturgb+d_skeletons/{name}.skeleton", data)
    return file


def write_tar(file: Path, recordings: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, data in recordings.items():
            info = tarfile.TarInfo(f"some/folder/{name}.skeleton")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def write_folder(folder: Path, recordings: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in recordings.items():
        (folder / f"{name}.skeleton").write_bytes(data)
    return folder


def all_files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
