"""Samples -> views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch

from skelpipe.config import SLiMRecipe, load_recipe
from skelpipe.manifest import load_topology
from skelpipe.methods.slim import SLiM
from skelpipe.methods.slim_views import augment_views, mask_views, place_views
from skelpipe.stream.loader import Loader
from skelpipe.stream.source import Batch, Resident, select
from skelpipe.views.masking import contiguous_subsets
from skelpipe.views.sampling import fold_bodies, tabulate

from .measure import Row, interleave, rate, rows
from .recordings import PREFIX, prepared_set
from .stream import threads_of

_CPU = torch.device("cpu")
_TUBES = 64  # at most, in a mask of the baseline's
_TURN = np.radians([30.0, 180.0, 30.0])  # how far the baseline's views are turned about x, y, z


def views(
    recordings: int = 240,
    *,
    copies: int = 8,
    batch: int = 768,
    threads: int = 1,
    rounds: int = 3,
    least: float = 1.0,
) -> list[Row]:
    """All views of recipe `slim`, 14 a sample, against a per-sample loader in NumPy.

    The loader (`PlainViews`) crops, resamples, turns, mirrors and masks one view at a time, each
    step vectorised; it neither scales bones nor collates a batch, and it masks all views, where
    ours masks half of the local ones. Ours scales and collates.

    Beside them: the shares of ours that sampling, augmentation and masks take, and the floor, one
    gather of every frame of every view and nothing else.

    Args:
        recordings: Different recordings.
        copies: Names for each; half of them are training samples, which are used.
        batch: Samples in a batch, at most all there are; the recipe has 768.
        threads: Of torch.
        rounds: Measurements of each way.
        least: Seconds a measurement takes at least.
    """
    # Views depend neither on the layers nor on the prototypes, which would fill memory.
    recipe = load_recipe("slim", ["encoder.layers=1", "head.prototypes=2"])
    assert isinstance(recipe, SLiMRecipe)
    topology = load_topology("kinect_v2")
    spec = recipe.views
    lengths = [(spec.frames, spec.ratio)] * 2
    lengths += [(local.frames, local.ratio) for local in spec.local] * (spec.anchors * spec.crops)
    with TemporaryDirectory(prefix=PREFIX) as name:
        prepared = prepared_set(Path(name), recordings, copies)
        source = Resident(prepared, select(prepared, "train"), _CPU)
    with threads_of(threads):
        batch = min(batch, len(source))
        loader = Loader(source, batch, seed=0)
        method = SLiM(recipe, topology)
        drawn = next(loader)
        samples = cycle(_samples(drawn))
        parts = [np.array(part) for part in topology.parts.values()]
        plain = PlainViews(lengths, topology.mirrored, parts, recipe.encoder.patch_frames)

        def by_sample() -> int:
            plain(next(samples))
            return len(lengths)

        def whole(work: Callable[[], object]) -> Callable[[], float]:
            """The rate of work on a batch."""

            def views_done() -> int:
                work()
                return batch * len(lengths)

            return lambda: rate(views_done, least)

        # Each stage by itself, on what the ones before it make of one batch.
        bodies = fold_bodies(drawn)
        table = tabulate(drawn, bodies)
        placed = place_views(drawn, bodies, table, recipe)
        x = augment_views(placed, table, recipe, topology)
        subsets = contiguous_subsets(topology, recipe.mask.subset)

        def sampling() -> None:
            place_views(drawn, bodies, tabulate(drawn, fold_bodies(drawn)), recipe)

        stages: dict[str, Callable[[], object]] = {
            "sampling": sampling,
            "augmentation": lambda: augment_views(placed, table, recipe, topology),
            "masks": lambda: mask_views(placed, x, bodies, recipe, subsets),
        }
        gathered = [views.rows.low.flatten() for views in placed]
        flat_RX = drawn.flat_RJC.flatten(1)
        ways = {
            "NumPy, one sample at a time": lambda: rate(by_sample, least),
            f"SLiM.views, batches of {batch}, threads: {threads}": whole(
                lambda: method.views(next(loader))
            ),
            "floor: every frame of every view gathered once": whole(
                lambda: [flat_RX.index_select(0, rows) for rows in gathered]
            ),
            **{stage: whole(work) for stage, work in stages.items()},
        }
        rates = interleave(ways, rounds)
    alone = {stage: 1 / median(rates.pop(stage)) for stage in stages}
    shares = [
        Row(f"of SLiM.views: {stage}", 100 * time / sum(alone.values()), "% of the time", None)
        for stage, time in alone.items()
    ]
    plain_row, ours, floor = rows(rates, "views/s")
    return [plain_row, ours, *shares, floor]


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
