"""An encoder as a file that other programmes run, held against the encoder on real samples.

"safetensors" are its tensors, for `skelpipe.load_encoder`. "onnx" is the graph from rows of the
view to their features, "features" (batch, D), of any batch; T is that of the recipe's view.

SLiM takes "coordinates" (batch, T, J, 3) of a body in metres; a sample's features are the mean over
its bodies. `PreparedSet.batches` with ``frames`` and ``centre`` makes them. PCM3 takes "channels"
(batch, T, C) of all bodies, of joints, bones or motion as `views.modality.channels` has them: joint
by joint, in it x, y, z, in them the body. Metadata is the same in both files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from skelpipe.api.encoders import FeatureEncoder, load_encoder, metadata, save_encoder
from skelpipe.errors import UserError
from skelpipe.files import into_place, new_name
from skelpipe.stream.source import Batch

Form = Literal["onnx", "safetensors"]

TOLERANCE = 1e-4
"""Largest difference between ONNX's features and torch's that passes, in the largest feature."""
_OPSET = 17  # the first with layer normalisation


@dataclass(frozen=True)
class Parity:
    """How a file's features compare with the encoder's.

    Attributes:
        rows: Of the view, that were compared.
        difference: The largest.
        largest: The largest feature.
        allowed: The largest difference that passes.
    """

    rows: int
    difference: float
    largest: float
    allowed: float


def export(
    encoder: FeatureEncoder, batch: Batch, file: Path, form: Form, *, replace: bool = False
) -> Parity:
    """Write an encoder's file and run it on real samples.

    Args:
        encoder: Of `load_encoder`, on the CPU.
        batch: Samples that are run through both.
        file: What to write; it stands there only if it gives the encoder's features.
        form: What to write it as; its name must end so.
        replace: Whether a file that exists is replaced.

    Raises:
        UserError: Another suffix, a file that exists, an extra that is not installed; features that
            differ by more than `TOLERANCE` (ONNX) or at all (safetensors), or not finite ones.
    """
    if file.suffix.lower() != f".{form}":
        raise UserError(
            f"the file is to be {form}", file=file, expected=f"a name that ends in .{form}"
        )
    if file.exists() and not replace:
        raise UserError("the file exists already", file=file, remedy="--force replaces it")
    if form == "onnx":
        _check_installed()
    x, _ = encoder.see(batch)
    # Of one row too: a graph may have kept the batch that it was traced with.
    batches = [rows for rows in (x[:1], x[1:]) if len(rows)]
    expected = torch.cat([_features(encoder, rows) for rows in batches])
    file.parent.mkdir(parents=True, exist_ok=True)
    new = new_name(file)
    try:
        if form == "onnx":
            _write_onnx(encoder, x, new)
            features = _onnx_features(new)
        else:
            save_encoder(encoder, new)
            features = partial(_features, load_encoder(new))
        found = torch.cat([features(rows) for rows in batches])
        largest = float(expected.abs().max())
        allowed = TOLERANCE * largest if form == "onnx" else 0.0
        parity = Parity(len(x), float((found - expected).abs().max()), largest, allowed)
        if not parity.difference <= allowed:  # nor if it is no number
            raise UserError(
                "the file's features are not the encoder's; it is not kept",
                file=file,
                found=f"a difference of {parity.difference:.3g}, features up to {largest:.3g}",
                expected=f"{allowed:.3g} at most",
            )
        into_place(new, file)
    finally:
        new.unlink(missing_ok=True)
    return parity


@torch.no_grad()
def _features(encoder: FeatureEncoder, x: Tensor) -> Tensor:
    return encoder.encode(x).float()


class _Rows(nn.Module):
    """From rows of the view to features: the graph that is exported."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.whole = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.whole.encode(x)


def _write_onnx(encoder: FeatureEncoder, x: Tensor, file: Path) -> None:
    import onnx

    taken = "coordinates" if x.dim() == 4 else "channels"
    with warnings.catch_warnings():
        # This exporter makes a GRU one node, in a second; its successor, for which it gives its
        # warning, unrolls each over all frames. Of its other warnings, that shapes might have been
        # taken as constant, the comparison on other batches is the judge.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Rows(encoder).eval(),
            (x[:2],),
            file,
            input_names=[taken],
            output_names=["features"],
            dynamic_axes={taken: {0: "batch"}, "features": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    model = onnx.load(file)
    onnx.helper.set_model_props(model, metadata(encoder))
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _onnx_features(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()

    def features(x: Tensor) -> Tensor:
        (found,) = session.run(None, {taken.name: x.numpy()})
        return torch.from_numpy(found)

    return features


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            "export to ONNX needs packages that are not installed",
            found=error,
            remedy="pip install 'skelpipe[onnx]'",
        ) from error
