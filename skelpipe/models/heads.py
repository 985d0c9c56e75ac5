"""SLiM's prediction heads (Sec. 3.1, Appendix 0.A), in the form of DINOv2's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrototypeHead(nn.Module):
    """Three-layer MLP to a unit bottleneck vector, compared with K unit prototypes.

    Linear D -> hidden, GELU, hidden -> hidden, GELU, hidden -> bottleneck, L2 norm. Prototypes are
    a weight-normalised bias-free layer whose gain stays 1, so logits lie in [-1, 1].

    Args:
        dim: D, the encoder's features.
        hidden, bottleneck, prototypes: The paper has 2048, 256 and 65,536.
        init_std: Of the initial weights; DINOv2 has 0.02, about 1 / sqrt(2048).
    """

    def __init__(
        self, dim: int, *, hidden: int, bottleneck: int, prototypes: int, init_std: float
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=init_std)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Bottleneck vectors of unit length, shape (N, bottleneck), float32 at least."""
        out_NP: Tensor = self.mlp(x_ND)
        return F.normalize(out_NP if out_NP.dtype == torch.float64 else out_NP.float(), dim=-1)

    def directions(self) -> Tensor:
        """The prototypes, each of unit length, shape (K, bottleneck)."""
        return F.normalize(self.prototypes, dim=-1)


class Projector(nn.Module):
    """PCM3's projector."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Embeddings of unit length."""
        out: Tensor = self.mlp(x_ND)
        return F.normalize(out if out.dtype == torch.float64 else out.float(), dim=-1)
