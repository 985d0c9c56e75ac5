"""The roofline, and the peaks that it stands on."""

from __future__ import annotations

import pytest
import torch

from skelpipe.costs.roofline import Peaks, Work, measure_peaks


def test_the_roof_is_the_slower_of_both() -> None:
    piece = Work("", flop=6.0, bytes=8.0)
    assert piece.least_seconds(Peaks(flop_per_s=2, bytes_per_s=4)) == 3
    assert piece.least_seconds(Peaks(flop_per_s=6, bytes_per_s=4)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_peaks_of_a_cpu(dtype: torch.dtype) -> None:
    peaks = measure_peaks(torch.device("cpu"), dtype)
    # Anything that runs this does: more than one product of 128 a second, memory beyond a disk's.
    assert peaks.flop_per_s > 1e8
    assert peaks.bytes_per_s > 1e8
