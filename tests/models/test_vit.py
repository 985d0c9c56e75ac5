from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skelpipe.errors import UserError
from skelpipe.models.vit import Block, SkeletonViT, drop_path, rotate
from skelpipe.random import fold

SMALL: dict[str, Any] = {
    "layers": 2,
    "dim": 32,
    "heads": 4,
    "mlp_ratio": 2.0,
    "patch_frames": 8,
    "registers": 4,
    "rope_base": 100.0,
}


def small(**changes: Any) -> SkeletonViT:
    torch.manual_seed(0)
    encoder = SkeletonViT(25, **(SMALL | changes))
    nn.init.normal_(encoder.mask_token, std=0.5)
    nn.init.normal_(encoder.prefix, std=0.5)
    return encoder


def views(frames: int, count: int = 2) -> Tensor:
    return torch.randn(count, frames, 25, 3, generator=torch.Generator().manual_seed(frames))


def torch_layer(block: Block, dim: int, heads: int, hidden: int) -> nn.TransformerEncoderLayer:
    """PyTorch's pre-norm layer with a block's weights."""
    layer = nn.TransformerEncoderLayer(
        dim, heads, hidden, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
        norm_first=True,
    )  # fmt: skip
    first, _, last = block.mlp
    pairs = [
        (layer.self_attn.in_proj_weight, block.qkv.weight),
        (layer.self_attn.in_proj_bias, block.qkv.bias),
        (layer.self_attn.out_proj.weight, block.out.weight),
        (layer.self_attn.out_proj.bias, block.out.bias),
        (layer.norm1.weight, block.norm_1.weight),
        (layer.norm1.bias, block.norm_1.bias),
        (layer.norm2.weight, block.norm_2.weight),
        (layer.norm2.bias, block.norm_2.bias),
        (layer.linear1.weight, first.weight),
        (layer.linear1.bias, first.bias),
        (layer.linear2.weight, last.weight),
        (layer.linear2.bias, last.bias),
    ]
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
    return layer


def test_a_block_without_rope_equals_torchs_layer() -> None:
    torch.manual_seed(1)
    block = Block(32, 4, 2.0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    z = torch.randn(3, 11, 32)
    still = torch.ones(11, 8), torch.zeros(11, 8)
    wanted = torch_layer(block, 32, 4, 64)(z)
    assert torch.allclose(block(z, *still), wanted, atol=1e-5)


def test_rope_equals_complex_multiplication() -> None:
    encoder = small()
    cos, sin = encoder._rotary(3, 25)
    x = torch.randn(2, 4, len(cos), 8)
    step = torch.arange(3).repeat_interleave(25)
    angle = torch.cat([torch.zeros(5, 4), step[:, None] * 100.0 ** (-torch.arange(4) / 4)])
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle)
    wanted = torch.cat([turned.real, turned.imag], -1)
    assert torch.allclose(rotate(x, cos, sin), wanted, atol=1e-5)


def test_rope_sees_only_the_distance_in_time() -> None:
    cos, sin = small()._rotary(8, 1)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(first: int, second: int) -> float:
        at = [5 + first, 5 + second]
        q = rotate(query, cos[at[:1]], sin[at[:1]])
        k = rotate(key, cos[at[1:]], sin[at[1:]])
        return float((q * k).sum())

    assert score(0, 3) == pytest.approx(score(4, 7), abs=1e-5)
    assert score(0, 3) != pytest.approx(score(0, 4), abs=1e-3)


def test_class_and_registers_are_not_turned_and_joints_of_a_step_turn_alike() -> None:
    cos, sin = small()._rotary(2, 25)
    assert cos.shape == (5 + 50, 8)
    assert bool((cos[:5] == 1).all())
    assert bool((sin[:5] == 0).all())
    assert bool((cos[5:30] == cos[5]).all())
    assert bool((cos[30:] == cos[30]).all())
    assert not torch.equal(cos[5], cos[30])


@pytest.mark.parametrize("frames", [8, 16, 32, 64])
def test_views_of_8_to_64_frames_are_taken(frames: int) -> None:
    tokens = small()(views(frames))
    assert tokens.class_BD.shape == (2, 32)
    assert tokens.patch_BSJD.shape == (2, frames // 8, 25, 32)


def test_tokens_are_joints_by_patches_of_frames() -> None:
    encoder = small(layers=1)
    with torch.no_grad():  # attention and MLP add nothing: tokens see themselves alone
        for layer in (encoder.blocks[0].out, encoder.blocks[0].mlp[2]):  # type: ignore[union-attr,index]
            layer.weight.zero_()
            layer.bias.zero_()
    x = views(32)
    patch = encoder(x).patch_BSJD
    changed = x.clone()
    changed[:, 8:16, 7] += 1
    differs = (encoder(changed).patch_BSJD != patch).any(-1)
    assert differs.nonzero().tolist() == [[0, 1, 7], [1, 1, 7]]
    values = x[0, 8:16, 7].flatten()  # frame by frame, x, y, z
    wanted = encoder.norm(encoder.patch(values) + encoder.joint_embedding[7])
    assert torch.allclose(patch[0, 1, 7], wanted, atol=1e-5)


def test_a_masked_patch_is_unseen_but_keeps_its_joint() -> None:
    encoder = small()
    x, mask = views(16), torch.zeros(2, 2, 25, dtype=torch.bool)
    mask[:, 0, :7] = True
    changed = x.clone()
    changed[:, :8, :7] = 9
    tokens, same = encoder(x, mask), encoder(changed, mask)
    assert torch.equal(tokens.class_BD, same.class_BD)
    assert torch.equal(tokens.patch_BSJD, same.patch_BSJD)
    masked = tokens.patch_BSJD[0, 0, :7]
    assert torch.pdist(masked).min().item() > 1e-3
    with torch.no_grad():
        encoder.joint_embedding.zero_()
    blind = encoder(x, mask).patch_BSJD[0, 0, :7]
    assert torch.pdist(blind).max().item() < 1e-5


def test_each_view_is_encoded_by_itself() -> None:
    encoder, x = small(), views(16, 3)
    together = encoder(x)
    alone = encoder(x[1:2])
    assert torch.allclose(together.class_BD[1], alone.class_BD[0], atol=1e-5)
    assert torch.allclose(together.patch_BSJD[1], alone.patch_BSJD[0], atol=1e-5)


def test_a_branch_that_is_dropped_is_not_there() -> None:
    encoder, x = small(layers=3), views(16, 4)
    ones = torch.ones(3, 2, 4)
    for one, other in zip(encoder(x), encoder(x, keep_LKB=ones), strict=True):
        assert torch.equal(one, other)
    keep_LKB = ones.clone()
    keep_LKB[1, :, 0] = 0  # the first view goes round block 1
    keep_LKB[0, 0, 1] = 0  # the second round block 0's attention,
    keep_LKB[2, 1, 2] = 2  # the third through block 2's MLP twice
    found = encoder(x, keep_LKB=keep_LKB).patch_BSJD
    round_1, round_attention, twice = small(layers=3), small(layers=3), small(layers=3)
    del round_1.blocks[1]
    nn.init.zeros_(round_attention.blocks[0].out.weight)
    with torch.no_grad():
        twice.blocks[2].mlp[2].weight *= 2
        twice.blocks[2].mlp[2].bias *= 2
    networks = (round_1, round_attention, twice, small(layers=3))
    for number, network in enumerate(networks):
        torch.testing.assert_close(found[number], network(x).patch_BSJD[number])


def test_branches_are_dropped_as_often_as_said() -> None:
    key_B = fold(3, torch.arange(4000))
    keep_LKB = drop_path(key_B, 4, 0.3, torch.float64)
    for layer, rate in enumerate((0, 0.1, 0.2, 0.3)):
        for branch in range(2):
            kept = keep_LKB[layer, branch] > 0
            assert set(keep_LKB[layer, branch][kept].tolist()) == {1 / (1 - rate)}
            assert (~kept).double().mean().item() == pytest.approx(rate, abs=0.03)
    assert not torch.equal(keep_LKB[3, 0], keep_LKB[3, 1])
    some = torch.tensor([7, 3, 99])
    assert torch.equal(drop_path(key_B[some], 4, 0.3, torch.float64), keep_LKB[..., some])
    assert bool((drop_path(key_B, 1, 0.3, torch.float32) == 1).all())


def test_order_in_time_matters() -> None:
    encoder = small()
    x = views(16)
    turned = torch.cat([x[:, 8:], x[:, :8]], 1)
    assert not torch.allclose(encoder(x).class_BD, encoder(turned).class_BD, atol=1e-4)


def test_the_papers_encoder_has_its_size() -> None:
    encoder = SkeletonViT(25, **(SMALL | {"layers": 8, "dim": 256, "heads": 8, "mlp_ratio": 4.0}))
    dim = 256
    block = 2 * 2 * dim + (3 * dim**2 + 3 * dim) + (dim**2 + dim) + (8 * dim**2 + 5 * dim)
    patch, joints, mask, prefix, norm = 24 * dim + dim, 25 * dim, dim, 5 * dim, 2 * dim
    wanted = 8 * block + patch + joints + mask + prefix + norm
    assert sum(parameter.numel() for parameter in encoder.parameters()) == wanted == 6_332_928


def test_initial_weights() -> None:
    torch.manual_seed(0)
    encoder = SkeletonViT(25, **SMALL)
    assert not bool(encoder.mask_token.any())
    assert encoder.prefix.abs().max().item() < 1e-5
    assert bool(encoder.prefix.any())
    assert encoder.joint_embedding.std().item() == pytest.approx(0.02, rel=0.2)
    qkv = encoder.blocks[0].qkv  # type: ignore[union-attr]
    assert qkv.weight.abs().max().item() <= (6 / (32 + 96)) ** 0.5
    assert not bool(qkv.bias.any())
    assert "frequencies" not in encoder.state_dict()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.dim 20"):
        SkeletonViT(25, **(SMALL | {"dim": 20}))


MAMP = {"class_token": False, "registers": 0, "positions": "learned", "steps": 4}


def test_a_transformer_of_mamps_form_equals_torchs_layers() -> None:
    encoder = small(**MAMP, norm_eps=1e-3)
    assert sorted(name for name in encoder.state_dict() if "blocks" not in name) == [
        "joint_embedding", "mask_token", "norm.bias", "norm.weight", "patch.bias", "patch.weight",
        "prefix", "step_embedding",
    ]  # fmt: skip
    x = views(16)
    tokens = encoder(x)
    assert tokens.class_BD.shape == (2, 0)
    assert encoder.step_embedding is not None
    patches = x.unflatten(1, (2, 8)).movedim(2, 3).flatten(3)
    z = encoder.patch(patches) + encoder.joint_embedding + encoder.step_embedding[:2, None]
    z = z.flatten(1, 2)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        layer = torch_layer(block, 32, 4, 64)
        layer.norm1.eps = layer.norm2.eps = 1e-3
        z = layer(z)
    wanted = nn.functional.layer_norm(z, (32,), encoder.norm.weight, encoder.norm.bias, 1e-3)
    assert torch.allclose(tokens.patch_BSJD.flatten(1, 2), wanted, atol=1e-5)


def test_learned_positions_begin_anew_in_every_view_and_end() -> None:
    encoder = small(**MAMP)
    one = encoder(views(8)).patch_BSJD
    with torch.no_grad():
        assert encoder.step_embedding is not None
        encoder.step_embedding[1:] += 1
    assert torch.equal(encoder(views(8)).patch_BSJD, one)
    with pytest.raises(UserError, match="more steps than the encoder has learned"):
        encoder(views(40))


def test_what_the_default_draws_does_not_depend_on_other_forms() -> None:
    """Initial weights of runs that exist: the same numbers under the same names."""
    torch.manual_seed(3)
    encoder = SkeletonViT(25, **SMALL)
    torch.manual_seed(3)
    explicit = SkeletonViT(
        25, **SMALL, class_token=True, positions="rotary", norm_eps=1e-6, steps=9
    )
    state = encoder.state_dict()
    assert explicit.state_dict().keys() == state.keys()
    assert all(torch.equal(explicit.state_dict()[name], state[name]) for name in state)
    assert "step_embedding" not in state
