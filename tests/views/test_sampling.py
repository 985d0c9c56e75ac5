from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from builders import batch_of, recording
from torch.nn import functional as F

from skelpipe.random import below, fold, uniform
from skelpipe.views.sampling import (
    Frames,
    centre_interval,
    fold_bodies,
    gather_views,
    lowest,
    random_interval,
    resize_frames,
    sample_frames,
)

LENGTHS = torch.arange(1, 301)
WINDOWS = [8, 16, 32, 64]


def literal_frames(
    start: int, length: int, window: int, key: torch.Tensor | None
) -> list[tuple[int, int, float]]:
    """One view, one frame at a time: (lower frame, upper frame, share of the upper)."""
    if length < window:
        found = []
        for place in range(window):
            where = max((place + 0.5) * length / window - 0.5, 0.0)
            low = math.floor(where)
            high = min(low + 1, length - 1)
            found.append((start + low, start + high, where - low if low < high else 0.0))
        return found
    edges = [place * length // window for place in range(window + 1)]
    if key is None:
        picked = edges[:-1]
    elif length < 2 * window:
        draws = uniform(key, "gap", window + 1).tolist()
        gaps = sorted(range(window + 1), key=draws.__getitem__)[: length - window]
        picked, skipped = [], 0
        for place in range(window):
            skipped += place in gaps
            picked.append(place + skipped)
    else:
        sizes = torch.tensor(edges).diff()
        within = below(key, "frame of bin", window, sizes).tolist()
        picked = [edge + step for edge, step in zip(edges[:-1], within, strict=True)]
    return [(start + frame, start + frame, 0.0) for frame in picked]


def sampled(window: int, random: bool, seed: int = 0) -> tuple[Frames, torch.Tensor]:
    """Views of every length from 1 to 300, each as one view of one sample; starts vary."""
    key_NV = fold(seed, window, LENGTHS)[None]
    start = (LENGTHS * 7 % 50)[None]
    return sample_frames(start, LENGTHS[None], window, key_NV if random else None), start[0]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("random", [True, False])
def test_frames_equal_a_literal_loop(window: int, random: bool) -> None:
    frames, start = sampled(window, random)
    keys = fold(0, window, LENGTHS)
    for view, length in enumerate(LENGTHS.tolist()):
        wanted = literal_frames(int(start[view]), length, window, keys[view] if random else None)
        assert frames.low[0, view].tolist() == [low for low, _, _ in wanted]
        assert frames.high[0, view].tolist() == [high for _, high, _ in wanted]
        assert frames.weight[0, view].tolist() == pytest.approx([w for _, _, w in wanted], abs=1e-6)


@pytest.mark.parametrize("window", [2, 7, 64])
def test_resized_frames_lie_where_pixel_centres_do(window: int) -> None:
    start = LENGTHS * 7 % 50
    frames = resize_frames(start[None], LENGTHS[None], window)
    for view, length in enumerate(LENGTHS.tolist()):
        for place in range(window):
            where = (place + Fraction(1, 2)) * Fraction(length, window) - Fraction(1, 2)
            where = min(max(where, Fraction(0)), Fraction(length - 1))
            low, high = int(frames.low[0, view, place]), int(frames.high[0, view, place])
            begin = int(start[view])
            assert low == begin + math.floor(where)
            assert high == min(low + 1, begin + length - 1)
            assert float(frames.weight[0, view, place]) == float(where - math.floor(where))


def test_the_lowest_are_as_many_as_asked_for_and_earlier_ones_of_equals() -> None:
    draws = torch.tensor([[0.5, 0.25, 0.5, 0.0, 0.5], [0.5, 0.5, 0.5, 0.5, 0.25]])
    assert lowest(draws, 3).tolist() == [
        [True, True, False, True, False],
        [True, True, False, False, True],
    ]
    assert lowest(draws, torch.tensor([[0], [9]])).sum(1).tolist() == [0, 5]
    assert lowest(draws, 0).sum() == 0


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_frames_lie_inside_and_in_order(window: int, random: bool, seed: int) -> None:
    frames, start = sampled(window, random, seed)
    low, high = frames.low[0] - start[:, None], frames.high[0] - start[:, None]
    assert bool((low >= 0).all())
    assert bool((high < LENGTHS[:, None]).all())
    assert bool((low.diff() >= 0).all())
    assert bool(((high - low >= 0) & (high - low <= 1)).all())
    assert bool(((frames.weight >= 0) & (frames.weight < 1)).all())
    long = window <= LENGTHS
    assert bool((low[long].diff() > 0).all())
    assert bool((frames.weight[0, long] == 0).all())


@pytest.mark.parametrize("window", WINDOWS)
def test_all_frames_are_taken_where_the_interval_has_as_many(window: int) -> None:
    frames, start = sampled(window, True)
    view = window - 1
    assert frames.low[0, view].tolist() == list(range(int(start[view]), int(start[view]) + window))


@pytest.mark.parametrize("window", [8, 32])
def test_each_frame_of_a_long_interval_is_as_likely(window: int) -> None:
    length, keys = 2 * window + 3, fold(1, torch.arange(4000))[:, None]
    whole = torch.full_like(keys, length)
    low = sample_frames(torch.zeros_like(whole), whole, window, keys).low[:, 0]
    share = torch.bincount(low.flatten(), minlength=length) / 4000
    # A bin of two or of three frames gives each of them a half or a third.
    assert bool(((share - 1 / 2).abs() < 0.05).logical_or((share - 1 / 3).abs() < 0.05).all())


def test_gaps_reach_the_first_and_the_last_frame() -> None:
    keys = fold(2, torch.arange(500))[:, None]
    whole = torch.full_like(keys, 9)
    low = sample_frames(torch.zeros_like(whole), whole, 8, keys).low[:, 0]
    left_out = (36 - low.sum(1)).bincount(minlength=9)
    assert bool((left_out > 500 / 9 / 2).all())


@pytest.mark.parametrize("ratio", [(0.5, 1.0), (0.35, 0.7), (0.15, 0.4), (0.05, 0.2)])
@pytest.mark.parametrize("shortest", [1, 2, 64])
def test_interval_lengths_fill_the_closed_range(ratio: tuple[float, float], shortest: int) -> None:
    for total in (1, 2, 7, 100, 300):
        keys = fold(total, torch.arange(3000))[:, None]
        whole = torch.full_like(keys, total)
        start, length = random_interval(keys, torch.zeros_like(whole), whole, ratio, shortest)
        least = min(max(math.floor(ratio[0] * total + 1e-9), shortest), total)
        most = min(max(math.floor(ratio[1] * total + 1e-9), shortest), total)
        assert int(length.min()) == least
        # The floor comes to the upper end only at the highest share itself, one of many.
        assert int(length.max()) in {most, most - 1}
        assert int(start.min()) == 0
        assert bool((start + length <= total).all())
        if total == 100 and shortest < 64:
            assert int((start + length).max()) == total


def test_interval_length_is_the_floor_of_the_drawn_share() -> None:
    keys = fold(torch.arange(200))[:, None]
    whole = torch.full_like(keys, 137)
    _, length = random_interval(keys, torch.zeros_like(whole), whole, (0.5, 1.0), 2)
    for key, found in zip(keys, length, strict=True):
        share = (500_000 + int(below(key, "interval length", 1, 500_001))) / 1_000_000
        assert int(found) == math.floor(share * 137)


def test_inner_intervals_stay_inside_their_anchors() -> None:
    keys = fold(5, torch.arange(300)[:, None], torch.arange(2))
    total = (torch.arange(300) + 1)[:, None].expand(-1, 2)
    start, length = random_interval(keys, torch.zeros_like(total), total, (0.5, 1.0), 2)
    for ratio in ((0.35, 0.7), (0.05, 0.2)):
        inner, inner_length = random_interval(fold(keys, 9), start, length, ratio, 2)
        assert bool((inner >= start).all())
        assert bool((inner + inner_length <= start + length).all())
        assert bool((inner_length >= length.clamp(max=2)).all())


def test_centre_interval_trims_both_ends_alike() -> None:
    start, length = centre_interval(LENGTHS, 0.95)
    for total, first, count in zip(
        LENGTHS.tolist(), start[:, 0].tolist(), length[:, 0].tolist(), strict=True
    ):
        trim = math.floor(round(0.05 * total, 9) / 2)
        assert (first, count) == (trim, total - 2 * trim)


@pytest.mark.parametrize(("length", "window"), [(1, 8), (3, 8), (5, 16), (31, 32), (40, 64)])
def test_interpolation_equals_torch_where_the_body_is_present(length: int, window: int) -> None:
    poses = recording(0, length)
    batch = batch_of([poses])
    zero, whole = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), length)
    frames = sample_frames(zero, whole, window, batch.key_N[:, None])
    x, present = gather_views(batch, fold_bodies(batch), frames)
    wanted = F.interpolate(
        torch.from_numpy(poses[0]).reshape(1, length, -1).mT, size=window, mode="linear"
    ).mT.reshape(window, 25, 3)
    assert bool(present.all())
    assert torch.allclose(x[0, 0], wanted, atol=1e-5)


def test_one_frame_is_repeated() -> None:
    poses = recording(0, 1)
    batch = batch_of([poses])
    zero, one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)
    x, _ = gather_views(batch, fold_bodies(batch), sample_frames(zero, one, 8, None))
    assert torch.equal(x[0, 0], torch.from_numpy(poses[0]).expand(8, -1, -1))


def test_interpolation_leaves_absent_frames_out() -> None:
    poses = recording(0, 6, absent=[(0, 2, 4)])
    batch = batch_of([poses])
    low = torch.tensor([[[0, 1, 1, 2, 3, 4]]])
    weight = torch.tensor([[[0.5, 0.25, 0.0, 0.5, 0.75, 0.5]]])
    x, present = gather_views(batch, fold_bodies(batch), Frames(low, low + 1, weight))
    frame = torch.from_numpy(poses[0])
    assert present[0, 0].tolist() == [True, True, True, False, True, True]
    wanted = [(frame[0] + frame[1]) / 2, frame[1], frame[1], 0 * frame[0], frame[4],
              (frame[4] + frame[5]) / 2]  # fmt: skip
    assert torch.allclose(x[0, 0], torch.stack(wanted), atol=1e-6)


def test_bodies_of_a_sample_share_their_interval() -> None:
    poses = recording(0, 50)
    pair = np.concatenate([poses, poses + 1])
    batch = batch_of([recording(1, 20), pair, recording(2, 30)])
    key_NV = batch.key_N[:, None]
    zero, whole = torch.zeros_like(key_NV), batch.frames_N[:, None]
    interval = random_interval(key_NV, zero, whole, (0.5, 1.0), 2)
    bodies = fold_bodies(batch)
    x, _ = gather_views(batch, bodies, sample_frames(*interval, 16, key_NV))
    assert bodies.sample_B.tolist() == [0, 1, 1, 2]
    assert torch.allclose(x[2], x[1] + 1, atol=1e-6)


@pytest.mark.parametrize("absent_body", ["skip", "zeros", "copy"])
def test_what_stands_for_an_absent_body(absent_body: str) -> None:
    batch = batch_of([recording(0, 9), recording(1, 9, 2), recording(2, 9, 3)])
    bodies = fold_bodies(batch, absent_body)  # type: ignore[arg-type]
    zero, whole = torch.zeros(3, 1, dtype=torch.int64), batch.frames_N[:, None]
    x, present = gather_views(batch, bodies, sample_frames(zero, whole, 8, None))
    if absent_body == "skip":
        assert bodies.sample_B.tolist() == [0, 1, 1, 2, 2, 2]
        assert bool(bodies.real_B.all())
        return
    assert bodies.sample_B.tolist() == [0, 0, 1, 1, 2, 2, 2]
    if absent_body == "zeros":
        assert bodies.real_B.tolist() == [True, False, True, True, True, True, True]
        assert not bool(x[1].any())
        assert not bool(present[1].any())
    else:
        assert bool(bodies.real_B.all())
        assert torch.equal(x[1], x[0])


def test_bodies_begin_where_the_ragged_rows_say() -> None:
    samples = [recording(0, 5, 2), recording(1, 7), recording(2, 3, 2)]
    batch = batch_of(samples)
    bodies = fold_bodies(batch)
    assert bodies.start_B.tolist() == [0, 5, 10, 17, 20]
    zero, whole = torch.zeros(3, 1, dtype=torch.int64), batch.frames_N[:, None]
    x, _ = gather_views(batch, bodies, sample_frames(zero, whole, 8, None))
    assert torch.equal(x[4, 0, -1], torch.from_numpy(samples[2][1, -1]))
