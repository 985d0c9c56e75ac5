from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CPU, KINECT, batch_of, mixed_samples, write_set
from released_files import Burglar, skelpipe
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe.api.encoders import load_encoder as load_from
from skelpipe.checkpoint import Run, has_network, read_run
from skelpipe.config import SLiMRecipe
from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import ask, evaluate
from skelpipe.protocols.features import encode_by, mean_over_bodies, viewer
from skelpipe.protocols.question import load_encoder
from skelpipe.protocols.settings import load_protocol
from skelpipe.released import import_mamp
from skelpipe.stream.source import Source

DIM, HEADS, STEPS, PATCH, LAYERS = 16, 8, 30, 4, 2


def state(steps: int = STEPS) -> dict[str, Tensor]:
    """A checkpoint's "model" with all numbers drawn."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    found = {
        "mask_token": draw(1, 1, 1, DIM),
        "temp_embed": draw(1, steps, 1, DIM),
        "pos_embed": draw(1, 1, 25, DIM),
        "decoder_temp_embed": draw(1, steps, 1, DIM),
        "joints_embed.proj.weight": draw(DIM, 3, PATCH, 1),
        "joints_embed.proj.bias": draw(DIM),
    }
    for layer in range(LAYERS):
        for name, out, into in (
            ("attn.qkv", 3 * DIM, DIM),
            ("attn.proj", DIM, DIM),
            ("mlp.fc1", 4 * DIM, DIM),
            ("mlp.fc2", DIM, 4 * DIM),
        ):
            found[f"blocks.{layer}.{name}.weight"] = draw(out, into)
            found[f"blocks.{layer}.{name}.bias"] = draw(out)
        for name in ("norm1", "norm2"):
            found[f"blocks.{layer}.{name}.weight"] = 1 + draw(DIM)
            found[f"blocks.{layer}.{name}.bias"] = draw(DIM)
    found |= {"norm.weight": 1 + draw(DIM), "norm.bias": draw(DIM)}
    return found | {"decoder_blocks.0.norm1.weight": draw(DIM), "decoder_pred.bias": draw(12)}


def save(file: Path, model: Any, **beside: Any) -> Path:
    rest = {"optimizer": {}, "epoch": 399, "scaler": None, "args": Namespace(lr=1e-3, gpus=[0])}
    torch.save({"model": model, **rest, **beside}, file)
    return file


def plain_features(model: dict[str, Tensor], people_NMTVC: Tensor) -> Tensor:
    """MAMP's features, written as its paper and code are described; persons may be all zero."""
    N, M, T, V, _ = people_NMTVC.shape
    x = people_NMTVC.flatten(0, 1).permute(0, 3, 1, 2)  # as an image: xyz, frames, joints
    z = F.conv2d(
        x, model["joints_embed.proj.weight"], model["joints_embed.proj.bias"], stride=(PATCH, 1)
    )
    z = z.permute(0, 2, 3, 1) + model["temp_embed"] + model["pos_embed"]
    z = z.reshape(N * M, T // PATCH * V, DIM)

    def norm(z: Tensor, name: str) -> Tensor:
        return F.layer_norm(z, (DIM,), model[f"{name}.weight"], model[f"{name}.bias"], 1e-5)

    def linear(z: Tensor, name: str) -> Tensor:
        return F.linear(z, model[f"{name}.weight"], model[f"{name}.bias"])

    for layer in range(LAYERS):
        at = f"blocks.{layer}"
        q, k, v = linear(norm(z, f"{at}.norm1"), f"{at}.attn.qkv").chunk(3, -1)
        size = DIM // HEADS
        heads = []
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            weights = (q[..., own] @ k[..., own].mT / size**0.5).softmax(-1)
            heads.append(weights @ v[..., own])
        z = z + linear(torch.cat(heads, -1), f"{at}.attn.proj")
        z = z + linear(F.gelu(linear(norm(z, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
    return norm(z, "norm").view(N, M, T // PATCH, V, DIM).mean((1, 2, 3))


def loaded_clip(poses_MTJC: np.ndarray[Any, Any], second: str = "zeros") -> Tensor:
    """What MAMP's loader makes of a sample for its test: (2, 120, 25, 3)."""
    people = np.zeros((2, *poses_MTJC.shape[1:]), dtype=np.float32)
    people[: len(poses_MTJC)] = poses_MTJC
    if second == "copy" and len(poses_MTJC) == 1:
        people[1] = poses_MTJC[0]
    frames = people.shape[1]
    trim = frames * 5 // 200
    cut = torch.from_numpy(people[:, trim : frames - trim]).flatten(2)
    return F.interpolate(cut.mT, size=120, mode="linear").mT.unflatten(2, (25, 3))


def imported(folder: Path, *changes: str) -> Run:
    import_mamp(save(folder / "mamp.pth", state()), folder / "run", changes)
    return read_run(folder / "run")


def stored(source: Source) -> list[np.ndarray[Any, Any]]:
    """Every sample of a source as it is stored."""
    found = []
    for place in range(len(source)):
        batch = source.take(torch.tensor([place]))
        start, bodies, frames = (
            int(numbers[0]) for numbers in (batch.start_N, batch.bodies_N, batch.frames_N)
        )
        rows = batch.flat_RJC[start : start + bodies * frames]
        found.append(rows.view(bodies, frames, 25, 3).numpy())
    return found


@pytest.mark.parametrize("second", ["zeros", "copy"])
def test_features_through_the_evaluation_are_mamps(tmp_path: Path, second: str) -> None:
    run = imported(tmp_path, f"views.absent_body={second}")
    recipe = run.recipe
    assert isinstance(recipe, SLiMRecipe)
    assert (recipe.name, recipe.pipeline, recipe.views.frames) == ("mamp", "ctrgcn", 120)
    assert not has_network(run.checkpoint(), "teacher")
    data = write_set(tmp_path / "toy", train=3, test=3)
    question = ask(load_protocol("linear"), recipe, data, subject="run", device=CPU, run=run)
    networks = question.networks()
    assert list(networks) == ["student"]
    (found,) = question.centre_features(question.test, networks, 0.95)
    clips = torch.stack([loaded_clip(poses, second) for poses in stored(question.test)])
    assert len({bool(clip[1].any()) for clip in clips}) == (2 if second == "zeros" else 1)
    torch.testing.assert_close(found, plain_features(state(), clips), atol=1e-5, rtol=0)


def test_absent_frames_and_bodies_are_zeros_that_count(tmp_path: Path) -> None:
    """On samples in which bodies come and go; `mixed_samples` has them."""
    run = imported(tmp_path)
    encode = encode_by(load_encoder(run, KINECT).eval(), "patch")
    samples = [mixed_samples()[place] for place in (0, 2, 5)]
    x, sample_B = viewer(run.recipe, KINECT, 0.95)(batch_of(samples))
    with torch.no_grad():
        found = mean_over_bodies(encode(x), sample_B, len(samples))
    clips = torch.stack([loaded_clip(poses) for poses in samples])
    torch.testing.assert_close(found, plain_features(state(), clips), atol=1e-5, rtol=0)


def test_an_imported_mamp_is_evaluated_by_its_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path / "checkpoint-399.pth", state(steps=3))
    run = tmp_path / "runs" / "mamp"
    result = skelpipe("import", "mamp", file, "--out", run, "--set", "encoder.norm_eps=1e-6")
    assert result.exit_code == 0, result.output
    for said in ("epoch 399", "2 layers, dim 16, 12 frames in patches of 4", "epsilon 1e-06"):
        assert said in result.output
    assert f"next: skelpipe evaluate --protocol linear --run {run}" in result.output
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "sets"))
    write_set(tmp_path / "sets" / "toy" / "ctrgcn" / "half", train=4, test=3)
    words = ("--run", run, "--set", "epochs=1")
    for floor in ((), ("--random-init",)):
        result = skelpipe("evaluate", *words, *floor)
        assert result.exit_code == 0, result.output
        assert "protocol linear: what run mamp was published with" in result.output
    records = [
        json.loads((run / "results" / f"linear{floor}.json").read_text())
        for floor in ("", "-random-init")
    ]
    for record in records:
        assert record["readings"] == read_run(run).data["readings"]
        assert not any("tube" in reading for reading in record["readings"])
    result = skelpipe("evaluate", "--protocol", "knn", "--run", run, "--features", "class")
    assert "no class token" in str(result.exception)
    result = skelpipe("pretrain", "--resume", "--out", run)
    assert "an imported run cannot be continued" in str(result.exception)
    result = skelpipe("import", "mamp", file, "--out", tmp_path / "x", "--stream", "bone")
    assert "weights of mamp are of joints" in str(result.exception)


def test_an_imported_mamp_serves_every_task_and_tells_its_own_readings(tmp_path: Path) -> None:
    file = save(tmp_path / "mamp.pth", state(steps=3))
    run = import_mamp(file, tmp_path / "run", ["views.absent_body=copy"])
    assert run.recipe.encoder.class_token is False  # type: ignore[union-attr]
    assert load_from(run.folder).topology == KINECT
    with pytest.raises(UserError, match="no class token"):
        load_from(run.folder, kind="class")
    data = write_set(tmp_path / "toy", train=4, test=3)
    for name, changes in (
        ("finetune", ("epochs=1", "batch=4", "hidden=4")),
        ("motion", ("steps=1", "batch=2", "observed=8", "predicted=3", "joint_hidden=4")),
    ):
        found = evaluate(
            load_protocol(name, changes), run.recipe, data, subject="run", device=CPU, run=run
        )
        assert any("absent body: copy" in reading for reading in found.record["readings"])
        assert not any("tube" in reading for reading in found.record["readings"])


def refusal(file: Path, *changes: str) -> str:
    out = file.parent / "refused"
    with pytest.raises(UserError) as error:
        import_mamp(file, out, changes)
    assert not out.exists()
    return str(error.value)


Change = Callable[[dict[str, Tensor]], Any]


def put(key: str, value: Any) -> Change:
    return lambda model: model.update({key: value})


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        (put("cls_token", torch.zeros(1, 1, DIM)), "cls_token", "an unknown key"),
        (put("blocks.7.norm1.bias", torch.zeros(DIM)), "blocks.7.norm1.bias", "an unknown key"),
        (put("blocks.0.attn.rope", torch.zeros(1)), "blocks.0.attn.rope", "an unknown key"),
        (put("encoder_q.x", torch.zeros(1)), "encoder_q.x", "an unknown key"),
        (lambda m: m.pop("norm.bias"), "norm.bias", "nothing"),
        (lambda m: m.pop("blocks.1.mlp.fc2.bias"), "blocks.1.mlp.fc2.bias", "nothing"),
        (lambda m: m.pop("temp_embed"), "temp_embed", "nothing"),
        (put("joints_embed.proj.weight", torch.zeros(DIM, 3 * PATCH)), "joints_embed.proj.weight",
         "four dimensions"),
        (put("joints_embed.proj.weight", torch.zeros(DIM, 3, PATCH, 2)),
         "joints_embed.proj.weight", "expected: (16, 3, 4, 1)"),
        (put("temp_embed", torch.zeros(1, STEPS, 2, DIM)), "temp_embed", "(1, 30, 1, 16)"),
        (put("pos_embed", torch.zeros(1, 1, 17, DIM)), "pos_embed", "(1, 1, 25, 16)"),
        (put("blocks.1.attn.qkv.weight", torch.zeros(DIM, DIM)), "blocks.1.attn.qkv.weight",
         "(48, 16)"),
        (put("norm.bias", torch.full((DIM,), torch.nan)), "norm.bias", "16 numbers that are not"),
        (put("norm.bias", torch.zeros(DIM, dtype=torch.int64)), "norm.bias", "torch.int64"),
        (put("norm.bias", Namespace(numel=0)), "norm.bias", "found: Namespace"),
        (put("norm.bias", {"a": torch.zeros(DIM)}), "norm.bias", "found: dict"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: Change, key: str, said: str
) -> None:
    model = state()
    change(model)
    message = refusal(save(tmp_path / "bad.pth", model))
    assert f"place: {key}\n" in message
    assert said in message


def test_settings_that_do_not_fit_the_tensors_are_named(tmp_path: Path) -> None:
    file = save(tmp_path / "mamp.pth", state())
    assert "no multiple of encoder.heads 5" in refusal(file, "encoder.heads=5")
    assert "place: blocks.1.norm1.weight" in refusal(file, "encoder.layers=1")
    assert "place: blocks.2." in refusal(file, "encoder.layers=3")
    assert "no class token" in refusal(file, "encoder.registers=4")
    assert "place: temp_embed" in refusal(file, "views.frames=64")
    assert "has no setting 'encoder.head'" in refusal(file, "encoder.head=8")


def test_entries_beside_the_model(tmp_path: Path) -> None:
    model = state()
    assert "place: ema" in refusal(save(tmp_path / "a.pth", model, ema={}))
    assert "place: epoch" in refusal(save(tmp_path / "b.pth", model, epoch="last"))
    assert "found: Namespace" in refusal(save(tmp_path / "c.pth", Namespace(**model)))
    torch.save(Namespace(model=model), tmp_path / "d.pth")
    assert "found: Namespace" in refusal(tmp_path / "d.pth")
    torch.save(model, tmp_path / "bare.pth")
    assert import_mamp(tmp_path / "bare.pth", tmp_path / "bare").data["imported"]["epoch"] is None


def test_what_stands_beside_the_model_is_not_kept(tmp_path: Path) -> None:
    """Nested, odd and as large as it likes."""
    nested: Any = Namespace()
    for _ in range(100):
        nested = Namespace(inside=[nested], __reduce__=3, __setstate__=4, keys=5)
    circle = Namespace()
    circle.itself = circle
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(1).expand(10**9, 10**3), ("a", 1): circle}},
        "param_groups": [nested],
    }
    file = save(
        tmp_path / "odd.pth", state(), optimizer=optimizer, args=circle, scaler={"x": [nested]}
    )
    run = import_mamp(file, tmp_path / "run")
    names = {path.name for path in run.checkpoint().iterdir()}
    assert names == {"complete", "state.json", "student.safetensors"}
    kept = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    assert kept < 100_000


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("where", ["args", "inside args", "optimizer"])
def test_a_namespace_lets_nothing_else_in(tmp_path: Path, where: str, old: bool) -> None:
    trace = tmp_path / "trace"
    evil: Any = Burglar(trace)
    beside = {
        "args": {"args": evil},
        "inside args": {"args": Namespace(lr=1, hook=Namespace(call=evil))},
        "optimizer": {"optimizer": {"state": [evil]}},
    }[where]
    content = {"model": state(), **beside}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old)
    message = refusal(tmp_path / "evil.pth")
    assert "pathlib" in message or "not run" in message
    assert not trace.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert trace.exists()  # so it was armed


def test_types_that_a_training_script_might_keep_are_not_let_in(tmp_path: Path) -> None:
    for odd in (Path("data"), nn.Linear(1, 1), np.float64(3)):
        message = refusal(save(tmp_path / "odd.pth", state(), args=Namespace(odd=odd)))
        assert "it was not run" in message
    file = save(tmp_path / "whole.pth", state())
    import_mamp(file, tmp_path / "run")
    with pytest.raises(Exception, match="Namespace"):  # what was let in is let in no longer
        torch.load(file, weights_only=True)
