"""PCM³'s encoder: whole-sequence calls against the released code's frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelpipe.models.gru import SkeletonGRU, released_names
from skelpipe.roofline import DTYPES, measure_peaks

from .measure import Row, interleave, rate, rows
from .stream import threads_of


def gru(
    clips: int = 16,
    *,
    frames: int = 64,
    channels: int = 150,
    hidden: int = 1024,
    layers: int = 3,
    device: torch.device,
    bf16: bool = False,
    threads: int = 2,
    rounds: int = 3,
) -> list[Row]:
    """Encode clips and go back to the gradients of all weights, in both ways.

    The plain way gives a bidirectional `nn.GRU` one frame at a time and carries its hidden states;
    both have the same weights and the same input normalisation, and all frames' features have a
    gradient. The floor is the rate that the device's measured peak of large matrix products allows
    for the GRUs' products, two of them back for each one forward. (A GPU's cuDNN may compute
    float32 in TF32, whose peak is higher than the one measured.)

    Args:
        clips: N.
        frames, channels, hidden, layers: The paper has 64, 150, 1024 and 3.
        device: Where.
        bf16: Under autocast to bf16.
        threads: Of torch, on a CPU.
        rounds: Measurements of each way.
    """
    least = 1.0 if device.type == "cuda" else 0.0  # a GPU does it in milliseconds
    generator = torch.Generator().manual_seed(0)
    x_NTC = torch.randn(clips, frames, channels, generator=generator).to(device)
    encoder = SkeletonGRU(channels, hidden=hidden, layers=layers, direction="forward").to(device)
    plain = FrameByFrame(encoder).to(device)
    dtype = DTYPES["bf16" if bf16 else "float32"]
    with threads_of(threads):
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            difference = float((plain(x_NTC).float() - encoder(x_NTC).float()).abs().max())
        rates = interleave(
            {
                "frame by frame": lambda: rate(lambda: _run(plain, x_NTC, bf16), least),
                f"whole sequences, {2 * layers} calls": lambda: rate(
                    lambda: _run(encoder, x_NTC, bf16), least
                ),
            },
            rounds,
        )
        peak = measure_peaks(device, dtype).flop_per_s
    floor = peak / (6 * frames * sum(p.numel() for p in plain.gru.parameters() if p.dim() == 2))
    measured = rows(rates, "clips/s")
    return [
        *measured,
        Row("floor: the products at the peak", floor, "clips/s", floor / measured[0].value),
        Row("largest difference of a feature", difference, "", None),
    ]


class FrameByFrame(nn.Module):
    """PCM³'s encoder in the form of its released code, with the weights of ours."""

    def __init__(self, encoder: SkeletonGRU) -> None:
        super().__init__()
        layers = len(encoder.first)
        self.input_norm = encoder.input_norm
        self.gru = nn.GRU(
            encoder.input_norm.num_features,
            encoder.hidden,
            layers,
            batch_first=True,
            bidirectional=True,
        )
        ours = encoder.state_dict()
        self.gru.load_state_dict(
            {released: ours[name] for released, name in released_names(layers).items()}
        )

    def forward(self, x_NTC: Tensor) -> Tensor:
        """Features of all frames, shape (N, T, 2H)."""
        state, features = None, []
        for frame_N1C in self.input_norm(x_NTC).split(1, dim=1):
            feature_N1D, state = self.gru(frame_N1C, state)
            features.append(feature_N1D)
        return torch.cat(features, 1)


def _run(way: nn.Module, x_NTC: Tensor, bf16: bool) -> int:
    way.zero_grad()
    with torch.autocast(x_NTC.device.type, dtype=torch.bfloat16, enabled=bf16):
        feature_NTD: Tensor = way(x_NTC)
    feature_NTD.float().square().mean().backward()
    gradient = next(way.parameters()).grad
    float(gradient[0]) if gradient is not None else None  # waits for the device
    return len(x_NTC)
