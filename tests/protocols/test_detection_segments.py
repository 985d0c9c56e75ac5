from __future__ import annotations

import numpy as np
import pytest

from skelpipe.protocols.detection_metrics import Segment
from skelpipe.protocols.detection_segments import (
    Smoothing,
    pack_segments,
    segments,
    smooth,
    unpack_segments,
)


@pytest.mark.parametrize("smoothing", ["whole", "as_published"])
@pytest.mark.parametrize("frames", [1, 2, 5, 19, 47])
def test_smoothing_against_a_plain_loop(frames: int, smoothing: Smoothing) -> None:
    score_TK = np.random.default_rng(frames).dirichlet(np.ones(4), frames)
    found = smooth(score_TK, 10, smoothing)
    last = frames if smoothing == "whole" or frames == 1 else frames - 1
    for frame in range(frames):
        seen = [score_TK[near] for near in range(frame - 10, frame + 10) if 0 <= near < last]
        np.testing.assert_allclose(found[frame], np.mean(seen, 0), rtol=0, atol=1e-12)
    assert (smooth(score_TK, 0, smoothing) == score_TK).all()


def test_the_last_frame_is_in_no_published_mean() -> None:
    score_TK = np.zeros((5, 2))
    score_TK[-1] = 1
    assert smooth(score_TK, 2, "as_published").sum() == 0
    # Frame 2 sees frames 0 to 3, frame 3 sees 1 to 4, frame 4 sees 2 to 4.
    np.testing.assert_allclose(smooth(score_TK, 2, "whole")[:, 0], [0, 0, 0, 1 / 4, 1 / 3])


def test_runs_become_segments_by_hand() -> None:
    """A run at the start, one at the end, and one of an action whose mean is largest.

    In frames 3 and 4 action 1 has a mean of (0.3 + 0.1) / 2 = 0.2, action 2 of 0.35. Exactly the
    threshold is enough: 1 - 0.5 = 0.5.
    """
    score_TK = np.array(
        [
            [0.25, 0.75, 0.0],
            [0.5, 0.5, 0.0],
            [0.75, 0.0, 0.25],
            [0.375, 0.3, 0.325],
            [0.5, 0.125, 0.375],
            [0.9, 0.1, 0.0],
            [0.0, 0.0, 1.0],
        ]
    )
    found = segments(score_TK, 0.5, "v")
    assert [segment[:4] for segment in found] == [("v", 1, 0, 2), ("v", 2, 3, 5), ("v", 2, 6, 7)]
    assert [segment.confidence for segment in found] == pytest.approx([0.625, 0.35, 1.0])
    assert segments(score_TK, 0.76, "v") == [Segment("v", 2, 6, 7, 1.0)]
    everywhere = segments(score_TK * 0, 0.5, "v")
    assert [segment[2:4] for segment in everywhere] == [(0, 7)]
    assert segments(score_TK * 0 + 1, 0.5, "v") == []


def test_segments_are_stored_exactly() -> None:
    predicted = [Segment("0002-M", 3, 5, 90, 1 / 3), Segment("0003-L", 1, 0, 4, 0.5)]
    truths = [Segment("0002-M", 2, -4, 80)]
    assert unpack_segments(pack_segments(predicted, truths)) == (predicted, truths)
    assert unpack_segments(pack_segments([], [])) == ([], [])
