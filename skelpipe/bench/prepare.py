"""Raw text -> finished shards: how fast, and in how much memory."""

from __future__ import annotations

import gc
import shutil
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from skelpipe.manifest import load_topology
from skelpipe.prepare import engine
from skelpipe.prepare.normalise import find_pipeline
from skelpipe.prepare.recording import Recording, RejectedError

from .measure import Row, interleave, rate, ratio, rows, with_megabytes
from .memory import private_megabytes
from .recordings import PREFIX, write_raw, write_short

_PIPELINE = "ctrgcn"


def prepare(
    recordings: int = 240,
    *,
    copies: int = 8,
    rounds: int = 3,
    files: Sequence[int] = (2_000, 20_000),
) -> list[Row]:
    """Raw text -> finished shards: `speed`, then `memory` (see there for the arguments)."""
    return [*speed(recordings, copies, rounds), *memory(files)]


def speed(recordings: int, copies: int, rounds: int) -> list[Row]:
    """The rate, against `read_literally` and the same cleaning with nothing written.

    Each recording is generated once and stands there under ``copies`` names, so that a run is long
    enough to be measured; the baseline, which has no fixed cost, reads one of each.

    Args:
        recordings: Different recordings.
        copies: Names for each.
        rounds: Measurements of each way.
    """
    with TemporaryDirectory(prefix=PREFIX) as name:
        folder = Path(name)
        once, many, packed = folder / "once", folder / "many", folder / "many.zip"
        size = write_raw(once, recordings, 1) / recordings
        write_raw(many, recordings, copies)
        four = folder / "four"
        write_raw(four, min(recordings, 4), 1)
        _pack(many, packed)
        texts = sorted(once.iterdir())
        pipeline, topology = find_pipeline(_PIPELINE), load_topology("kinect_v2")
        switches = pipeline.settled({})

        def literally() -> int:
            # Its small lists set off collections, which must not walk through what this process has
            # imported: with PyTorch among it they doubled the time.
            gc.freeze()
            for text in texts:
                with suppress(RejectedError):  # an empty recording: the engine passes over it too
                    pipeline.apply(read_literally(text), topology, switches)
            gc.unfreeze()
            return len(texts)

        def to_shards(raw: Path, workers: int) -> float:
            out = folder / "out"
            start = time.perf_counter()
            engine.prepare("ntu60", ["xsub"], raw=[raw], out=out, workers=workers)
            seconds = time.perf_counter() - start
            shutil.rmtree(out)
            return seconds

        starts: list[float] = []

        def two_workers() -> float:
            # Starting processes is paid once a run, and a real one takes minutes: it is taken off.
            starts.append(max(to_shards(four, 2) - to_shards(four, 1), 1e-6))
            return recordings * copies / max(to_shards(packed, 2) - starts[-1], 1e-6)

        rates = interleave(
            {
                "per-joint reader, cleaned, nothing written": lambda: rate(literally),
                "files to shards, 1 worker": lambda: recordings * copies / to_shards(many, 1),
                "zip to shards, 1 worker": lambda: recordings * copies / to_shards(packed, 1),
                "zip to shards, 2 workers that run": two_workers,
            },
            rounds,
        )
    _, _, one, two = rates
    pair = ratio(rates[two], rates[one])
    return [
        *(with_megabytes(row, size) for row in rows(rates, "recordings/s")),
        Row("2 workers, against 1 from zip", median(rates[two]), "recordings/s", pair),
        Row("start of 2 workers, not in their rate", median(starts), "s", None),
    ]


def memory(files: Sequence[int]) -> list[Row]:
    """The most private memory of the run's own process and of its two workers.

    The files are short recordings: memory could grow with their number, hardly with their length.
    Nothing is told where the system does not tell it.

    Args:
        files: Numbers of files to prepare.
    """
    found: list[Row] = []
    for number in files:
        with TemporaryDirectory(prefix=PREFIX) as name:
            raw, out = Path(name) / "raw", Path(name) / "out"
            write_short(raw, number)
            own, worker = private_megabytes(_prepare_with_two, raw, out)
        for who, megabytes in (("a worker", worker), ("the run's process", own)):
            if megabytes:
                what = f"private memory of {who}, {number:,} files"
                found.append(Row(what, megabytes, "MB", None))
    return sorted(found, key=lambda row: "worker" not in row.what)


def _prepare_with_two(raw: Path, out: Path) -> None:
    engine.prepare("ntu60", ["xsub"], raw=[raw], out=out, workers=2)


def read_literally(file: Path) -> Recording:
    """Read a `.skeleton` file as the published scripts do: line by line, joint by joint.

    As CTR-GCN's, it makes an array of every joint's position and another of its place in the colour
    image, and stacks a body's frames one by one. Nothing is checked.
    """
    with file.open() as opened:
        lines = opened.readlines()
    frames = int(lines[0].strip("\r\n"))
    at = 1
    bodies: dict[str, dict[str, Any]] = {}
    for frame in range(frames):
        here = int(lines[at].strip("\r\n"))
        at += 1
        for _ in range(here):
            name = lines[at].strip("\r\n").split()[0]
            joints = int(lines[at + 1].strip("\r\n"))
            at += 2
            positions = np.zeros((joints, 3), dtype=np.float32)
            colours = np.zeros((1, joints, 2), dtype=np.float32)
            for joint in range(joints):
                fields = lines[at].strip("\r\n").split()
                positions[joint] = np.array(fields[:3], dtype=np.float32)
                colours[0, joint] = np.array(fields[5:7], dtype=np.float32)
                at += 1
            if name in bodies:
                body = bodies[name]
                body["positions"] = np.vstack((body["positions"], positions))
                body["colours"] = np.vstack((body["colours"], colours))
                body["frames"].append(frame)
            else:
                bodies[name] = {"positions": positions, "colours": colours, "frames": [frame]}
    frame_R = np.array([frame for body in bodies.values() for frame in body["frames"]], dtype=int)
    id_R = np.array([int(name) for name, body in bodies.items() for _ in body["frames"]], dtype=int)
    xyz = [body["positions"].reshape(-1, 25, 3) for body in bodies.values()]
    order = frame_R.argsort(kind="stable")
    xyz_RJC = np.concatenate(xyz)[order].astype(np.float64) if xyz else np.zeros((0, 25, 3))
    return Recording(frames, frame_R[order], id_R[order], xyz_RJC)


def _pack(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"nturgb+d_skeletons/{file.name}")
