"""What stands between an encoder and the losses: SLiM's heads and PCM³'s projector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrototypeHead(nn.Module):
    """Three-layer MLP to a unit bottleneck vector, compared with K unit prototypes.

    SLiM's (Sec. 3.1, Appendix 0.A), in the form of DINOv2's.
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
        return _unit(out_NP)

    def directions(self) -> Tensor:
        """The prototypes, each of unit length, shape (K, bottleneck)."""
        return F.normalize(self.prototypes, dim=-1)


class Projector(nn.Module):
    """Embedding projector h of PCM³ (Secs. 3.1, 4.1): two-layer MLP to a unit vector.

    Linear D -> D, ReLU, D -> out, L2 norm. Initial weights are the released code's:
    Xavier-uniform those of the last layer, PyTorch's all others.

    Args:
        dim: D, the encoder's features.
        out: Of the embedding; the paper has 128.
    """

    def __init__(self, dim: int, *, out: int) -> None:
        super().__init__()
        last = nn.Linear(dim, out)
        nn.init.xavier_uniform_(last.weight)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Embeddings of unit length, shape (N, out), float32 at least."""
        return _unit(self.mlp(x_ND))


def _unit(x_ND: Tensor) -> Tensor:
    return F.normalize(x_ND if x_ND.dtype == torch.float64 else x_ND.float(), dim=-1)
