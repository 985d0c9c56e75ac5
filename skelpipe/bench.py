"""Benchmarks: each measures a plain way and ours in the same run, on the same generated recordings.

Machines are noisy: rounds alternate between the ways, and a ratio is the median over the rounds of
what two neighbouring measurements give. Rates say what this machine did; the ratios carry over.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count, cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from skelpipe.config import load_recipe
from skelpipe.manifest import load_topology
from skelpipe.methods.slim import SLiM
from skelpipe.prepare import engine
from skelpipe.prepare.normalise import find_pipeline
from skelpipe.prepare.programmes import ACTIONS
from skelpipe.prepare.recording import Recording, RejectedError
from skelpipe.prepare.synth import Take, recording
from skelpipe.stream.loader import Loader
from skelpipe.stream.source import Batch, Mapped, Resident, Source, select

_PREFIX = "skelpipe-bench-"
_CPU = torch.device("cpu")
_PIPELINE = "ctrgcn"
_CLASSES = sorted(ACTIONS[:12])
_KINDS = 4 * len(_CLASSES)  # of recordings by a replication number, see _takes
_TUBES = 64  # at most, in a mask of the baseline's
_TURN = np.radians([30.0, 180.0, 30.0])  # how far the baseline's views are turned about x, y, z


@dataclass(frozen=True)
class Row:
    """One way of doing the work.

    Attributes:
        what: The way.
        rate: Median over the rounds.
        unit: Of the rate.
        ratio: To the baseline, which has 1; None where the row stands outside the comparison.
        megabytes: Of input a second, where that says something.
    """

    what: str
    rate: float
    unit: str
    ratio: float | None
    megabytes: float | None = None


def machine() -> str:
    """CPU, cores to use and versions: what a rate cannot be read without."""
    name = platform.processor() or platform.machine()
    if (cpus := Path("/proc/cpuinfo")).exists():
        models = [line for line in cpus.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("numpy", "pyarrow", "isal", "torch", "webdataset", "skelpipe")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{name}, {cores} cores; Python {platform.python_version()}, {versions}"


def prepare(recordings: int = 240, *, copies: int = 8, rounds: int = 3) -> list[Row]:
    """Raw text -> finished shards, against `read_literally` and the same cleaning, nothing written.

    Each recording is generated once and stands there under ``copies`` names, so that a run is long
    enough to be measured; the baseline, which has no fixed cost, reads one of each.

    Args:
        recordings: Different recordings.
        copies: Names for each.
        rounds: Measurements of each way.
    """
    with TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        once, many, packed = folder / "once", folder / "many", folder / "many.zip"
        size = write_raw(once, recordings, 1) / recordings
        write_raw(many, recordings, copies)
        four = folder / "four"
        write_raw(four, min(recordings, 4), 1)
        _pack(many, packed)
        files = sorted(once.iterdir())
        pipeline, topology = find_pipeline(_PIPELINE), load_topology("kinect_v2")
        switches = pipeline.settled({})

        def literally() -> int:
            for file in files:
                with suppress(RejectedError):  # an empty recording: the engine passes over it too
                    pipeline.apply(read_literally(file), topology, switches)
            return len(files)

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

        rates = _interleave(
            {
                "per-joint reader, cleaned, nothing written": lambda: _rate(literally),
                "files to shards, 1 worker": lambda: recordings * copies / to_shards(many, 1),
                "zip to shards, 1 worker": lambda: recordings * copies / to_shards(packed, 1),
                "zip to shards, 2 workers that run": two_workers,
            },
            rounds,
        )
    rows = [_with_megabytes(row, size) for row in _rows(rates, "recordings/s")]
    _, _, one, two = rates
    pair = _ratio(rates[two], rates[one])
    return [
        *rows,
        Row("2 workers, against 1 from zip", median(rates[two]), "recordings/s", pair),
        Row("start of 2 workers, not in their rate", median(starts), "s", None),
    ]


def read_literally(file: Path) -> Recording:
    """Read a `.skeleton` file as the published scripts do: line by line, joint by joint.

    Positions and colour coordinates of every joint are converted, bodies are gathered in
    dictionaries by their id. Nothing is checked.
    """
    with file.open() as opened:
        lines = opened.readlines()
    frames = int(lines[0].strip("\r\n"))
    at = 1
    bodies: dict[str, dict[str, list[Any]]] = {}
    for frame in range(frames):
        here = int(lines[at].strip("\r\n"))
        at += 1
        for _ in range(here):
            name = lines[at].strip("\r\n").split()[0]
            joints = int(lines[at + 1].strip("\r\n"))
            at += 2
            positions, colours = [], []
            for _ in range(joints):
                fields = lines[at].strip("\r\n").split()
                positions.append([float(field) for field in fields[:3]])
                colours.append([float(field) for field in fields[5:7]])
                at += 1
            body = bodies.setdefault(name, {"frames": [], "positions": [], "colours": []})
            body["frames"].append(frame)
            body["positions"].append(positions)
            body["colours"].append(colours)
    frame_R = np.array([frame for body in bodies.values() for frame in body["frames"]], dtype=int)
    id_R = np.array([int(name) for name, body in bodies.items() for _ in body["frames"]], dtype=int)
    xyz = [np.array(body["positions"]) for body in bodies.values()]
    order = frame_R.argsort(kind="stable")
    xyz_RJC = np.concatenate(xyz)[order] if xyz else np.zeros((0, 25, 3))
    return Recording(frames, frame_R[order], id_R[order], xyz_RJC)


def stream(
    recordings: int = 240,
    *,
    copies: int = 8,
    batch: int = 256,
    threads: int = 1,
    rounds: int = 3,
    least: float = 0.3,
) -> list[Row]:
    """Shards -> samples, against plain webdataset with its own decoding.

    Ours come in the epoch's random order, webdataset's in the order of the files. A mapped sample
    is checked at every read, a resident one when it is loaded; webdataset checks nothing.

    Args:
        recordings: Different recordings.
        copies: Names for each; half of them are training samples, which are read.
        batch: Samples in a batch of ours, at most all there are.
        threads: Of torch.
        rounds: Measurements of each way.
        least: Seconds a measurement takes at least.
    """
    import webdataset

    with TemporaryDirectory(prefix=_PREFIX) as name, _threads(threads):
        prepared = _prepared_set(Path(name), recordings, copies)
        table = select(prepared, "train")
        tars = [str(tar) for tar in sorted(prepared.glob("train-*.tar"))]
        batch = min(batch, len(table))

        def plain() -> int:
            samples = webdataset.WebDataset(tars, shardshuffle=False).decode()
            return sum(1 for sample in samples if sample["x.npy"].size)

        def batches(source: Source) -> float:
            loader = Loader(source, batch, seed=0)
            return _rate(lambda: len(next(loader)), least)

        mapped, resident = Mapped(prepared, table, _CPU), Resident(prepared, table, _CPU)
        rates = _interleave(
            {
                "webdataset, decoded": lambda: _rate(plain, least),
                f"mapped, random batches of {batch}": lambda: batches(mapped),
                f"resident, random batches of {batch}": lambda: batches(resident),
                "loading the resident source": lambda: _rate(
                    lambda: len(Resident(prepared, table, _CPU)), least
                ),
            },
            rounds,
        )
    size = sum(table["size"].to_pylist()) / len(table)
    plain_row, mapped_row, resident_row, loading_row = _rows(rates, "samples/s")
    return [
        _with_megabytes(plain_row, size),
        _with_megabytes(mapped_row, size),
        # No coordinates are moved, the views gather them: that is no ratio to decoding.
        replace(resident_row, ratio=None),
        _with_megabytes(loading_row, size),
    ]


def views(
    recordings: int = 240,
    *,
    batch: int = 64,
    threads: int = 1,
    rounds: int = 3,
    least: float = 1.0,
) -> list[Row]:
    """All views of recipe `slim`, 14 a sample, against a per-sample loader in NumPy.

    The loader (`PlainViews`) crops, resamples, turns, mirrors and masks one view at a time, each
    step vectorised; it neither scales bones nor collates a batch. Ours does both.

    Args:
        recordings: Different recordings; half of them are training samples, which are used.
        batch: Samples in a batch, at most all there are.
        threads: Of torch.
        rounds: Measurements of each way.
        least: Seconds a measurement takes at least.
    """
    # Views depend neither on the layers nor on the prototypes, which would fill memory.
    recipe = load_recipe("slim", ["encoder.layers=1", "head.prototypes=2"])
    topology = load_topology("kinect_v2")
    spec = recipe.views
    lengths = [(spec.frames, spec.ratio)] * 2
    lengths += [(local.frames, local.ratio) for local in spec.local] * (spec.anchors * spec.crops)
    with TemporaryDirectory(prefix=_PREFIX) as name:
        prepared = _prepared_set(Path(name), recordings, 1)
        source = Resident(prepared, select(prepared, "train"), _CPU)
    with _threads(threads):
        batch = min(batch, len(source))
        loader = Loader(source, batch, seed=0)
        method = SLiM(recipe, topology)
        samples = cycle(_samples(next(loader)))

        def ours() -> int:
            method.views(next(loader))
            return batch * len(lengths)

        parts = [np.array(part) for part in topology.parts.values()]
        plain = PlainViews(lengths, topology.mirrored, parts, recipe.encoder.patch_frames)

        def by_sample() -> int:
            plain(next(samples))
            return len(lengths)

        rates = _interleave(
            {
                "NumPy, one sample at a time": lambda: _rate(by_sample, least),
                f"SLiM.views, batches of {batch}, threads: {threads}": lambda: _rate(ours, least),
            },
            rounds,
        )
    return _rows(rates, "views/s")


@dataclass
class PlainViews:
    """A data loader's transform of one sample, as peers write it: views one after the other.

    Attributes:
        lengths: Frames of each view, and the range of the share of the recording it is cut from.
        mirrored: The joint at each place after mirroring.
        parts: Joints of each body part.
        patch: Frames of a token; tokens are masked by tubes, a part's joints over a span of time.
    """

    lengths: Sequence[tuple[int, tuple[float, float]]]
    mirrored: npt.NDArray[np.int64]
    parts: Sequence[npt.NDArray[np.int64]]
    patch: int

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(
        self, x_MTJC: npt.NDArray[np.float32]
    ) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
        """Coordinates (M, W, J, 3) and mask (W / patch, J) of each view."""
        return [
            (self._turned(self._cut(x_MTJC, frames, *share)), self._mask(frames // self.patch))
            for frames, share in self.lengths
        ]

    def _cut(
        self, x_MTJC: npt.NDArray[np.float32], frames: int, low: float, high: float
    ) -> npt.NDArray[np.float32]:
        total = x_MTJC.shape[1]
        length = max(int(self._rng.uniform(low, high) * total), 1)
        start = self._rng.integers(total - length + 1)
        place = np.linspace(start, start + length - 1, frames, dtype=np.float32)
        before = place.astype(np.int64)
        after = np.minimum(before + 1, total - 1)
        weight = (place - before).astype(np.float32)[:, None, None]
        cut: npt.NDArray[np.float32] = x_MTJC[:, before] * (1 - weight) + x_MTJC[:, after] * weight
        return cut

    def _turned(self, x_MWJC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self._rng.random() < 0.5:
            angles = self._rng.uniform(-_TURN, _TURN)
            (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
            about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
            about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
            about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
            x_MWJC = x_MWJC @ (about_z @ about_y @ about_x).T.astype(np.float32)
        if self._rng.random() < 0.5:
            x_MWJC = x_MWJC[..., self.mirrored, :] * np.array([-1, 1, 1], dtype=np.float32)
        return x_MWJC

    def _mask(self, steps: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros((steps, len(self.mirrored)), dtype=np.bool_)
        wanted = self._rng.uniform(0.5, 0.9) * mask.size
        # All tubes' numbers at once: drawn one by one they would halve the loader's rate.
        part, width, joint, duration, step = self._rng.random((5, _TUBES))
        part = (part * len(self.parts)).astype(int)
        size = np.array([len(joints) for joints in self.parts])[part]
        width = 1 + (width * size).astype(int)
        joint = (joint * (size - width + 1)).astype(int)
        duration = 1 + (duration * steps).astype(int)
        step = (step * (steps - duration + 1)).astype(int)
        columns = (part, joint, joint + width, step, step + duration)
        for number, left, right, start, end in zip(*(c.tolist() for c in columns), strict=True):
            mask[start:end, self.parts[number][left:right]] = True
            if np.count_nonzero(mask) >= wanted:
                break
        return mask


def write_raw(folder: Path, recordings: int, copies: int) -> int:
    """Write generated recordings as files, each under several names; returns bytes of text."""
    folder.mkdir()
    size = 0
    for number, take in enumerate(islice(_takes(), recordings)):
        text = recording(0, take)
        size += len(text) * copies
        for copy in range(copies):
            name = replace(take, replication=1 + number // _KINDS * copies + copy)
            (folder / f"{name.key}.skeleton").write_bytes(text)
    return size


def _takes() -> Iterator[Take]:
    """Recordings without end, spread evenly over parts and cameras, so that workers share well."""
    for replication in count(1):
        for action in _CLASSES:
            for subject in (1, 3):  # one of NTU-60's training subjects, one of its test subjects
                for camera in (1, 2):  # of which the split by camera does the same
                    yield Take(1, camera, subject, replication, action)


def _pack(folder: Path, packed: Path) -> None:
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"nturgb+d_skeletons/{file.name}")


def _prepared_set(folder: Path, recordings: int, copies: int) -> Path:
    write_raw(folder / "raw", recordings, copies)
    done = engine.prepare("ntu60", ["xsub"], raw=[folder / "raw"], out=folder, workers=1)
    return done.sets[0].folder


def _samples(batch: Batch) -> list[npt.NDArray[np.float32]]:
    """The samples of a batch by themselves, each (M, T, J, 3)."""
    sizes = zip(
        batch.start_N.tolist(), batch.bodies_N.tolist(), batch.frames_N.tolist(), strict=True
    )
    flat: npt.NDArray[np.float32] = batch.flat_RJC.numpy()
    return [
        flat[start : start + bodies * frames].reshape(bodies, frames, *flat.shape[1:])
        for start, bodies, frames in sizes
    ]


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Torch on so many threads, and then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rate(work: Callable[[], int], least: float = 0.0) -> float:
    """Units a second of work that returns how many it did; it is repeated for ``least`` seconds."""
    done, start = 0, time.perf_counter()
    while True:
        done += work()
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return done / elapsed


def _interleave(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The rates of each way, measured in turns."""
    rates: dict[str, list[float]] = {what: [] for what in ways}
    for _ in range(rounds):
        for what, measure in ways.items():
            rates[what].append(measure())
    return rates


def _ratio(rates: Sequence[float], baseline: Sequence[float]) -> float:
    return median(ours / theirs for ours, theirs in zip(rates, baseline, strict=True))


def _rows(rates: Mapping[str, Sequence[float]], unit: str) -> list[Row]:
    """One row a way; the first is the baseline."""
    baseline = next(iter(rates.values()))
    return [Row(what, median(of), unit, _ratio(of, baseline)) for what, of in rates.items()]


def _with_megabytes(row: Row, size: float) -> Row:
    """The row with what its rate means where an item has ``size`` bytes."""
    return replace(row, megabytes=row.rate * size / 1e6)
