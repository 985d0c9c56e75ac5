"""What tells the action of a window's middle frame: an encoder and a linear layer on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skelpipe.config import PCM3Recipe, Recipe
from skelpipe.errors import UserError
from skelpipe.models.encoder import Encoder
from skelpipe.models.vit import SkeletonViT
from skelpipe.protocols.features import Kind, encode_by, width_of
from skelpipe.protocols.settings import Detection
from skelpipe.skeleton import Topology
from skelpipe.views.modality import channels
from skelpipe.views.windows import Windows, recentred


class FrameClassifier(nn.Module):
    """Logits of a window's middle frame: none of the actions, then each of them.

    PCM3's encoder sees all bodies' channels in the recipe's stream, and what it gives at the last
    frame stands for the window. SLiM's sees each body that is present in the window by itself, and
    the mean over them stands for it; a window in which nobody is seen has the feature 0.

    Args:
        encoder: Becomes a part of this.
        recipe: Gives bodies and stream, or what stands for an absent body.
        topology: The set's.
        kind: Of SLiM's features.
        protocol: Says what the origin is, and whether the encoder is trained.
        outputs: Actions and one.
        seed: Of the layer's initial weights.

    Raises:
        UserError: The window does not divide into the encoder's patches, or it has no such
            features.
    """

    def __init__(
        self,
        encoder: Encoder,
        recipe: Recipe,
        topology: Topology,
        kind: Kind,
        protocol: Detection,
        *,
        outputs: int,
        seed: int,
    ) -> None:
        super().__init__()
        if isinstance(encoder, SkeletonViT) and protocol.window % encoder.patch_frames:
            patch = encoder.patch_frames
            raise UserError(
                f"a window of {protocol.window} frames does not divide into the encoder's patches",
                found=f"patches of {patch} frames (encoder.patch_frames)",
                remedy=f"--set window={-(-protocol.window // patch) * patch}",
            )
        self.encoder = encoder
        self.recipe, self.topology = recipe, topology
        self.centred = protocol.origin == "window"
        self.trains_encoder = protocol.encoder == "trained"
        self._encode = encode_by(encoder, kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = nn.Linear(width_of(encoder, kind), outputs)
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        self.head = head.to(next(encoder.parameters()).device)

    def slots(self, most: int) -> int:
        """Bodies of a window, where a recording has at most so many."""
        if isinstance(self.recipe, PCM3Recipe):
            return self.recipe.views.bodies
        return most if self.recipe.views.absent_body == "skip" else max(most, 2)

    def forward(self, windows: Windows) -> Tensor:
        """Logits, shape (N, outputs), for windows of `slots` bodies."""
        if self.centred:
            windows = recentred(windows, self.topology.centre)
        # Weights that stand still need no gradients; statistics of an input norm follow the data.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_encoder):
            feature_ND = self._features(windows)
        logits_NK: Tensor = self.head(feature_ND)
        return logits_NK

    def _features(self, windows: Windows) -> Tensor:
        if isinstance(self.recipe, PCM3Recipe):
            return self._encode(
                channels(windows.x_NMWJC, self.recipe.views.modality, self.topology)
            )
        x_NMWJC, stands_NM = windows.x_NMWJC, windows.present_NMW.any(-1)
        lone_N = windows.bodies_N < 2
        absent_body = self.recipe.views.absent_body
        if absent_body == "copy":
            x_NMWJC, stands_NM = x_NMWJC.clone(), stands_NM.clone()
            x_NMWJC[lone_N, 1], stands_NM[lone_N, 1] = x_NMWJC[lone_N, 0], stands_NM[lone_N, 0]
        elif absent_body == "zeros":
            stands_NM = stands_NM.clone()
            stands_NM[lone_N, 1] = True
        feature_BD = self._encode(x_NMWJC[stands_NM])
        sum_ND = feature_BD.new_zeros(len(windows), feature_BD.shape[1])
        window_B = stands_NM.nonzero()[:, 0]
        return sum_ND.index_add(0, window_B, feature_BD) / stands_NM.sum(1, keepdim=True).clamp(1)
