"""The skeleton vision transformer of SLiM (Sec. 3.1): patches of frames by joints, RoPE.

Letters: B views, T frames, J joints, S = T / P_T steps, N = S * J patch tokens, D features; L
blocks, K = 2 branches of each, attention and MLP.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe.errors import UserError
from skelpipe.random import uniform


class Tokens(NamedTuple):
    """What the encoder gives, after its last norm: (B, D) and (B, S, J, D).

    Without a class token that one is (B, 0).
    """

    class_BD: Tensor
    patch_BSJD: Tensor


class SkeletonViT(nn.Module):
    """Encoder g of SLiM; by other settings MAMP's, of which released weights exist.

    A projected patch is replaced by the mask token before the joint embedding is added, so that a
    masked token still knows its joint (S17; the paper's Eqs. 1 and 3 taken literally erase it).
    Sequence: [class, registers, patches]; RoPE turns queries and keys of patches only, by the
    patch's temporal step, which restarts at 0 in every view (S16). MLP: GELU, plain (S26).

    Args:
        joints: J.
        layers, dim, heads, mlp_ratio: Of the transformer; the paper has 8, 256, 8 and (read) 4.
        patch_frames: P_T; the paper has 8. Patches span one joint (P_J = 1).
        registers: Register tokens; the paper has 4.
        rope_base: Base of the rotary frequencies; not in the paper.
        class_token: MAMP has none.
        positions: "rotary", or "learned" (MAMP): no RoPE, and a vector of each step is added with
            the joint embedding; the first step of every view has the first one.
        norm_eps: Of all layer norms; not in the paper.
        steps: With learned positions, most steps of a view.
    """

    def __init__(
        self,
        joints: int,
        *,
        layers: int,
        dim: int,
        heads: int,
        mlp_ratio: float,
        patch_frames: int,
        registers: int,
        rope_base: float,
        class_token: bool = True,
        positions: Literal["rotary", "learned"] = "rotary",
        norm_eps: float = 1e-6,
        steps: int = 0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"encoder.dim {dim} must be a multiple of encoder.heads {heads}")
        if positions == "rotary" and dim % (2 * heads):
            raise UserError(
                f"encoder.dim {dim} must be a multiple of twice encoder.heads",
                found=f"{heads} heads",
                expected="an even number of features a head, which RoPE turns in pairs",
            )
        self.patch_frames = patch_frames
        self.class_token = class_token
        self.patch = nn.Linear(patch_frames * 3, dim)
        self.joint_embedding = nn.Parameter(torch.empty(joints, dim))
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.prefix = nn.Parameter(torch.empty(class_token + registers, dim))
        self.step_embedding: nn.Parameter | None = None
        if positions == "learned":
            self.step_embedding = nn.Parameter(torch.empty(steps, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, norm_eps) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        half = dim // heads // 2
        self.frequencies: Tensor
        self.register_buffer(
            "frequencies", rope_base ** (-torch.arange(half) / half), persistent=False
        )
        self.apply(_initialise)
        nn.init.trunc_normal_(self.joint_embedding, std=0.02)
        nn.init.normal_(self.prefix, std=1e-6)
        if self.step_embedding is not None:
            nn.init.trunc_normal_(self.step_embedding, std=0.02)

    def forward(
        self, x_BTJC: Tensor, mask_BSJ: Tensor | None = None, keep_LKB: Tensor | None = None
    ) -> Tokens:
        """Encode views.

        Args:
            x_BTJC: Coordinates in metres; T must be a multiple of the patch's frames.
            mask_BSJ: True where a patch is replaced by the mask token.
            keep_LKB: What each view's branches are multiplied with, of `drop_path`.

        Raises:
            UserError: More steps than have learned positions.
        """
        batch, frames, joints, _ = x_BTJC.shape
        steps = frames // self.patch_frames
        patches = x_BTJC.unflatten(1, (steps, self.patch_frames)).permute(0, 1, 3, 2, 4).flatten(3)
        z_BSJD = self.patch(patches)
        if mask_BSJ is not None:
            z_BSJD = torch.where(mask_BSJ[..., None], self.mask_token.to(z_BSJD.dtype), z_BSJD)
        z_BSJD = z_BSJD + self.joint_embedding
        if self.step_embedding is not None:
            z_BSJD = z_BSJD + self._positions(steps)
        prefix = self.prefix.to(z_BSJD.dtype).expand(batch, -1, -1)
        z_BND = torch.cat([prefix, z_BSJD.flatten(1, 2)], 1)
        turn = self._rotary(steps, joints) if self.step_embedding is None else (None, None)
        for number, block in enumerate(self.blocks):
            z_BND = block(z_BND, *turn, None if keep_LKB is None else keep_LKB[number])
        z_BND = self.norm(z_BND)
        patch_BSJD = z_BND[:, len(self.prefix) :].unflatten(1, (steps, joints))
        class_BD = z_BND[:, 0] if self.class_token else z_BND.new_zeros(batch, 0)
        return Tokens(class_BD, patch_BSJD)

    def _positions(self, steps: int) -> Tensor:
        """Learned vectors of the first steps, shape (S, 1, D)."""
        assert self.step_embedding is not None
        if steps > len(self.step_embedding):
            raise UserError(
                "a view has more steps than the encoder has learned positions",
                found=f"{steps} steps of {self.patch_frames} frames",
                expected=f"at most {len(self.step_embedding)}",
            )
        return self.step_embedding[:steps, None]

    def _rotary(self, steps: int, joints: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every token, shape (tokens, head features): prefix tokens stand."""
        step = torch.arange(steps, device=self.frequencies.device).repeat_interleave(joints)
        angle = step[:, None] * self.frequencies
        angle = F.pad(angle, (0, 0, len(self.prefix), 0))
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


class Block(nn.Module):
    """Pre-norm transformer block (Eq. 2)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        hidden = int(dim * mlp_ratio)
        self.norm_1 = nn.LayerNorm(dim, eps=norm_eps)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(
        self,
        z_BND: Tensor,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        keep_KB: Tensor | None = None,
    ) -> Tensor:
        qkv = self.qkv(self.norm_1(z_BND)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v)
        z_BND = z_BND + _scaled(self.out(attended.transpose(1, 2).flatten(2)), keep_KB, 0)
        out: Tensor = z_BND + _scaled(self.mlp(self.norm_2(z_BND)), keep_KB, 1)
        return out


def _scaled(branch_BND: Tensor, keep_KB: Tensor | None, number: int) -> Tensor:
    return branch_BND if keep_KB is None else branch_BND * keep_KB[number, :, None, None]


def drop_path(key_B: Tensor, layers: int, last: float, dtype: torch.dtype) -> Tensor:
    """Stochastic depth (Huang et al. 2016): which branches a view leaves out in a step.

    Block i of L leaves one out with probability ``last`` * i / (L - 1), so the first block none;
    what is kept is divided by the probability of that. Both branches of a block are drawn by
    themselves.

    Args:
        key_B: Keys of the draws.
        layers: L.
        last: Of the last block, below 1.
        dtype: Of the result.

    Returns:
        Shape (L, K, B).
    """
    rate_L = torch.linspace(0, last, layers, dtype=torch.float64, device=key_B.device)[:, None]
    draw_LKB = uniform(key_B, "drop path", 2 * layers).T.unflatten(0, (layers, 2))
    kept_LKB = (draw_LKB >= rate_L[..., None]).to(dtype)
    scale_LKB: Tensor = kept_LKB / (1 - rate_L[..., None]).to(dtype)
    return scale_LKB


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn feature i and i + half together by the token's angle (RoPE, Su et al. 2024)."""
    first, second = x.chunk(2, -1)
    turned = x * cos + torch.cat([-second, first], -1) * sin
    return turned.to(x.dtype)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
