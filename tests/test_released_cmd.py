from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import KINECT, batch_of, recording, write_set
from released_files import HIDDEN, Branch, Burglar, skelpipe
from torch import Tensor, nn

from skelpipe.checkpoint import Run, read_run
from skelpipe.config import PCM3Recipe
from skelpipe.errors import UserError
from skelpipe.protocols.features import encode_by, viewer
from skelpipe.protocols.question import load_encoder
from skelpipe.released import import_cmd

SUFFIXES = {"joint": "", "motion": "_motion", "bone": "_bone"}


class Released(nn.Module):
    """The authors' network by the names of its weights; all is drawn, statistics too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for suffix in SUFFIXES.values():
            self.add_module(f"encoder_q{suffix}", Branch())
            self.add_module(f"encoder_k{suffix}", Branch())
            self.register_buffer(f"queue{suffix}", torch.randn(7, 12))
        self.register_buffer("queue_ptr", torch.tensor([8]))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3)
        self.eval()


def save(file: Path, state: Any, **beside: Any) -> Path:
    torch.save({"epoch": 451, "arch": "gru", "state_dict": state, "optimizer": {}, **beside}, file)
    return file


def test_features_of_each_stream_are_those_of_the_stepped_network(tmp_path: Path) -> None:
    model = Released()
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    import_cmd(save(tmp_path / "cmd.pth.tar", state), tmp_path / "cmd")
    for stream, suffix in SUFFIXES.items():
        run = read_run(tmp_path / "cmd" / stream)
        recipe = run.recipe
        assert isinstance(recipe, PCM3Recipe)
        assert recipe.name == f"cmd{'' if stream == 'joint' else '-' + stream}"
        assert (recipe.views.modality, recipe.views.frames) == (stream, 64)
        assert (run.data["probe"], run.data["imported"]["epoch"]) == ("linear-cmd", 451)
        batch = batch_of([recording(1, 40), recording(2, 90, 2)])
        clip_NTC, _ = viewer(recipe, KINECT, 0.95)(batch)
        for network, role in (("student", "q"), ("teacher", "k")):
            encode = encode_by(load_encoder(run, KINECT, network).eval(), "last")
            branch = model.get_submodule(f"encoder_{role}{suffix}")
            with torch.no_grad():
                wanted = branch(clip_NTC)[:, -1]
                torch.testing.assert_close(encode(clip_NTC), wanted, atol=1e-5, rtol=0)


def test_one_stream_is_a_run_of_its_own_and_needs_no_other(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in Released().state_dict().items() if "_motion" not in key}
    file = save(tmp_path / "cmd.pth.tar", state)
    assert "place: encoder_q_motion" in refusal(file)
    (run,) = import_cmd(file, tmp_path / "bone", "bone").values()
    assert isinstance(run, Run)
    assert read_run(tmp_path / "bone").recipe.name == "cmd-bone"
    with pytest.raises(UserError, match="a run stands here already"):
        import_cmd(file, tmp_path / "bone", "bone")
    with pytest.raises(UserError, match="a run stands here already"):
        import_cmd(file, tmp_path / "bone")


def test_an_imported_cmd_is_evaluated_by_its_probe(tmp_path: Path) -> None:
    file, out = save(tmp_path / "cmd.pth.tar", Released().state_dict()), tmp_path / "runs"
    result = skelpipe("import", "cmd", file, "--out", out)
    assert result.exit_code == 0, result.output
    for stream in SUFFIXES:
        said = f"next: skelpipe evaluate --protocol linear-cmd --run {out / stream}"
        assert said in result.output
    data = write_set(tmp_path / "agcn", train=4, test=3, pipeline="agcn")
    words = ("--set", "epochs=1", "--set", "drops=[]", "--data", data)
    for stream in ("joint", "bone"):
        result = skelpipe("evaluate", "--run", out / stream, *words)
        assert result.exit_code == 0, result.output
        assert f"protocol linear-cmd: what run {stream} was published with" in result.output
        assert "P22" not in result.output  # a schedule of PCM3's: it was trained by others
    result = skelpipe("evaluate", "--fuse", out / "joint", out / "bone")
    assert result.exit_code == 0, result.output
    assert "protocol linear-cmd: the first run's own" in result.output


def refusal(file: Path, **options: Any) -> str:
    out = file.parent / "refused"
    with pytest.raises(UserError) as error:
        import_cmd(file, out, **options)
    assert not out.exists()
    return str(error.value)


Change = Callable[[dict[str, Tensor]], Any]


def put(key: str, value: Tensor) -> Change:
    return lambda state: state.update({key: value})


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        (put("encoder_q_depth.fc.0.bias", torch.zeros(1)), "encoder_q_depth.fc.0.bias",
         "an unknown key"),
        (put("encoder_q.projector.0.bias", torch.zeros(1)), "encoder_q.projector.0.bias",
         "an unknown key"),
        (put("linear.0.bias", torch.zeros(1)), "linear.0.bias", "an unknown key"),
        (lambda s: s.pop("encoder_k_bone.fc.2.bias"), "encoder_k_bone.fc.2.bias", "nothing"),
        (lambda s: s.pop("encoder_q_bone.encoder.gru.weight_hh_l0"),
         "encoder_q_bone.encoder.gru.weight_hh_l0", "nothing"),
        (put("encoder_k_motion.fc.0.weight", torch.zeros(3, 4)), "encoder_k_motion.fc.0.weight",
         f"({2 * HIDDEN}, {2 * HIDDEN})"),
        (put("encoder_q.input_norm.running_var", torch.full((150,), -1.0)),
         "encoder_q.input_norm.running_var", "negative numbers"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: Change, key: str, said: str
) -> None:
    state = dict(Released().state_dict())
    change(state)
    message = refusal(save(tmp_path / "bad.pth.tar", state))
    assert f"place: {key}\n" in message
    assert said in message


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("encoder.layers=2", "place: encoder_q.encoder.gru.weight_ih_l2"),
        ("encoder.layers=4", "place: encoder.first.3."),
        ("encoder.hidden=5", "place: encoder_q.encoder.gru.weight_ih_l0"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_named(
    tmp_path: Path, change: str, place: str
) -> None:
    file = save(tmp_path / "cmd.pth.tar", Released().state_dict())
    assert place in refusal(file, changes=[change])


def test_a_pickle_that_asks_for_more_is_not_run(tmp_path: Path) -> None:
    trace, state = tmp_path / "trace", Released().state_dict()
    message = refusal(save(tmp_path / "evil.pth.tar", state, optimizer=Burglar(trace)))
    assert "it was not run" in message
    assert not trace.exists()
