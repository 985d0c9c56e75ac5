"""Operations as torch counts them, against formulas and what is published."""

from __future__ import annotations

import pytest
import typer
from skelpipe.cli.bench import bench as command
from typer.testing import CliRunner

from skelpipe.bench.flops import (
    Flop,
    blocks_alone,
    forward,
    load_published,
    mae_decoder,
    mae_encoder,
    notes,
    slim_encoder,
    table_1,
    visible_tokens,
)
from skelpipe.config import load_recipe
from skelpipe.costs.slim import block_macs, patch_macs

SLIM = load_recipe("slim")
DIM = 256


def macs(tokens: int, layers: int) -> int:
    """Of blocks: projections and MLP of every token, scores and sums of every pair."""
    return layers * (tokens * 12 * DIM**2 + 2 * tokens**2 * DIM)


def gflops(flop: tuple[Flop, Flop]) -> tuple[str, str]:
    """Products of one and of two bodies, as printed."""
    one, two = flop
    return f"{one.products / 1e9:.2f}", f"{two.products / 1e9:.2f}"


@pytest.mark.parametrize(("tokens", "layers"), [(1, 1), (74, 8), (750, 3), (205, 2), (31, 5)])
def test_counts_equal_the_formula(tokens: int, layers: int) -> None:
    one, two = blocks_alone(tokens, layers)
    assert one.products == 2 * macs(tokens, layers)
    assert two.products == 2 * one.products
    assert two.everything == 2 * one.everything > two.products


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("encoder.dim=96", "encoder.heads=4", "encoder.layers=3"),
        ("encoder.mlp_ratio=2.7", "encoder.registers=0", "encoder.layers=2"),
        ("encoder.patch_frames=4", "encoder.layers=1"),
    ],
)
def test_slim_equals_the_formula(changes: tuple[str, ...]) -> None:
    recipe = load_recipe("slim", changes)
    for frames in (8, 64):
        one, two = slim_encoder(recipe, frames)
        expected = 2 * (block_macs(recipe, frames, 25) + patch_macs(recipe, frames, 25))
        assert (one.products, two.products) == (expected, 2 * expected)


def test_what_is_known_of_masked_autoencoders() -> None:
    assert visible_tokens(750) == 74
    assert f"{blocks_alone(750, 8)[0].products / 2e9:.3f}" == "7.023"
    assert f"{blocks_alone(74, 8)[0].products / 2e9:.3f}" == "0.488"
    assert gflops(blocks_alone(750, 8)) == ("14.05", "28.09")
    assert gflops(mae_encoder(30, 25, 74)) == ("0.98", "1.96")
    assert gflops(mae_decoder(750, 74, 5))[1] == "17.59"
    assert gflops(mae_decoder(750, 74, 3))[1] == "10.56"


def test_what_is_known_of_slim() -> None:
    assert gflops(slim_encoder(SLIM, 64)) == ("2.93", "5.85")
    assert gflops(blocks_alone(205, 8)) == ("2.92", "5.85")
    assert f"{blocks_alone(205, 8)[0].products / 2e9:.3f}" == "1.462"
    assert gflops(blocks_alone(200, 8)) == ("2.84", "5.69")
    parts = {part.what: part.gmac for part in forward(SLIM)}
    encoder = sum(gmac for what, gmac in parts.items() if what.startswith("encoder"))
    patch = sum(gmac for what, gmac in parts.items() if what.startswith("patch heads"))
    classes = sum(gmac for what, gmac in parts.items() if what.startswith("class heads"))
    assert (f"{encoder:.1f}", f"{patch:.1f}", f"{classes:.2f}") == ("10.9", "12.3", "0.35")
    of_locals = parts["encoder, student's locals"]
    assert f"{of_locals:.2f}" == "5.03"


def test_every_operation_is_counted_once() -> None:
    tokens, layers, bodies, heads = 750, 8, 2, 8
    cells = tokens * DIM
    per_layer = {
        "biases": 9 * cells,
        "softmax": heads * tokens**2,
        "scale": heads * tokens**2,
        "gelu": 4 * cells,
        "residual": 2 * cells,
        "norms": 2 * 5 * cells,
    }
    patch = 2 * tokens * 12 * DIM + cells  # with its bias
    embeddings = cells  # of joint and step, summed once and then added to every body's tokens
    one = 2 * macs(tokens, layers) + layers * sum(per_layer.values()) + 5 * cells
    assert mae_encoder(30, 25, tokens)[1].everything == bodies * (one + patch + cells) + embeddings


def test_published_figures_come_out_as_counted() -> None:
    """Two bodies and everything: Table 1's encoders; its decoder without what stands around it."""
    for cost in table_1(load_published(), SLIM):
        if cost.method == "SLiM" or cost.flop is None:
            continue
        counted = cost.flop[1].everything / 1e9
        if "decoder" in cost.what:
            assert counted == pytest.approx(cost.published, rel=2e-3)
        else:
            assert f"{counted:.2f}" == f"{cost.published:.2f}"
    assert f"{blocks_alone(750, 5)[1].everything / 1e9:.2f}" == "17.70"


def test_the_table_has_all_rows_and_quotes_what_is_not_counted() -> None:
    published = load_published()
    rows = table_1(published, SLIM)
    assert list(dict.fromkeys(row.method for row in rows)) == [
        "SkeletonMAE", "MAMP", "S-JEPA", "GFP", "SLiM",
    ]  # fmt: skip
    quoted = [(row.method, row.published) for row in rows if row.flop is None]
    assert quoted == [("S-JEPA", 28.32), ("GFP", 1.57), ("GFP", 0.64)]
    # What the paper derives from its own figures.
    slim, mamp = published.methods[-1], published.methods[1]
    assert f"{mamp.inference / slim.inference:.2f}" == f"{published.reduction:.2f}" == "7.89"
    assert f"{mamp.inference / mamp.training.encoder:.2f}" == "14.38"


def test_notes_say_what_is_like_for_like() -> None:
    text = " ".join(notes(load_published(), SLIM))
    for words in ("4.80 times", "7.89 times", "average of 1.22 real bodies", "105 GFLOP"):
        assert words in text


def test_the_command_prints_it() -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, ["flops"])
    assert result.exit_code == 0, result.output
    for words in ("SkeletonMAE", "28.32", "17.70", "5.85", "2 bodies", "280 masked tokens", "4.80"):
        assert words in result.output
