from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import CPU, tiny_pcm3_recipe, tiny_recipe, write_set
from runs import write_run
from torch import Tensor

import skelpipe
from skelpipe import export as module
from skelpipe.api.encoders import FeatureEncoder
from skelpipe.errors import UserError
from skelpipe.export import TOLERANCE, export
from skelpipe.protocols.features import Kind
from skelpipe.stream.source import Batch, Resident, select

RECIPES = {
    "slim": tiny_recipe(),
    "pcm3": tiny_pcm3_recipe(),
    "pcm3-both": tiny_pcm3_recipe("encoder.direction=both"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    for pipeline in ("ctrgcn", "agcn"):
        write_set(root / pipeline, train=4, test=2, pipeline=pipeline)
    for name, recipe in RECIPES.items():
        write_run(root / name, recipe, root / recipe.pipeline)
    return root


def asked(root: Path, name: str, kind: Kind | None = None) -> tuple[FeatureEncoder, Batch]:
    data = root / RECIPES[name].pipeline
    batch = Resident(data, select(data, "all"), CPU).take(torch.arange(6))
    return skelpipe.load_encoder(root / name, kind=kind), batch


def run_onnx(file: Path, x: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(["features"], {session.get_inputs()[0].name: x.numpy()})
    assert isinstance(found, np.ndarray)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "taken"),
    [
        ("slim", "patch", ["coordinates", "batch", 16, 25, 3]),
        ("slim", "both", ["coordinates", "batch", 16, 25, 3]),
        ("pcm3", "last", ["channels", "batch", 16, 150]),
        ("pcm3-both", "last", ["channels", "batch", 16, 150]),
    ],
)
def test_onnx_gives_the_features_of_any_batch(
    root: Path, tmp_path: Path, name: str, kind: Kind, taken: list[str | int]
) -> None:
    encoder, batch = asked(root, name, kind)
    x, _ = encoder.see(batch)
    wanted = encoder.encode(x)
    assert wanted.std(0).min() > 1e-4
    file = tmp_path / "encoder.onnx"
    parity = export(encoder, batch, file, "onnx")
    assert parity.rows == len(x)
    assert 0 < parity.difference <= parity.allowed == TOLERANCE * parity.largest
    assert parity.largest == pytest.approx(float(wanted.abs().max()))
    for size in (1, 2, 5, len(x)):
        found = run_onnx(file, x[:size])
        assert np.abs(found - wanted[:size].numpy()).max() <= parity.allowed
    graph = onnx.load(file)
    (entry,), (result,) = graph.graph.input, graph.graph.output
    assert [entry.name, *dims(entry)] == taken
    assert [result.name, *dims(result)] == ["features", "batch", wanted.shape[1]]
    told = {row.key: row.value for row in graph.metadata_props}
    assert (told["run"], told["network"], told["kind"]) == (name, "student", kind)
    assert json.loads(told["input"]) == taken[1:]
    assert json.loads(told["output"]) == ["batch", wanted.shape[1]]
    assert json.loads(told["recipe"])["name"] == RECIPES[name].name
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def dims(value: Any) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_safetensors_give_them_to_the_bit(root: Path, tmp_path: Path) -> None:
    encoder, batch = asked(root, "slim", "class")
    file = tmp_path / "encoder.safetensors"
    parity = export(encoder, batch, file, "safetensors")
    assert parity.difference == parity.allowed == 0
    again = skelpipe.load_encoder(file)
    assert again.kind == "class"
    x, _ = encoder.see(batch)
    assert torch.equal(again.encode(x), encoder.encode(x))


@pytest.mark.parametrize("off", [2 * TOLERANCE, np.nan])
def test_a_file_that_is_not_the_encoder_is_not_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    encoder, batch = asked(root, "pcm3")
    faithful = module._write_onnx

    def unfaithful(encoder: FeatureEncoder, x: Tensor, file: Path) -> None:
        faithful(encoder, x, file)
        graph = onnx.load(file)
        (result,) = graph.graph.output
        last = next(node for node in graph.graph.node if result.name in node.output)
        last.output[list(last.output).index(result.name)] = "before"
        shift = onnx.helper.make_tensor("off", onnx.TensorProto.FLOAT, [], [off])
        graph.graph.initializer.append(shift)
        graph.graph.node.append(onnx.helper.make_node("Add", ["before", "off"], [result.name]))
        onnx.save(graph, file)

    monkeypatch.setattr(module, "_write_onnx", unfaithful)
    file = tmp_path / "encoder.onnx"
    with pytest.raises(UserError, match="not the encoder's"):
        export(encoder, batch, file, "onnx")
    assert list(tmp_path.iterdir()) == []
    file.write_text("mine")
    with pytest.raises(UserError, match="not the encoder's"):
        export(encoder, batch, file, "onnx", replace=True)
    assert file.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_exported_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, batch = asked(root, "slim")
    with pytest.raises(UserError, match=r"ends in \.onnx"):
        export(encoder, batch, tmp_path / "encoder.safetensors", "onnx")
    file = tmp_path / "encoder.onnx"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(encoder, batch, file, "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'skelpipe\[onnx\]'"):
        export(encoder, batch, file, "onnx", replace=True)
    assert file.read_text() == "mine"
