"""An encoder with a head that names actions, to be trained as one.

Letters: B rows of a view (SLiM: bodies; PCM3: samples), S steps, J joints, D features, N samples, C
classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skelpipe.models.encoder import Encoder
from skelpipe.models.norm import BatchNorm
from skelpipe.models.vit import SkeletonViT, Tokens, drop_path
from skelpipe.protocols.features import Kind, pool_tokens, width_of
from skelpipe.protocols.settings import Finetune
from skelpipe.random import fold, uniform


class Recogniser(nn.Module):
    """An encoder and a head.

    Head "mamp" on SLiM: dropout of every number of the patch tokens, their mean over time, joints
    side by side, the mean over a sample's bodies (those that the view has), then a layer, batch
    norm over all ranks, ReLU, a layer. PCM3's feature is that of the last frame, which has seen all
    frames, joints and bodies: after dropout it goes to the layers as it is. Their weights start as
    the encoders' layers do, by Xavier's uniform law, biases as 0 (our reading).

    Head "linear": dropout, mean over bodies, one layer, on the method's features. It starts as a
    probe's, from N(0, 0.01), bias 0.

    Drop-path is of SLiM's residual branches; PCM3's GRU has none.

    Args:
        encoder: Of the method.
        kind: Which features, for head "linear" on SLiM.
        joints: J.
        classes: C.
        protocol: Gives the head, and what is dropped in training.
    """

    def __init__(
        self, encoder: Encoder, kind: Kind, joints: int, classes: int, protocol: Finetune
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.kind = kind
        self.joint_by_joint = protocol.head == "mamp" and isinstance(encoder, SkeletonViT)
        self.dropout, self.drop_path = protocol.dropout, protocol.drop_path
        dim = width_of(encoder, kind)
        dim = dim * joints if self.joint_by_joint else dim
        if protocol.head == "linear":
            self.head = nn.Sequential(nn.Linear(dim, classes))
        else:
            hidden = protocol.hidden
            self.head = nn.Sequential(
                nn.Linear(dim, hidden), BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, classes)
            )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                if protocol.head == "linear":
                    nn.init.normal_(layer.weight, std=0.01)
                else:
                    nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, sample_B: Tensor, samples: int, key_N: Tensor | None = None
    ) -> Tensor:
        """Logits of samples.

        Args:
            x: Rows of a view, shape (B, ...).
            sample_B: The sample of each row, ascending.
            samples: N.
            key_N: Keys of what is dropped; nothing is if None. A row's draws are of its sample's
                key and its number among the sample's rows, so that it does not matter which rows
                are computed together.

        Returns:
            Shape (N, C). A sample without a row, as no body stands in its view, is learnt from as
            one whose features are 0; in evaluation its logits are NaN.
        """
        number_B = torch.arange(len(sample_B), device=sample_B.device)
        number_B -= torch.searchsorted(sample_B, sample_B)
        key_B = None if key_N is None else fold(key_N[sample_B], number_B)
        feature_BD = self._features(x.to(next(self.encoder.parameters()).dtype), key_B)
        total_ND = feature_BD.new_zeros(samples, feature_BD.shape[1])
        total_ND = total_ND.index_add(0, sample_B, feature_BD)
        count_N = torch.bincount(sample_B, minlength=samples).clamp(min=int(self.training))
        logit_NC: Tensor = self.head(total_ND / count_N[:, None])
        return logit_NC

    def _features(self, x: Tensor, key_B: Tensor | None) -> Tensor:
        if not isinstance(self.encoder, SkeletonViT):
            return self._drop(self.encoder.pool(self.encoder(x)), key_B)
        keep_LKB = None
        if key_B is not None and self.drop_path:
            keep_LKB = drop_path(key_B, len(self.encoder.blocks), self.drop_path, x.dtype)
        tokens: Tokens = self.encoder(x, keep_LKB=keep_LKB)
        if not self.joint_by_joint:
            return self._drop(pool_tokens(tokens, self.kind), key_B)
        return self._drop(tokens.patch_BSJD, key_B).mean(1).flatten(1)

    def _drop(self, x: Tensor, key_B: Tensor | None) -> Tensor:
        """Zero numbers with the dropout's probability; what is kept is divided by the other's."""
        if key_B is None or not self.dropout:
            return x
        draw = uniform(key_B, "head dropout", math.prod(x.shape[1:])).view(x.shape)
        return x * ((draw >= self.dropout).to(x.dtype) / (1 - self.dropout))


def layer_of(name: str, layers: int) -> int:
    """Which layer of a `Recogniser` a parameter is of, counted from the input.

    0: embeddings, or the GRU's input norm. i + 1: block or GRU layer i. layers + 1: the head, and
    the transformer's last norm with it.
    """
    part, _, rest = name.partition(".")
    if part == "head" or rest.startswith("norm."):
        return layers + 1
    stack, _, rest = rest.partition(".")
    return int(rest.partition(".")[0]) + 1 if stack in ("blocks", "first", "second") else 0


def layers_of(encoder: Encoder) -> int:
    """Blocks, or layers of a GRU."""
    return len(encoder.blocks if isinstance(encoder, SkeletonViT) else encoder.first)
