from __future__ import annotations

import pytest
import torch
from builders import KINECT
from test_parts import chain
from torch import Tensor

from skelpipe.config.pcm3 import Mix
from skelpipe.errors import UserError
from skelpipe.random import below, fold, uniform
from skelpipe.views.mix import draw_mix, mix_clips

PAPER = Mix()
CUT, RESIZE, MIXUP = Mix(cut=1.0, resize=0.0), Mix(cut=0.0, resize=1.0), Mix(cut=0.0, resize=0.0)
MANY = fold(9, torch.arange(8000))
PARTS = list(KINECT.parts.values())


def clips(total: int, frames: int = 64, bodies: int = 2) -> Tensor:
    """Every value tells its sample, frame and channel."""
    count = total * frames * 75 * bodies
    return torch.arange(count, dtype=torch.float64).view(total, frames, -1) / 7


def literal_mix(x_GTC: Tensor, place: int, key: Tensor, mix: Mix) -> tuple[Tensor, int, float]:
    """Facts of the released code, one channel of one frame at a time."""
    total, frames, channels = x_GTC.shape
    partner = (place + 1 + int(below(key, "mix partner", 1, total - 2))) % total
    own, other = x_GTC[place], x_GTC[partner]
    kind = float(uniform(key, "mix kind", 1))
    if kind >= mix.cut + mix.resize:
        share = float(uniform(key, "mix share", 1))
        return own * (1 - share) + other * share, partner, share
    count = mix.parts[0] + int(below(key, "mix part count", 1, mix.parts[1] - mix.parts[0] + 1))
    draws = uniform(key, "mix parts", 5).tolist()
    joints = {j for part in sorted(range(5), key=draws.__getitem__)[:count] for j in PARTS[part]}
    steps = mix.length[0] + int(below(key, "mix length", 1, mix.length[1] - mix.length[0] + 1))
    start = int(below(key, "mix start", 1, mix.steps - steps + 1))
    size = frames // mix.steps
    begin, length = start * size, steps * size
    source = list(range(frames))
    if kind >= mix.cut:
        resized = [i * min(2 * length, frames) // length for i in range(length)]
        source[begin : begin + length] = resized
    out = own.clone()
    for frame in range(begin, begin + length):
        for channel in range(channels):
            if channel // (channels // 25) in joints:
                out[frame, channel] = other[source[frame], channel]
    return out, partner, len(joints) * steps / (25 * mix.steps)


@pytest.mark.parametrize(
    ("total", "frames", "bodies", "mix"),
    [
        (7, 64, 2, PAPER),
        (3, 64, 1, PAPER),
        (5, 16, 2, Mix(steps=8, length=(3, 5), parts=(1, 4), cut=0.4, resize=0.4)),
        (5, 12, 1, Mix(steps=4, length=(4, 4), cut=0.5, resize=0.5)),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_mixes_equal_a_literal_loop(
    total: int, frames: int, bodies: int, mix: Mix, shared: bool
) -> None:
    x = clips(total, frames, bodies)
    for seed in range(4):
        keys = fold(seed, torch.arange(total) * (not shared))
        found = mix_clips(x, 0, keys, KINECT, mix)
        for place in range(total):
            wanted, partner, share = literal_mix(x, place, keys[place], mix)
            assert torch.equal(found.x_NTC[place], wanted)
            assert found.partner_N[place] == partner
            assert float(found.share_N[place]) == share


@pytest.mark.parametrize("mix", [CUT, RESIZE, MIXUP])
def test_a_rank_mixes_its_rows_as_one_process_mixes_all(mix: Mix) -> None:
    x, keys = clips(10).float(), fold(1, torch.arange(10))
    whole = mix_clips(x, 0, keys, KINECT, mix)
    for first, count in ((0, 3), (3, 4), (7, 3)):
        mine = slice(first, first + count)
        part = mix_clips(x, first, keys[mine], KINECT, mix)
        assert torch.equal(part.x_NTC, whole.x_NTC[mine])
        assert torch.equal(part.partner_N, whole.partner_N[mine])
        assert torch.equal(part.share_N, whole.share_N[mine])


@pytest.mark.parametrize("mix", [CUT, RESIZE])
@pytest.mark.parametrize("bodies", [1, 2])
def test_a_region_is_parts_by_a_block_and_all_else_is_untouched(mix: Mix, bodies: int) -> None:
    x = clips(40, 64, bodies)
    found = mix_clips(x, 0, fold(2, torch.arange(40)), KINECT, mix)
    cells = (found.x_NTC != x).unflatten(-1, (25, -1))
    region = cells.any(-1)
    assert torch.equal(region, cells.all(-1))  # all coordinates of all bodies
    joints, frames = region.any(1), region.any(2)
    assert torch.equal(region, frames[..., None] & joints[:, None])
    assert torch.equal(joints.sum(1) * frames.sum(1) / 1600, found.share_N.float())
    for sample in range(40):
        chosen = [joints[sample, list(part)] for part in PARTS]
        assert all(bool(part.all()) or not bool(part.any()) for part in chosen)
        assert sum(bool(part.any()) for part in chosen) in (2, 3)
        block = frames[sample].nonzero()[:, 0]
        assert int(block[0]) % 4 == 0
        assert len(block) in range(28, 45, 4)
        assert int(block[-1] - block[0]) == len(block) - 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
def test_a_cut_copies_bits(value: float) -> None:
    x = clips(4).float()
    x[1] = value
    found = mix_clips(x, 0, fold(0, torch.zeros(4).long()), KINECT, CUT)
    for place, partner in enumerate(found.partner_N.tolist()):
        own, other, mixed = (
            c.view(torch.int32) for c in (x[place], x[partner], found.x_NTC[place])
        )
        assert bool(((mixed == own) | (mixed == other)).all())


def test_draws_follow_their_laws() -> None:
    draws = draw_mix(MANY, 12, 64, KINECT, PAPER)
    assert not bool((draws.cut_N & draws.resize_N).any())
    assert float(draws.cut_N.double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(draws.resize_N.double().mean()) == pytest.approx(0.25, abs=0.02)
    shifts = draws.shift_N.bincount(minlength=12) / 8000
    assert shifts[0] == shifts[11] == 0
    assert bool(((shifts[1:11] - 0.1).abs() < 0.015).all())
    lengths = (draws.length_N // 4).bincount(minlength=12) / 8000
    assert bool((draws.length_N % 4 == 0).all())
    assert bool((lengths[:7] == 0).all())
    assert bool(((lengths[7:] - 0.2).abs() < 0.02).all())
    for steps in range(7, 12):
        starts = draws.start_N[draws.length_N == 4 * steps]
        shares = starts.bincount(minlength=61)[::4] / len(starts)
        fitting = 16 - steps + 1
        assert float(shares.sum()) == pytest.approx(1)
        assert bool((shares[fitting:] == 0).all())
        assert bool(((shares[:fitting] - 1 / fitting).abs() < 0.035).all())
    parts = torch.stack([draws.joints_NJ[:, part[0]] for part in PARTS], 1)
    assert torch.equal(parts[:, torch.from_numpy(KINECT.part_of)], draws.joints_NJ)
    assert bool(((parts.sum(1).bincount() / 8000)[2:] - 0.5).abs().max() < 0.02)
    assert bool((parts.double().mean(0) - 0.5).abs().max() < 0.02)
    shares = draws.share_N.double()
    assert bool(((shares >= 0) & (shares < 1)).all())
    for quantile in (0.1, 0.5, 0.9):
        assert float((shares < quantile).double().mean()) == pytest.approx(quantile, abs=0.02)


@pytest.mark.parametrize(("total", "shift"), [(1, 1), (2, 1), (3, 1)])
def test_the_smallest_batches_have_one_shift(total: int, shift: int) -> None:
    assert set(draw_mix(MANY[:50], total, 64, KINECT, PAPER).shift_N.tolist()) == {shift}


def test_a_region_of_more_parts_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="more parts than skeleton 'chain' has") as error:
        draw_mix(MANY[:2], 5, 64, chain(2), PAPER)
    assert "--set 'mix.parts=[2, 2]'" in str(error.value)
