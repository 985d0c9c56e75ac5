"""Fine-tuning of tiny encoders on generated sets; ranks against one process."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CPU, tiny_pcm3_recipe, tiny_recipe, write_set
from safetensors.torch import load_file
from torch import Tensor

from skelpipe.checkpoint import Run
from skelpipe.config import PCM3Recipe, SLiMRecipe
from skelpipe.errors import UserError
from skelpipe.protocols import finetune
from skelpipe.protocols.evaluate import ask, evaluate, write_result
from skelpipe.protocols.features import viewer
from skelpipe.protocols.finetune import _optimiser, _scores, amount, rate_at
from skelpipe.protocols.question import Question, labels
from skelpipe.protocols.recogniser import Recogniser, layer_of, layers_of
from skelpipe.protocols.settings import Finetune, load_protocol
from skelpipe.random import fold
from skelpipe.shards.card import CARD, card_bytes, read_card
from skelpipe.train import start_run, train

QUICK = ("epochs=3", "batch=7", "random.shortest=4", "hidden=8")
Recipe = SLiMRecipe | PCM3Recipe


def protocol(name: str, *changes: str) -> Finetune:
    found = load_protocol(name, changes)
    assert isinstance(found, Finetune)
    return found


def question(data: Path, recipe: Recipe, **changes: Any) -> Question:
    given: dict[str, Any] = {"subject": "random-init", "device": CPU} | changes
    return ask(load_protocol("finetune"), recipe, data, **given)


def recogniser(recipe: Recipe, data: Path, *changes: str) -> Recogniser:
    asked = question(data, recipe)
    torch.manual_seed(0)
    model = Recogniser(asked.encoder(), asked.kind, 25, 3, protocol("finetune", *QUICK, *changes))
    return model.double()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=17, test=7)


@pytest.fixture(scope="module")
def agcn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=17, test=7, pipeline="agcn")


def seen(data: Path, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    """All training samples: rows of a view, the sample of each, and keys."""
    asked = question(data, recipe)
    batch = asked.train.take(torch.arange(len(asked.train)))
    return *viewer(recipe, asked.topology, 1.0)(batch), fold(5, batch.row_N)


def test_the_recipes_have_the_published_numbers() -> None:
    mamp, cmd = protocol("finetune"), protocol("finetune-cmd")
    assert (mamp.lr, mamp.min_lr, mamp.weight_decay, mamp.batch) == (3e-4, 1e-5, 0.05, 48)
    assert (mamp.epochs, mamp.warmup * mamp.epochs, mamp.layer_decay) == (100, 5, 0.8)
    assert (mamp.dropout, mamp.drop_path, mamp.label_smoothing) == (0.3, 0.3, 0.1)
    assert (mamp.head, mamp.hidden, mamp.optimiser) == ("mamp", 2048, "adamw")
    assert (mamp.random.ratio, mamp.random.shortest, mamp.random.rotation) == ((0.5, 1.0), 64, 0.3)
    assert (cmd.lr, cmd.batch, cmd.epochs, cmd.drops) == (0.01, 64, 80, (50, 70))
    assert (cmd.head, cmd.optimiser, cmd.dropout, cmd.drop_path) == ("linear", "sgd", 0, 0)
    told = {"name", "title", "share", "runs", "transfer"}
    for name, like in (("semi", mamp), ("semi-cmd", cmd)):
        found = protocol(name)
        assert found.model_dump(exclude=told) == like.model_dump(exclude=told)
        assert (found.share, found.subset, found.runs) == (0.01, "random", 5)
        assert found.variant == "1-random"
        assert protocol(name, "share=0.1", "subset=balanced").variant == "10-balanced"
    for name, like in (("transfer-finetune", mamp), ("transfer-cmd", cmd)):
        assert protocol(name).model_dump(exclude=told) == like.model_dump(exclude=told)
        assert (protocol(name).transfer, protocol(name).share, protocol(name).runs) == (True, 1, 1)


def test_rates_by_hand() -> None:
    mamp, cmd = protocol("finetune"), protocol("finetune-cmd")
    assert rate_at(mamp, 0, 0.0) == 0
    assert rate_at(mamp, 2, 0.5) == pytest.approx(1.5e-4)
    assert rate_at(mamp, 5, 0.0) == pytest.approx(3e-4)
    assert rate_at(mamp, 52, 0.5) == pytest.approx((3e-4 + 1e-5) / 2)
    assert rate_at(mamp, 99, 1.0) == pytest.approx(1e-5)
    rates = [rate_at(cmd, epoch, 0.9) for epoch in (0, 49, 50, 69, 70, 79)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


def test_layers_learn_at_decaying_rates(data: Path, agcn: Path) -> None:
    slim = recogniser(tiny_recipe("encoder.layers=3"), data)
    layers = {name: layer_of(name, 3) for name, _ in slim.named_parameters()}
    assert layers_of(slim.encoder) == 3
    for name, layer in layers.items():
        block = name.removeprefix("encoder.blocks.")[0]
        last = name.startswith(("head.", "encoder.norm."))
        assert layer == (4 if last else int(block) + 1 if name[8:].startswith("blocks") else 0)
    assert set(layers.values()) == {0, 1, 2, 3, 4}
    gru = recogniser(tiny_pcm3_recipe(), agcn)
    assert layers_of(gru.encoder) == 2
    for name, _ in gru.named_parameters():
        number = {"encoder.input_norm": 0, "encoder.first.0": 1, "encoder.second.0": 1,
                  "encoder.first.1": 2, "encoder.second.1": 2}  # fmt: skip
        assert layer_of(name, 2) == number.get(name.rpartition(".")[0], 3), name

    told = {id(p): name for name, p in slim.named_parameters()}
    optimiser = _optimiser(slim, protocol("finetune"), 0.8)
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            name = told.pop(id(parameter))
            assert group["scale"] == pytest.approx(0.8 ** (4 - layers[name]))
            plain = parameter.ndim < 2 or name in ("encoder.joint_embedding", "encoder.prefix")
            assert group["weight_decay"] == (0 if plain else 0.05), name
    assert not told
    assert isinstance(optimiser, torch.optim.AdamW)
    assert optimiser.defaults["betas"] == (0.9, 0.999)
    flat = _optimiser(slim, protocol("finetune-cmd"), 1.0)
    assert {group["scale"] for group in flat.param_groups} == {1.0}


def test_mamps_head_by_hand(data: Path) -> None:
    recipe = tiny_recipe()
    model = recogniser(recipe, data).eval()
    x, sample_B, _ = seen(data, recipe)
    assert len(x) > 17  # some have two bodies
    logits = model(x, sample_B, 17)
    for sample in range(17):
        rows = []
        for row in x[sample_B == sample]:
            tokens = model.encoder(row[None].double()).patch_BSJD[0]
            joints = [sum(step[joint] for step in tokens) / len(tokens) for joint in range(25)]
            rows.append(torch.cat(joints))
        hidden = model.head[0](sum(rows) / len(rows))
        wanted = model.head[3](model.head[1](hidden[None]).relu())
        torch.testing.assert_close(logits[sample], wanted[0])


def test_the_last_frame_goes_to_mamps_head_of_a_gru(agcn: Path) -> None:
    recipe = tiny_pcm3_recipe()
    model = recogniser(recipe, agcn).eval()
    x, sample_B, _ = seen(agcn, recipe)
    torch.testing.assert_close(model(x, sample_B, 17), model.head(model.encoder(x.double())[:, -1]))
    assert model.head[0].in_features == 16


@pytest.mark.parametrize("kind", ["slim", "pcm3"])
def test_what_is_dropped_depends_on_the_sample_alone(data: Path, agcn: Path, kind: str) -> None:
    """So any division among ranks drops the same. Batch norm is left out: it sees the others."""
    recipe: Recipe = tiny_recipe("encoder.layers=3") if kind == "slim" else tiny_pcm3_recipe()
    data = data if kind == "slim" else agcn
    model = recogniser(recipe, data, "head=linear", "drop_path=0.5").eval()
    x, sample_B, key_N = seen(data, recipe)
    model.head = torch.nn.Sequential()
    whole = model(x, sample_B, 17, key_N)
    assert not torch.allclose(whole, model(x, sample_B, 17))
    assert not torch.allclose(whole, model(x, sample_B, 17, key_N + 1))
    for some in (range(3), [16, 4, 8]):
        rows = torch.cat([(sample_B == sample).nonzero()[:, 0] for sample in some])
        number = torch.cat(
            [torch.full_like(sample_B[sample_B == s], n) for n, s in enumerate(some)]
        )
        part = model(x[rows], number, 3, key_N[list(some)])
        torch.testing.assert_close(part, whole[list(some)])
    assert len(x) == (22 if kind == "slim" else 17)  # of SLiM five samples have two rows


def test_dropout_keeps_the_mean(data: Path) -> None:
    model = recogniser(tiny_recipe(), data, "dropout=0.25")
    ones = torch.ones(200, 4, 25, 16, dtype=torch.float64)
    dropped = model._drop(ones, fold(1, torch.arange(200)))
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75}
    assert dropped.mean().item() == pytest.approx(1, abs=0.005)
    assert model._drop(ones, None) is ones


def test_a_view_without_a_body_is_no_end_of_training(data: Path) -> None:
    model = recogniser(tiny_recipe(), data)
    x, sample_B, key_N = seen(data, tiny_recipe())
    here = sample_B != 4
    for chosen in (here, torch.zeros_like(here)):  # a rank may see nobody at all
        found = model(x[chosen], sample_B[chosen], 17, key_N)
        found.sum().backward()
        assert bool(found.isfinite().all())
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert model.eval()(x[here], sample_B[here], 17)[:, 0].isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("name", ["finetune", "finetune-cmd"])
def test_actions_are_learnt(data: Path, name: str) -> None:
    cmd = ["drops=[15]", "lr=0.3"] if name == "finetune-cmd" else ["lr=0.01", "dropout=0.1"]
    changes = ["epochs=20", "batch=6", "random.shortest=4", "hidden=16", *cmd]
    done: list[tuple[int, int]] = []
    recipe = tiny_recipe()
    asked = question(data, recipe, report=lambda now, total: done.append((now, total)))
    (answer,) = finetune.answer(protocol(name, *changes), asked)
    assert answer.network == "from scratch"
    assert answer.predicted[0].tolist() == labels(asked.test).tolist()
    best = answer.more["best_epoch_peer_convention"]
    assert best["accuracy"] == 100
    assert best["epoch"] <= 20
    assert best["looked_every"] == 1
    assert done == [(epoch, 20) for epoch in range(1, 21)]
    assert "std" not in answer.more


def test_the_encoder_is_trained_and_the_run_is_left_alone(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", tiny_recipe("train.epochs=1"), data, seed=0)
    train(run, data, device=CPU)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    settings = protocol("semi", *QUICK, "share=0.3", "runs=2")
    found = evaluate(settings, run.recipe, data, subject="run", run=run, device=CPU)
    assert {path: path.read_bytes() for path in before} == before
    record = found.record
    (row,) = record["results"]
    assert row["network"] == "student, fine-tuned"
    assert row["accuracy"] == pytest.approx(sum(row["by_seed"]) / 2)
    assert row["std"] == pytest.approx(abs(row["by_seed"][0] - row["by_seed"][1]) / 2**0.5)
    assert len(row["best_epoch_peer_convention"]["epoch"]) == 2
    assert [subset["seed"] for subset in record["subsets"]] == [0, 1]
    assert [subset["samples"] for subset in record["subsets"]] == [5, 5]
    assert any(text.startswith("S28 student fine-tuned") for text in record["readings"])
    assert sum(map(sum, record["confusion"])) == 14
    path = write_result(run.folder, found)
    assert path.name == "semi-30-random.json"
    with path.with_suffix(".subsets.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0"] * 5 + ["1"] * 5
    assert json.loads(path.read_text()) == record
    assert evaluate(settings, run.recipe, data, subject="run", run=run, device=CPU) == found
    other = evaluate(settings, run.recipe, data, subject="run", run=run, device=CPU, seed=1)
    assert other.record["subsets"][0] == record["subsets"][1]
    # From scratch on the same labels, and the run's weights do tell.
    scratch = evaluate(settings, run.recipe, data, subject="random-init", device=CPU)
    assert scratch.record["subsets"] == record["subsets"]
    assert set(scratch.files) == {"subsets.csv"}
    assert "from scratch: no layer decay" in scratch.record["readings"]


def test_a_subset_without_a_class_is_told(data: Path, tmp_path: Path) -> None:
    """Two of 17 samples: by some seed both are of one class. A third has no sample anywhere."""
    data = shutil.copytree(data, tmp_path / "set")
    card = read_card(data)
    third = card.model_copy(update={"classes": (*card.classes, "turn")})
    (data / CARD).write_bytes(card_bytes(third))
    settings = protocol("semi", *QUICK, "share=0.12", "runs=3", "epochs=1")
    record = evaluate(settings, tiny_recipe(), data, subject="random-init", device=CPU).record
    lacking = [subset["seed"] for subset in record["subsets"] if subset["classes"] < 2]
    assert lacking
    for seed in range(3):
        told = [text for text in record["warnings"] if f"seed {seed} (2 samples)" in text]
        assert len(told) == (seed in lacking)
        assert all("has none of 1 classes: " in text for text in told)


@pytest.mark.parametrize(
    ("name", "changes", "more", "said"),
    [
        ("finetune", (), {"subject": "raw"}, "leave out --raw-features"),
        ("finetune", (), {"kind": "class"}, "--set head=linear"),
        ("finetune", (), {"kind": "last"}, "no features 'last'"),
        ("semi", (), {}, "--set share=0.1177 or more"),
        ("semi", ("share=0.1", "subset=balanced"), {}, "less than one sample of 2 classes"),
    ],
)
def test_what_cannot_be_is_said_before_training(
    data: Path, name: str, changes: tuple[str, ...], more: dict[str, Any], said: str
) -> None:
    asked = question(data, tiny_recipe(), report=lambda now, total: pytest.fail("trained"), **more)
    with pytest.raises(UserError, match=said):
        finetune.answer(protocol(name, *QUICK, *changes), asked)


def test_other_features_have_a_linear_head(data: Path) -> None:
    for kind in ("class", "both"):
        asked = question(data, tiny_recipe(), kind=kind)
        settings = protocol("finetune-cmd", *QUICK[:3], "drops=[2]")
        assert len(finetune.answer(settings, asked)[0].scores[0]) == 7


def test_a_divergence_is_an_error(data: Path) -> None:
    asked = question(data, tiny_recipe())
    settings = protocol("finetune-cmd", *QUICK[:3], "drops=[2]", "lr=1e30")
    with pytest.raises(UserError, match="the loss is not finite in epoch"):
        finetune.answer(settings, asked)


def test_a_long_test_part_is_looked_at_seldom(data: Path) -> None:
    settings = protocol("semi", *QUICK, "share=0.2", "runs=1", "epochs=41")
    (answer,) = finetune.answer(settings, question(data, tiny_recipe()))  # 3 samples against 7
    best = answer.more["best_epoch_peer_convention"]
    assert best["looked_every"] == 3
    assert best["epoch"] % 3 == 0 or best["epoch"] == 41
    work = amount(settings, tiny_recipe(), trained=17, tested=7, joints=25, classes=2)
    assert (work.batch, work.steps, work.tested) == (3, 41, 14 * 7)
    assert work.head == (25 * 16 + 2) * 8


def test_scores_are_of_every_sample_once_in_their_order(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe()
    asked, model = question(data, recipe), recogniser(recipe, data)
    see = viewer(recipe, asked.topology, 0.95)
    whole = _scores(model, asked.test, see, 3)
    assert model.training
    monkeypatch.setattr(finetune, "_CHUNK", 3)
    torch.testing.assert_close(_scores(model, asked.test, see, 3), whole)
    model.eval()
    for place in range(7):
        batch = asked.test.take(torch.tensor([place]))
        torch.testing.assert_close(model(*see(batch), 1)[0].float(), whole[place])


# Worlds of two and three ranks, forked from one process that has imported everything.
WORKER = """
import os, sys
from pathlib import Path
import torch
from builders import tiny_pcm3_recipe, tiny_recipe
from safetensors.torch import save_file
from skelpipe import distributed
from skelpipe.errors import UserError
from skelpipe.protocols import finetune
from skelpipe.protocols.evaluate import ask
from skelpipe.protocols.settings import load_protocol

torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])  # imports much, here once for all
folder, slim, pcm3, *ports = sys.argv[1:]
cpu = torch.device("cpu")

def work(rank, world, port):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with distributed.process_group(cpu, 60):
        found = {}
        for name, recipe, data in (("slim", tiny_recipe, slim), ("pcm3", tiny_pcm3_recipe, pcm3)):
            recipe = recipe("train.precision=float64")
            settings = load_protocol("finetune", CHANGES)
            asked = ask(settings, recipe, Path(data), subject="random-init", device=cpu)
            (answer,) = finetune.answer(settings, asked)
            found[name] = answer.scores[0]
        save_file(found, Path(folder) / f"{world}-{rank}.safetensors")
        few = load_protocol("semi", [*CHANGES, "share=0.12"])
        try:
            finetune.answer(few, asked)
            assert world == 2
        except UserError as error:
            assert world == 3 and "start at most 2 ranks" in str(error)

for world, port in zip((2, 3), ports):
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            code = 1
            try:
                work(rank, world, port)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert codes == [0] * world, codes
"""


def test_weights_do_not_depend_on_the_number_of_ranks(
    data: Path, agcn: Path, tmp_path: Path
) -> None:
    """Batches of 7 of 17 samples, 7 test samples: neither divides by 2 or 3."""
    (tmp_path / "worker.py").write_text(WORKER.replace("CHANGES", repr(list(QUICK))))
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    words = [sys.executable, tmp_path / "worker.py", tmp_path, data, agcn, *ports]
    tests = str(Path(__file__).parent.parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for name, recipe, place in (("slim", tiny_recipe, data), ("pcm3", tiny_pcm3_recipe, agcn)):
        asked = question(place, recipe("train.precision=float64"))
        (answer,) = finetune.answer(protocol("finetune", *QUICK), asked)
        for world in (2, 3):
            for rank in range(world):
                other = load_file(tmp_path / f"{world}-{rank}.safetensors")[name]
                torch.testing.assert_close(other, answer.scores[0], rtol=1e-5, atol=1e-6)


def test_runs_of_other_checkpoints_differ(data: Path, tmp_path: Path) -> None:
    """Fine-tuning starts from the student: its first epoch's scores are not an untrained one's."""
    run: Run = start_run(
        tmp_path / "run", tiny_recipe("train.epochs=2", "optim.lr=1"), data, seed=0
    )
    train(run, data, device=CPU)
    settings = protocol("finetune", *QUICK, "epochs=1", "layer_decay=1.0")
    asked = [
        question(data, run.recipe, subject="run", run=run),
        question(data, run.recipe),
    ]
    one, other = (finetune.answer(settings, each)[0].scores[0] for each in asked)
    assert not torch.allclose(one, other)
