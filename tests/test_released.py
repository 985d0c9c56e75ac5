from __future__ import annotations

import hashlib
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CPU, KINECT, batch_of, recording, tiny_recipe, write_set
from released_files import EMBEDDING, HIDDEN, Branch, Burglar, skelpipe
from torch import Tensor, nn
from torch.nn import functional as F

from skelpipe.checkpoint import Run, load_network, read_run
from skelpipe.config import PCM3Recipe
from skelpipe.errors import UserError
from skelpipe.manifest import load_topology
from skelpipe.methods import build_method
from skelpipe.methods.pcm3 import PCM3
from skelpipe.protocols.features import encode_by
from skelpipe.random import below
from skelpipe.released import import_pcm3
from skelpipe.train import start_run, train

DECODER, WIDTH, KEYS = 5, 2, 12


class Released(nn.Module):
    """The authors' network by the names of its weights; all is drawn, statistics too."""

    def __init__(self, *, prompts: bool = True) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = Branch(), Branch()
        self.linear = nn.Sequential(
            nn.Linear(2 * HIDDEN, DECODER),
            nn.BatchNorm1d(DECODER),
            nn.ReLU(),
            nn.Linear(DECODER, DECODER),
        )
        self.recons_decoder = nn.Module()
        self.recons_decoder.decoder = nn.GRU(DECODER, DECODER, 2, batch_first=True)
        self.recons_decoder.reconstruction = nn.Linear(DECODER, 150)
        if prompts:
            for name in ("cl", "mp"):
                self.register_parameter(f"{name}_prompt", nn.Parameter(torch.randn(1, 2 * WIDTH)))
            for name in ("base", "mask", "recons", "mix"):
                self.register_parameter(f"{name}_prompt", nn.Parameter(torch.randn(1, 1, 150)))
        self.register_buffer("queue", F.normalize(torch.randn(EMBEDDING, KEYS), dim=0))
        self.register_buffer("queue_ptr", torch.tensor([8]))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                for tensor in (module.weight.data, module.running_mean):
                    tensor.normal_()
                module.running_var.uniform_(0.2, 3)
                module.num_batches_tracked += 9
        self.eval()

    def decode(self, feature_NTD: Tensor) -> Tensor:
        x = self.linear(feature_NTD.flatten(0, 1)).unflatten(0, feature_NTD.shape[:2])
        return self.recons_decoder.reconstruction(self.recons_decoder.decoder(x)[0])


def network(seed: int = 0, *, prompts: bool = True) -> Released:
    torch.manual_seed(seed)
    return Released(prompts=prompts)


def save(file: Path, state: Any, **beside: Any) -> Path:
    torch.save({"epoch": 451, "arch": "pcm3", "state_dict": state, "optimizer": {}, **beside}, file)
    return file


def imported(folder: Path, model: Released, **options: Any) -> tuple[Run, PCM3]:
    run = import_pcm3(
        save(folder / "checkpoint.pth.tar", model.state_dict()), folder / "run", **options
    )
    return run, loaded(run)


def loaded(run: Run) -> PCM3:
    again = read_run(run.folder)
    assert again.recipe == run.recipe
    method = build_method(again.recipe, KINECT, seed=9)
    assert isinstance(method, PCM3)
    for name, network in (("student", method.student), ("teacher", method.teacher)):
        load_network(again.checkpoint(), name, network)
    return method.eval()


@pytest.mark.parametrize("form", ["wrapped", "bare", "module", "old"])
def test_features_are_those_of_the_stepped_network(tmp_path: Path, form: str) -> None:
    model, file = network(), tmp_path / "released.pth.tar"
    state = model.state_dict()
    if form == "module":
        state = OrderedDict((f"module.{key}", tensor) for key, tensor in state.items())
    if form in ("wrapped", "module"):
        save(file, state)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "bare")
    run = import_pcm3(file, tmp_path / "run")
    method = loaded(run)
    x = torch.randn(4, 9, 150)
    encode = {
        "student": encode_by(method.student.encoder, "last"),
        "teacher": encode_by(method.teacher.encoder, "last"),
    }
    with torch.no_grad():
        for name, branch in (("student", model.encoder_q), ("teacher", model.encoder_k)):
            torch.testing.assert_close(encode[name](x), branch(x)[:, -1], atol=1e-5, rtol=0)
    assert not torch.allclose(encode["student"](x), encode["teacher"](x), atol=0.01)
    assert run.data["imported"]["epoch"] == (451 if form in ("wrapped", "module") else None)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    state_json = json.loads((run.checkpoint() / "state.json").read_text())
    assert state_json["imported"]["sha256"] == run.data["imported"]["sha256"] == digest
    assert sorted(path.name for path in run.checkpoint().iterdir()) == [
        "complete", "state.json", "student.safetensors", "teacher.safetensors"
    ]  # fmt: skip


def test_the_recipe_has_the_sizes_of_the_weights(tmp_path: Path) -> None:
    run, method = imported(tmp_path, network())
    recipe = run.recipe
    assert isinstance(recipe, PCM3Recipe)
    assert (recipe.name, recipe.pipeline, recipe.views.modality) == (
        "pcm3-released", "agcn", "joint"
    )  # fmt: skip
    assert recipe.encoder.model_dump() == {"layers": 3, "hidden": HIDDEN, "direction": "forward"}
    assert recipe.decoder.model_dump() == {"layers": 2, "hidden": DECODER}
    assert recipe.prompts.model_dump() == {"domain": "before_bn", "task": True, "width": WIDTH}
    assert (recipe.loss.queue, recipe.loss.embedding) == (KEYS, EMBEDDING)
    assert (recipe.views.frames, recipe.loss.mask_weight) == (64, 40.0)
    assert int(method.teacher.queue.place) == 8


def test_the_whole_objective_is_the_released_one(tmp_path: Path) -> None:
    """Every released tensor takes part in it but the statistics' counters."""
    model = network()
    run, method = imported(tmp_path, model)
    assert isinstance(run.recipe, PCM3Recipe)
    settings = run.recipe.loss
    batch = batch_of([recording(1, 40), recording(2, 25, 2), recording(3, 90), recording(4, 12, 2)])
    views = method.views(batch)

    def prompted(feature: Tensor, prompt: Tensor, use: str) -> Tensor:
        start = int(below(batch.key, f"prompt window, {use}", 1, HIDDEN - WIDTH))
        feature = feature.clone()
        feature[..., start : start + WIDTH] += prompt[0, :WIDTH]
        feature[..., HIDDEN + start : HIDDEN + start + WIDTH] += prompt[0, WIDTH:]
        return feature

    def embed(branch: Branch, feature_NTD: Tensor, use: str) -> Tensor:
        return F.normalize(branch.fc(prompted(feature_NTD[:, -1], model.cl_prompt, use)), dim=1)

    told: dict[str, float] = {}

    def compare(view: str, query_NP: Tensor, key_NP: Tensor) -> None:
        near_N1, far_NK = (query_NP * key_NP).sum(1, keepdim=True), query_NP @ model.queue
        logits = torch.cat([near_N1, far_NK], 1) / settings.temperature
        told[view] = float(F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64)))
        teacher = (key_NP @ model.queue / settings.teacher_temperature).softmax(1)
        student = (far_NK / settings.student_temperature).log_softmax(1)
        told[f"kl_{view}"] = float(F.kl_div(student, teacher, reduction="batchmean"))

    with torch.no_grad():
        keys = embed(model.encoder_k, model.encoder_k(views.key_NTC + model.base_prompt), "key")
        share = views.share_N[:, None]
        mixed = F.normalize(keys * (1 - share) + keys[views.partner_N] * share, dim=1)
        feature = model.encoder_q(views.query_NTC + model.base_prompt)
        compare("intra", embed(model.encoder_q, feature, "intra"), keys)
        shown = views.clip_NTC.masked_fill(views.masked_NTC, 0)
        feature = model.encoder_q(shown + model.mask_prompt)
        compare("mask", embed(model.encoder_q, feature, "mask"), keys)
        predicted = model.decode(prompted(feature, model.mp_prompt, "prediction"))
        error = (predicted - views.clip_NTC)[views.masked_NTC].square().mean()
        filled = torch.where(views.masked_NTC, predicted, shown)
        feature = model.encoder_q(filled + model.recons_prompt)
        compare("predict", embed(model.encoder_q, feature, "predict"), keys)
        feature = model.encoder_q(views.mixed_NTC + model.mix_prompt)
        compare("inter", embed(model.encoder_q, feature, "inter"), mixed)

    ours = method.learn(batch, 0.0)
    assert float(ours["error"]) == pytest.approx(float(error), rel=1e-4)
    for name, value in told.items():
        assert float(ours[name]) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    # The new keys went over the oldest: from place 8 on, of twelve.
    torch.testing.assert_close(method.teacher.queue.keys_KP[8:], keys, atol=1e-5, rtol=0)
    torch.testing.assert_close(method.teacher.queue.keys_KP[:8], model.queue.T[:8])


@pytest.mark.parametrize("stream", ["joint", "bone", "motion"])
@pytest.mark.parametrize("prompts", [True, False])
def test_streams_and_their_prompts(tmp_path: Path, stream: Any, prompts: bool) -> None:
    model = network(prompts=prompts)
    run, method = imported(tmp_path, model, stream=stream)
    assert isinstance(run.recipe, PCM3Recipe)
    kept = prompts and stream == "joint"
    assert run.recipe.views.modality == stream
    assert run.recipe.prompts.domain == ("before_bn" if kept else "none")
    assert (method.student.domain_prompts is None) == (method.student.task_prompts is None) != kept
    word = "kept" if kept else "left out" if prompts else "absent"
    assert run.data["imported"]["prompts"] == word
    assert run.recipe.loss.kl_weight == (1.0 if stream == "joint" else 0.0)
    x = torch.randn(2, 5, 150)
    with torch.no_grad():
        torch.testing.assert_close(
            encode_by(method.student.encoder, "last")(x),
            model.encoder_q(x)[:, -1],
            atol=1e-5,
            rtol=0,
        )


def test_an_imported_run_is_evaluated_and_never_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = save(tmp_path / "released.pth.tar", network().state_dict()), tmp_path / "run"
    result = skelpipe("import", "pcm3", file, "--out", run)
    assert result.exit_code == 0, result.output
    for said in ("epoch 451", "hidden 6", "12 keys of 7", "before the input norm"):
        assert said in result.output
    assert f"next: skelpipe evaluate --protocol linear-pcm3 --run {run}" in result.output

    data = write_set(tmp_path / "sets" / "toy" / "agcn" / "half", pipeline="agcn")
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "sets"))
    records = []
    for words in (("--data", data), ()):  # without, the newest set of its pipeline
        result = skelpipe("evaluate", "--protocol", "knn", "--run", run, *words)
        assert result.exit_code == 0, result.output
        records.append(json.loads((run / "results" / "knn.json").read_text()))
        assert "before the input norm, as released" in result.output
    assert records[0] == records[1]
    assert [row["network"] for row in records[0]["results"]] == ["student", "teacher"]
    assert records[0]["recipe"] == "pcm3-released"
    words = ("--set", "epochs=1", "--set", "drops=[]", "--val-subjects", "1")
    result = skelpipe("evaluate", *words, "--run", run)  # by the probe it was published with
    assert result.exit_code == 0, result.output
    assert "protocol linear-pcm3: what run run was published with" in result.output
    assert (run / "results" / "linear-pcm3-val.json").is_file()

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words in ((), ("--data", data)):
        result = skelpipe("pretrain", "--resume", "--out", run, *words)
        assert "an imported run cannot be continued" in str(result.exception)
        assert "released.pth.tar" in str(result.exception)
    with pytest.raises(UserError, match="an imported run cannot be continued"):
        train(read_run(run), data, device=CPU)
    result = skelpipe("import", "pcm3", file, "--out", run)
    assert "a run stands here already" in str(result.exception)
    with pytest.raises(UserError, match="a run stands here already"):
        start_run(run, read_run(run).recipe, data, seed=0)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def refusal(file: Path, **options: Any) -> str:
    out = file.parent / "refused"
    with pytest.raises(UserError) as error:
        import_pcm3(file, out, **options)
    assert f"file: {file}" in str(error.value)
    assert not out.exists()
    return str(error.value)


Change = Callable[[dict[str, Tensor]], Any]


def put(key: str, value: Any) -> Change:
    return lambda state: state.update({key: value})


def reshaped(key: str, *shape: int) -> Change:
    return put(key, torch.zeros(*shape))


def bad_value(key: str, value: float) -> Change:
    def change(state: dict[str, Tensor]) -> None:
        state[key] = state[key].clone()
        state[key].view(-1)[-1] = value

    return change


REVERSE = "encoder_k.encoder.gru.bias_hh_l2_reverse"


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        (put("encoder_q.encoder.gru.extra", torch.zeros(1)), "encoder_q.encoder.gru.extra",
         "an unknown key"),
        (put("encoder_q.encoder.gru.weight_ih_l7", torch.zeros(1)),
         "encoder_q.encoder.gru.weight_ih_l7", "an unknown key"),
        (lambda s: s.pop(REVERSE), REVERSE, "nothing"),
        (lambda s: s.pop("queue"), "queue", "nothing"),
        (lambda s: s.pop("encoder_q.encoder.gru.weight_hh_l0"),
         "encoder_q.encoder.gru.weight_hh_l0", "nothing"),
        (lambda s: s.pop("mix_prompt"), "mix_prompt", "all six prompts or none"),
        (reshaped(REVERSE, 3 * HIDDEN + 1), REVERSE, f"expected: ({3 * HIDDEN},)"),
        (reshaped("encoder_q.encoder.gru.weight_hh_l0", 18), "encoder_q.encoder.gru.weight_hh_l0",
         "two dimensions"),
        (reshaped("encoder_q.input_norm.weight", 75), "encoder_q.input_norm.weight", "(150,)"),
        (reshaped("mask_prompt", 150), "mask_prompt", "(1, 1, 150)"),
        (reshaped("mp_prompt", 1, 6), "mp_prompt", "(1, 4)"),
        (reshaped("cl_prompt", 1, 5), "cl_prompt", "(1, 4)"),
        (reshaped("cl_prompt", 1, 400), "cl_prompt", "at most (1, 12)"),
        (reshaped("queue", EMBEDDING, 2), "queue", "3 at least"),
        (reshaped("queue", EMBEDDING + 1, KEYS), "encoder_q.fc.2.weight", "(8, 12)"),
        (put("queue_ptr", torch.tensor([KEYS])), "queue_ptr", "a place among 12 keys"),
        (put("queue_ptr", torch.tensor([1.0])), "queue_ptr", "torch.float32"),
        (put("cl_prompt", torch.zeros(1, 4, dtype=torch.int64)), "cl_prompt", "torch.int64"),
        (bad_value("encoder_k.fc.0.bias", float("nan")), "encoder_k.fc.0.bias", "not finite"),
        (bad_value("queue", float("inf")), "queue", "not finite"),
        (put("linear.0.bias", torch.full((DECODER,), 1e300, dtype=torch.float64)), "linear.0.bias",
         "5 numbers that are not finite"),
        (put("linear.0.bias", 3), "linear.0.bias", "found: int"),
        (put("linear.0.bias", torch.zeros(5).to_sparse()), "linear.0.bias", "a dense tensor"),
        (put("linear.0.bias", torch.zeros(5, device="meta")), "linear.0.bias", "with values"),
        # A layer as large as it likes, on four bytes.
        (put("encoder_q.encoder.gru.weight_hh_l0", torch.zeros(1, 1).expand(3 * 10**6, 10**6)),
         "encoder_q.encoder.gru.weight_hh_l0", "more than the file's bytes"),
        # One that the file does hold, with which all others would have to be as large.
        (put("encoder_q.encoder.gru.weight_hh_l0", torch.zeros(1, 10**6)),
         "encoder_q.encoder.gru.weight_ih_l0", "(3000000, 150)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: Change, key: str, said: str, prefix: str
) -> None:
    state = dict(network().state_dict())
    change(state)
    named = {prefix + name: tensor for name, tensor in state.items()}
    message = refusal(save(tmp_path / "bad.pth.tar", named))
    assert said in message
    assert f"place: {prefix}{key}\n" in message


@pytest.mark.parametrize("stream", ["bone", "motion"])
def test_prompts_that_are_left_out_must_fit_all_the_same(tmp_path: Path, stream: Any) -> None:
    state = dict(network().state_dict()) | {"mix_prompt": torch.zeros(1, 1, 149)}
    message = refusal(save(tmp_path / "bad.pth.tar", state), stream=stream)
    assert "place: mix_prompt" in message


def test_a_key_that_would_command_the_screen_is_shown_in_plain(tmp_path: Path) -> None:
    state = dict(network().state_dict()) | {"\x1b[2Jqueue": torch.zeros(1)}
    assert r"place: '\x1b[2Jqueue'" in refusal(save(tmp_path / "bad.pth.tar", state))


def test_a_state_with_two_sorts_of_names_is_refused(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    state["module.queue_ptr"] = state.pop("queue_ptr")
    assert "place: module.queue_ptr" in refusal(save(tmp_path / "bad.pth.tar", state))


def test_entries_beside_the_state(tmp_path: Path) -> None:
    state = network().state_dict()
    known = save(tmp_path / "known.pth.tar", state, best_acc1=torch.tensor(80.0), epoch=3)
    assert import_pcm3(known, tmp_path / "run").data["imported"]["epoch"] == 3
    assert "place: ema" in refusal(save(tmp_path / "a.pth.tar", state, ema={"queue": 1}))
    assert "place: epoch" in refusal(save(tmp_path / "b.pth.tar", state, epoch="last"))
    assert "place: state_dict" in refusal(save(tmp_path / "c.pth.tar", [1]))
    assert "found: no tensor" in refusal(save(tmp_path / "d.pth.tar", {}))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("where", ["alone", "beside", "within"])
def test_a_pickle_that_asks_for_more_is_not_run(tmp_path: Path, old: bool, where: str) -> None:
    trace, file = tmp_path / "trace", tmp_path / "evil.pth.tar"
    state = dict(network().state_dict())
    evil: Any = Burglar(trace)
    content = {
        "alone": evil,
        "beside": {"state_dict": state, "optimizer": evil},
        "within": state | {"queue": evil},
    }[where]
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    message = refusal(file)
    assert not trace.exists()
    assert "asks for pathlib.Path.touch" in message or "not run" in message
    assert "weights_only" not in message  # torch's own text says how to run it all the same
    torch.load(file, weights_only=False)
    assert trace.exists()  # so it was armed


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, old: bool, share: float) -> None:
    file = tmp_path / "cut.pth.tar"
    torch.save(network().state_dict(), file, _use_new_zipfile_serialization=not old)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "no weights that can be imported" in refusal(file)


def test_a_zip_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth.tar", network().state_dict())
    packed = tmp_path / "packed.pth.tar"
    with (
        zipfile.ZipFile(whole) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "is compressed" in refusal(packed)


def test_other_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.pth.tar"
    text.write_text("<html>not found</html>")
    assert "b'<html>not'" in refusal(text)
    assert "no such file" in refusal(tmp_path / "nowhere.pth.tar")
    torch.save([torch.zeros(3)], tmp_path / "list.pth.tar")
    assert "found: list" in refusal(tmp_path / "list.pth.tar")
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("a.txt", "text")
    assert "no weights" in refusal(other)


def test_slim_is_not_taken_for_pcm3(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set")
    run = start_run(tmp_path / "slim", tiny_recipe(), data, seed=1)
    train(run, data, device=CPU, stop_after=1)
    student = build_method(run.recipe, load_topology("kinect_v2"), 1).student.state_dict()
    weights = tmp_path / "slim.pth.tar"
    torch.save(student, weights)
    message = refusal(weights)
    assert f"place: {next(iter(student))}\n" in message
    assert "an unknown key" in message
    message = refusal(run.checkpoint() / "student.safetensors")
    assert f"safetensors with unknown keys, the first is {min(student)}" in message
    assert "a run already" in refusal(run.folder)
    assert "a folder" in refusal(tmp_path)
    result = skelpipe("import", "slim", weights, "--out", tmp_path / "new")
    assert "'slim' cannot be imported" in str(result.exception)


@pytest.mark.parametrize("old", [False, True])
def test_a_storage_that_claims_gigabytes_is_refused(tmp_path: Path, old: bool) -> None:
    state, file = dict(network().state_dict()), tmp_path / "claims.pth.tar"
    state["queue"] = torch.zeros(EMBEDDING, 10_000)
    torch.save(state, file, _use_new_zipfile_serialization=not old)
    content, elements = file.read_bytes(), b"J" + (70_000).to_bytes(4, "little")
    assert content.count(elements) == 1  # as the pickle tells the size of the storage
    file.write_bytes(content.replace(elements, b"J\xff\xff\xff\x7f"))
    assert ("RuntimeError" if old else "another checksum") in refusal(file)


def test_bytes_that_were_changed_are_found(tmp_path: Path) -> None:
    file = save(tmp_path / "released.pth.tar", network().state_dict())
    with zipfile.ZipFile(file) as opened:
        member = max(opened.infolist(), key=lambda member: member.file_size)
        place = file.read_bytes().index(opened.read(member))
    content = bytearray(file.read_bytes())
    content[place + member.file_size // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="bytes of another checksum") as error:
        import_pcm3(file, tmp_path / "run")
    assert member.filename in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_negative_variance_is_named(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    key = "encoder_k.input_norm.running_var"
    state[key] = -state[key]
    file = save(tmp_path / "released.pth.tar", state)
    with pytest.raises(UserError, match="negative numbers") as error:
        import_pcm3(file, tmp_path / "run")
    assert f"place: {key}" in str(error.value)
