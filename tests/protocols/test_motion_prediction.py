from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CPU, KINECT, batch_of, mixed_samples, recording, tiny_pcm3_recipe, tiny_recipe
from sets import Sample, write_set
from torch import Tensor

from skelpipe.checkpoint import Run
from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.models.encoder import build_encoder
from skelpipe.models.gru import SkeletonGRU
from skelpipe.models.vit import SkeletonViT
from skelpipe.protocols.evaluate import evaluate, write_result
from skelpipe.protocols.fusion import Wanted, fuse
from skelpipe.protocols.motion import (
    Predictor,
    Windows,
    cut,
    errors,
    fit,
    movement,
    window_starts,
)
from skelpipe.protocols.settings import Motion, load_protocol
from skelpipe.random import below, fold
from skelpipe.report.tables import comparable, gains, headline, result_table
from skelpipe.stream.order import permutation
from skelpipe.stream.source import open_source, select
from skelpipe.train import start_run, train

SMALL = ("observed=10", "predicted=4", "hidden=32", "joint_hidden=16", "steps=60", "batch=8")
RECIPES: dict[str, Recipe] = {"slim": tiny_recipe(), "pcm3": tiny_pcm3_recipe()}
LONG = 14
"""Frames of a window of SMALL."""


def protocol(*changes: str) -> Motion:
    found = load_protocol("motion", (*SMALL, *changes))
    assert isinstance(found, Motion)
    return found


def straight(seed: int, frames: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A body that goes 2 cm a frame to the one side or the other, its pose unchanged."""
    rng = np.random.default_rng(seed)
    way = np.array([0.02 if seed % 2 else -0.02, 0, 0])
    pose_JC = np.random.default_rng(0).normal(0, 0.4, (25, 3)) + rng.normal(0, 0.02, 3)
    return (pose_JC + np.arange(frames)[:, None, None] * way)[None].astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Straight motion, for either method: some too short, one whose main actor is rarely seen."""
    samples = [
        Sample(f"{part}{number:03d}", straight(number, 16 + number % 9), part, label=number % 2)
        for part, count in (("train", 24), ("test", 9))
        for number in range(count)
    ]
    samples.append(Sample("test-short", straight(1, LONG - 1), "test"))
    rare = recording(3, 20, 2, [(0, 8, 9)])
    samples.append(Sample("train-rare", rare, "train"))
    folder = tmp_path_factory.mktemp("sets")
    return {
        name: write_set(
            folder / name,
            KINECT,
            samples,
            pipeline={"name": recipe.pipeline, "version": 1, "switches": {}},
        )
        for name, recipe in RECIPES.items()
    }


def windows(folder: Path, part: str, settings: Motion) -> Windows:
    return Windows.of(open_source(folder, select(folder, part), CPU, "resident"), settings)  # type: ignore[arg-type]


def test_windows_are_those_in_which_the_first_body_is_always_seen() -> None:
    samples = [*mixed_samples(), recording(7, 31, 2, [(0, 9, 10), (0, 20, 21)])]
    found = window_starts(batch_of(samples), 12)
    for poses_MTJC, starts_S in zip(samples, found, strict=True):
        frames = poses_MTJC.shape[1]
        for start in range(found.shape[1]):
            fits = start + 12 <= frames and poses_MTJC[0, start : start + 12].any((1, 2)).all()
            assert bool(starts_S[start]) == fits
    assert found.sum(1).tolist() == [29, 59, 19, 79, 0, 0, 0]
    assert window_starts(batch_of(samples), 10).sum(1).tolist()[-1] == 2
    assert window_starts(batch_of(samples), 100).shape[1] == 0


def test_a_window_is_cut_from_the_first_body() -> None:
    samples = [recording(1, 20, 2), recording(7, 31, 2, [(0, 9, 10), (0, 14, 15)])]
    batch = batch_of(samples)
    assert torch.equal(
        cut(batch, 6),
        torch.tensor(np.stack([samples[0][0, 7:13], samples[1][0, 18:24]])),
    )  # the middle one of 15, and the eighth of 4 + 11 that begin at 0 ... 3 and 15 ... 25
    # A drawn one is that whose number among them is drawn.
    key_N = torch.tensor([5, 8])
    found = cut(batch, 6, key_N)
    number_N = below(key_N, "motion window", 1, torch.tensor([[15], [15]]))[:, 0].tolist()
    starts = (list(range(15)), [*range(4), *range(15, 26)])
    for poses_MTJC, x_TJC, number, start in zip(samples, found, number_N, starts, strict=True):
        first = start[number]
        assert np.array_equal(x_TJC, poses_MTJC[0, first : first + 6])


def test_every_window_of_a_recording_is_drawn() -> None:
    samples = [recording(number, 12, absent=[(0, 2 * number, 2 * number + 1)]) for number in (0, 5)]
    batch = batch_of([poses for poses in samples for _ in range(60)])
    found = cut(batch, 8, fold(0, torch.arange(120)))
    for poses_MTJC, starts, windows_NTJC in zip(
        samples, ({1, 2, 3, 4}, {0, 1, 2}), found.split(60), strict=True
    ):
        begun = {
            start
            for start in range(5)
            for x_TJC in windows_NTJC
            if np.array_equal(poses_MTJC[0, start : start + 8], x_TJC)
        }
        assert begun == starts


def predictor(recipe: Recipe, settings: Motion, step: float = 0.5) -> Predictor:
    torch.manual_seed(0)
    model = Predictor(build_encoder(recipe, KINECT), settings, recipe, KINECT, step).eval()
    torch.nn.init.normal_(model.decoder.readout.weight, std=0.1)
    return model


@torch.no_grad()
def test_the_transformers_joints_go_on_from_their_own_last_token() -> None:
    model = predictor(RECIPES["slim"], protocol())
    x_NTJC = torch.from_numpy(recording(0, 10, 2)).float()  # ten frames: two patches of four
    found = model(x_NTJC, 3)
    assert isinstance(model.encoder, SkeletonViT)
    for number in range(2):
        tokens = model.encoder(x_NTJC[number : number + 1, 2:])
        for joint in (0, 11, 24):
            state = tokens.patch_BSJD[:, 1, joint]
            wanted = model.decoder(state, x_NTJC[number : number + 1, 9, joint], 3)
            torch.testing.assert_close(found[number, :, joint], wanted[0])


@torch.no_grad()
@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("modality", ["joint", "bone", "motion"])
def test_the_grus_pose_goes_on_from_its_last_state(modality: str, direction: str) -> None:
    recipe = tiny_pcm3_recipe(f"views.modality={modality}", f"encoder.direction={direction}")
    model = predictor(recipe, protocol())
    x_NTJC = torch.from_numpy(recording(0, 10, 2)).float()
    encoder = model.encoder
    assert isinstance(encoder, SkeletonGRU)
    for number in range(2):
        shown = torch.zeros(1, 10, 25, 3, 2)  # the second body's slot stays empty
        for frame in range(10):
            for joint in range(25):
                x = x_NTJC[number, frame, joint]
                if modality == "bone":
                    x = x - x_NTJC[number, frame, KINECT.bone_parents[joint]]
                if modality == "motion":
                    x = x_NTJC[number, min(frame + 1, 9), joint] - x
                shown[0, frame, joint, :, 0] = x
        state = encoder.pool(encoder(shown.flatten(2)))
        wanted = model.decoder(state, x_NTJC[number, 9].reshape(1, 75), 3).view(3, 25, 3)
        torch.testing.assert_close(model(x_NTJC[number : number + 1], 3)[0], wanted)


def test_errors_are_mean_distances_in_millimetres(data: dict[str, Path]) -> None:
    settings = protocol()
    test = windows(data["slim"], "test", settings)
    model = predictor(RECIPES["slim"], settings)
    found = errors(model, test)
    assert len(test.place_N) == 9
    for place, number in enumerate(test.place_N.tolist()):
        poses = torch.from_numpy(straight(int(test.source.table["key"][number].as_py()[4:]), 99))[0]
        frames = test.source.table["frames"][number].as_py()
        first = (frames - LONG) // 2
        with torch.no_grad():
            own = model(poses[None, first : first + 10], 4)[0]
        for ahead in range(4):
            truth_JC = poses[first + 10 + ahead]
            now, before = poses[first + 9], poses[first + 8]
            steady = now + (ahead + 1) * (now - before)
            for error_NP, x_JC in zip(found, (own[ahead], now, steady), strict=True):
                distance = [1000 * float((x_JC[j] - truth_JC[j]).norm()) for j in range(25)]
                wanted = sum(distance) / 25
                assert error_NP[place, ahead].item() == pytest.approx(wanted, abs=1e-3)
    assert found[1].mean(0).tolist() == pytest.approx([20, 40, 60, 80], abs=1e-2)
    assert found[2].abs().max().item() < 1e-2  # straight motion: nothing is off


def test_standing_still_has_a_loss_of_one_in_units_of_the_movement(data: dict[str, Path]) -> None:
    train_windows = windows(data["slim"], "train", protocol())
    wanted = np.sqrt(np.mean([(0.02 * ahead) ** 2 / 3 for ahead in (1, 2, 3, 4)]))
    assert movement(train_windows) == pytest.approx(wanted, rel=1e-4)


def by_plain_steps(model: Predictor, train_windows: Windows, settings: Motion) -> list[Tensor]:
    """One SGD step a batch, with the rate and the clipped gradient written out."""
    order = permutation(len(train_windows.place_N), int(fold(3, 1)), 0)
    weights = list(model.decoder.parameters())
    for step in range(settings.steps):
        places = train_windows.place_N[order[step * 8 : step * 8 + 8]]
        row_N = torch.tensor(
            [train_windows.source.table["row"][n].as_py() for n in places.tolist()]
        )
        x_NTJC = cut(train_windows.source.take(places), LONG, fold(3, 0, row_N))
        losses = [
            ((model(x[None, :10], 4) - x[None, 10:]) / model.decoder.step).square().mean()
            for x in x_NTJC
        ]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), weights)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        share = min(1.0, settings.clip / float(norm + 1e-6))
        rate = settings.lr * settings.lr_decay ** (step // settings.decay_steps)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rate * share * gradient
    return weights


@pytest.mark.parametrize("name", RECIPES)
def test_training_is_plain_sgd_on_the_squared_error(data: dict[str, Path], name: str) -> None:
    settings = protocol("steps=3", "lr=0.5", "clip=0.05", "decay_steps=2", "lr_decay=0.1")
    train_windows = windows(data[name], "train", settings)
    one, other = (predictor(RECIPES[name], settings) for _ in range(2))
    for model in (one, other):
        model.encoder.requires_grad_(False)
    before = [weight.clone() for weight in one.encoder.state_dict().values()]
    fit(one, train_windows, settings, seed=3)
    for found, wanted in zip(
        one.decoder.parameters(), by_plain_steps(other, train_windows, settings), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    after = one.encoder.state_dict().values()
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("name", RECIPES)
def test_where_motion_is_straight_the_decoder_beats_standing_still(
    data: dict[str, Path], name: str
) -> None:
    """Which way a body goes only what was observed can tell."""
    record = evaluate(
        protocol("lr=0.05"), RECIPES[name], data[name], subject="random-init", device=CPU
    ).record
    (own,), (still, steady) = record["results"], record["baselines"]
    assert own["mpjpe"] < 0.7 * still["mpjpe"]
    assert still["mpjpe"] == pytest.approx(50, abs=0.1)
    assert steady["mpjpe"] < 0.1
    assert list(own["by_horizon"]) == ["33", "67", "100", "133"]
    assert own["mpjpe"] == pytest.approx(sum(own["by_horizon"].values()) / 4)
    assert record["headline"] == {"name": "mpjpe", "value": own["mpjpe"], "lower_is_better": True}
    assert record["windows"] == {
        "train": {"samples": 24, "left_out": ["train-rare"]},
        "test": {"samples": 9, "left_out": ["test-short"]},
    }
    assert record["samples"] == {"train": 25, "test": 10}
    where = {"slim": "is predicted too", "pcm3": "is not predicted"}[name]
    assert any(where in reading for reading in record["readings"])
    json.dumps(record)


def test_a_run_stands_beside_an_untrained_encoder(data: dict[str, Path], tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", tiny_pcm3_recipe("train.epochs=1"), data["pcm3"], seed=0)
    train(run, data["pcm3"], device=CPU)
    settings = protocol("steps=2")
    found = {
        subject: evaluate(
            settings, run.recipe, data["pcm3"], subject=subject, device=CPU, run=run  # type: ignore[arg-type]
        )
        for subject in ("random-init", "run")
    }  # fmt: skip
    names = [write_result(run.folder, result).name for result in found.values()]
    assert names == ["motion-random-init.json", "motion.json"]
    (group,) = comparable(result.record for result in found.values())
    table = result_table(group)
    assert [row[0] for row in table.rows] == [
        "student", "untrained encoder (floor)", "zero velocity (floor)", "constant velocity (floor)"
    ]  # fmt: skip
    assert table.columns[:4] == (
        "network", "MPJPE, mm", "over zero velocity", "over untrained encoder"
    )  # fmt: skip
    student, still = (found["run"].record[key][0] for key in ("results", "baselines"))
    assert table.rows[0][1] == f"{student['mpjpe']:.1f}"
    assert table.rows[0][2] == f"{student['mpjpe'] - still['mpjpe']:+.1f}"
    assert table.columns[-1] == "133 ms"
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert gains(group) == []
    assert headline(found["run"].record).text == f"MPJPE, mm {student['mpjpe']:.1f}"


def test_an_encoder_may_be_trained_along(data: dict[str, Path], tmp_path: Path) -> None:
    settings = protocol("steps=2", "encoder=trained")
    result = evaluate(settings, RECIPES["pcm3"], data["pcm3"], subject="random-init", device=CPU)
    assert write_result(tmp_path, result).name == "motion-trained-random-init.json"
    train_windows = windows(data["pcm3"], "train", settings)
    model = predictor(RECIPES["pcm3"], settings)
    before = {name: weight.clone() for name, weight in model.encoder.state_dict().items()}
    fit(model, train_windows, settings, seed=0)
    after = model.encoder.state_dict()
    assert all(not torch.equal(weight, after[name]) for name, weight in before.items())


# Each rank of two worlds, forked from one process that has imported everything.
WORKER = """
import json, os, socket, sys
from pathlib import Path
import torch
from builders import tiny_pcm3_recipe, tiny_recipe
from skelpipe import distributed
from skelpipe.protocols.evaluate import evaluate
from skelpipe.protocols.settings import load_protocol

out, cpu = Path(sys.argv[1]), torch.device("cpu")
asked = json.loads(sys.argv[2])

torch.optim.SGD([torch.zeros(1)], lr=1.0)  # torch imports more of itself for it

def work(name, data, changes):
    torch.set_num_threads(1)
    with distributed.process_group(cpu, 60):
        recipe = {"slim": tiny_recipe, "pcm3": tiny_pcm3_recipe}[name]()
        record = evaluate(load_protocol("motion", changes), recipe, Path(data),
                          subject="random-init", device=cpu).record
        (out / f"{name}-{distributed.rank()}.json").write_text(json.dumps(record))

for name, (world, *given) in asked.items():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                              MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            try:
                work(name, *given)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert not any([os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.slow
def test_ranks_find_what_one_process_finds(data: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    # One trains the encoder along, whose batch norm speaks over ranks.
    more = {"slim": (), "pcm3": ("encoder=trained",)}
    changes = {name: (*SMALL, "steps=12", "lr=0.05", *more[name]) for name in RECIPES}
    worlds = {"slim": 2, "pcm3": 3}
    asked = {name: (worlds[name], str(data[name]), changes[name]) for name in RECIPES}
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path), json.dumps(asked)]
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run(
        command,
        env={"PYTHONPATH": tests, "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, recipe in RECIPES.items():
        alone = evaluate(
            load_protocol("motion", changes[name]), recipe, data[name], subject="random-init",
            device=CPU,
        ).record  # fmt: skip
        for rank in range(worlds[name]):
            text = (tmp_path / f"{name}-{rank}.json").read_text(encoding="utf-8")
            record = json.loads(text)
            assert record["windows"] == alone["windows"]
            assert record["baselines"] == alone["baselines"]
            found, wanted = record["results"][0], alone["results"][0]
            assert found["mpjpe"] == pytest.approx(wanted["mpjpe"], rel=1e-4)
            assert found["by_horizon"] == pytest.approx(wanted["by_horizon"], rel=1e-4)
        assert wanted["mpjpe"] != pytest.approx(alone["baselines"][0]["mpjpe"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "asked", "said"),
    [
        ("slim", (), {"kind": "class"}, "leave out --features"),
        ("slim", (), {"subject": "raw"}, "no encoder to train"),
        ("slim", ("observed=3",), {}, "do not fill a patch"),
        ("pcm3", ("observed=30",), {}, "0 of 25"),
        ("pcm3", ("batch=25",), {}, "24 of 25"),
        ("pcm3", ("lr=1e30", "clip=1e30", "steps=3"), {}, "not finite"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    data: dict[str, Path], name: str, changes: tuple[str, ...], asked: dict[str, Any], said: str
) -> None:
    given = {"subject": "random-init"} | asked
    with pytest.raises(UserError, match=said):
        evaluate(protocol(*changes), RECIPES[name], data[name], device=CPU, **given)


def test_sets_without_a_unit_or_without_motion_are_refused(tmp_path: Path) -> None:
    still = [
        Sample(f"{part}{number}", recording(number, 1).repeat(20, 1), part)
        for part in ("train", "test")
        for number in range(8)
    ]
    for name, changes, said in (
        ("still", {}, "nothing moves"),
        ("unit", {"metric": False}, "unit is not known"),
    ):
        folder = write_set(tmp_path / name, KINECT, still, **changes)
        with pytest.raises(UserError, match=said):
            evaluate(protocol(), RECIPES["slim"], folder, subject="random-init", device=CPU)


def test_predictions_are_not_fused(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name, RECIPES["slim"], {}) for name in ("a", "b")]
    with pytest.raises(UserError, match="'motion' recognises nothing"):
        fuse(runs, Wanted("motion", None, ()))


def test_the_decoder_has_the_published_numbers() -> None:
    settings = load_protocol("motion")
    assert isinstance(settings, Motion)
    assert (settings.observed, settings.predicted, settings.hidden) == (50, 10, 1024)
    assert (settings.lr, settings.lr_decay, settings.decay_steps) == (0.005, 0.95, 10_000)
    assert (settings.steps, settings.batch, settings.clip) == (100_000, 16, 5)
