from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import CPU, KINECT, tiny_pcm3_recipe, tiny_recipe, write_set
from recordings import recording_of, write_recordings
from sets import Sample

from skelpipe.config import Recipe
from skelpipe.errors import UserError
from skelpipe.methods import build_method
from skelpipe.protocols import detection_metrics as metrics
from skelpipe.protocols.detection import SEGMENTS
from skelpipe.protocols.detection_inference import frame_scores
from skelpipe.protocols.detection_model import FrameClassifier
from skelpipe.protocols.detection_segments import segments, smooth, unpack_segments
from skelpipe.protocols.detection_training import draw_windows, fit
from skelpipe.protocols.evaluate import Evaluation, evaluate, write_result
from skelpipe.protocols.features import default_kind
from skelpipe.protocols.settings import Detection, load_protocol
from skelpipe.stream.frame_labels import read_frame_labels
from skelpipe.stream.source import open_source, select
from skelpipe.train import start_run, train
from skelpipe.views.windows import gather_windows, window_frames

QUICK = (
    "epochs=6", "drops=[5]", "batch=16", "window=8", "strides=[1, 2]", "test_stride=1",
    "lr=0.1", "smooth=3",
)  # fmt: skip


def protocol(*changes: str) -> Detection:
    found = load_protocol("detection", (*QUICK, *changes))
    assert isinstance(found, Detection)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [recording_of(number, "train") for number in range(5)]
    samples += [recording_of(number, "test") for number in range(4)]
    return write_recordings(tmp_path_factory.mktemp("set") / "set", samples)


def untrained(recipe: Recipe, data: Path, *changes: str, **more: Any) -> Evaluation:
    return evaluate(
        protocol(*changes), recipe, data, subject="random-init", device=CPU, **more
    )  # fmt: skip


def model_of(recipe: Recipe, *changes: str, seed: int = 0) -> FrameClassifier:
    encoder = build_method(recipe, KINECT, seed).student.encoder
    return FrameClassifier(
        encoder, recipe, KINECT, default_kind(recipe), protocol(*changes), outputs=3, seed=seed
    )


def test_the_protocol_has_the_published_numbers() -> None:
    found = load_protocol("detection")
    assert isinstance(found, Detection)
    assert (found.window, found.strides, found.test_stride, found.per_recording) == (
        16, (3, 4, 5), 4, 16,
    )  # fmt: skip
    assert (found.epochs, found.batch, found.lr, found.schedule, found.drops) == (
        60, 64, 0.01, "steps", (50,),
    )  # fmt: skip
    assert (found.momentum, found.nesterov, found.weight_decay) == (0.9, True, 0)
    assert (found.smooth, found.smoothing, found.threshold) == (10, "whole", 0.4)
    assert (found.encoder, found.origin, found.variant) == ("trained", "camera", "")
    assert protocol("encoder=frozen", "origin=window").variant == "frozen-window"


def test_what_a_pcm3_run_learns_is_found_in_recordings(data: Path, tmp_path: Path) -> None:
    """Its pre-training set is of another pipeline; every number can be had from what is stored."""
    clips = write_set(tmp_path / "clips", pipeline="agcn")
    run = start_run(tmp_path / "run", tiny_pcm3_recipe("train.epochs=1"), clips, seed=0)
    train(run, clips, device=CPU)
    # Its clips were turned until z is up, as "agcn" does; recordings are as the sensor had them.
    turned = {**run.data["topology"], "up": "z"}
    run = replace(run, data={**run.data, "topology": turned})
    found = evaluate(protocol(), run.recipe, data, subject="run", device=CPU, run=run)
    record: dict[str, Any] = json.loads(json.dumps(found.record))
    (row,) = record["results"]
    assert row["network"] == "student"
    assert record["headline"] == {"name": "map_a", "value": row["map_a"], "lower_is_better": False}
    assert row["map_a"] > 90
    assert row["frame_accuracy"] > 80 > record["frame_accuracy_of_no_action"]
    predicted, truths = unpack_segments(found.files[SEGMENTS])
    assert [truth[:4] for truth in truths] == [
        (sample.key, *action[:3])
        for number in range(4)
        for sample in (recording_of(number, "test"),)
        for action in sample.told["actions"]
    ]
    official = metrics.match(predicted, truths, "official")
    voc = metrics.match(predicted, truths, "voc")
    for theta in (0.1, 0.3, 0.5):
        for name, matched in (("official", official), ("voc", voc)):
            assert row[name][f"{theta}"] == {
                "map_a": pytest.approx(
                    100 * metrics.mean(metrics.action_precisions(matched, theta))
                ),
                "map_v": pytest.approx(
                    100 * metrics.mean(metrics.recording_precisions(matched, theta))
                ),
            }
    assert row["map_a"] == row["voc"]["0.5"]["map_a"]
    assert row["map_v"] == row["official"]["0.5"]["map_v"]
    per_action = record["class_ap"]["voc"]
    assert list(per_action) == ["first", "second"]
    assert sum(per_action.values()) / 2 == pytest.approx(row["map_a"])
    aps = [one["ap"] for one in record["recordings"]]
    assert len(aps) == 4
    assert sum(aps) / 4 == pytest.approx(row["map_v"])
    path = write_result(run.folder, found)
    assert path.name == "detection.json"
    assert path.with_suffix(f".{SEGMENTS}").read_bytes() == found.files[SEGMENTS]


def test_slim_learns_what_its_origin_shows(data: Path) -> None:
    """Actions are places here: a window about its own origin shows the way there alone."""
    slim = tiny_recipe()
    camera = untrained(slim, data).record["results"][0]
    window = untrained(slim, data, "origin=window").record["results"][0]
    assert camera["map_a"] > 60 > window["map_a"]
    both = untrained(slim, data, "epochs=1", "drops=[]", kind="both")
    assert both.record["features"] == "both"
    assert both == untrained(slim, data, "epochs=1", "drops=[]", kind="both")


def test_an_epochs_windows_depend_on_recording_epoch_and_seed_alone() -> None:
    frames_R, row_R = torch.tensor([110, 40, 8]), torch.tensor([7, 2, 9])
    drawn = draw_windows(frames_R, row_R, protocol("strides=[3, 4, 5]"), 5, 3)
    assert drawn.place_N.tolist() == [place for place in range(3) for _ in range(16)]
    some = draw_windows(frames_R[1:], row_R[1:], protocol("strides=[3, 4, 5]"), 5, 3)
    assert torch.equal(some.frame_NW, drawn.frame_NW[16:])
    first, last = drawn.frame_NW[:, 0], drawn.frame_NW[:, -1]
    assert ((first >= 0) & (last < frames_R[drawn.place_N])).all()
    strides = (drawn.frame_NW[:16, 1] - drawn.frame_NW[:16, 0]).unique()
    assert strides.tolist() == [3, 4, 5]
    assert len(drawn.middle_N[:16].unique()) > 8
    for other in (
        draw_windows(frames_R, row_R, protocol("strides=[3, 4, 5]"), 5, 4),
        draw_windows(frames_R, row_R, protocol("strides=[3, 4, 5]"), 6, 3),
    ):
        assert not torch.equal(other.middle_N, drawn.middle_N)


@pytest.mark.parametrize("recipe", [tiny_recipe(), tiny_pcm3_recipe()], ids=["slim", "pcm3"])
def test_scores_of_frames_are_those_of_single_windows(data: Path, recipe: Recipe) -> None:
    """In chunks of any size, with bodies that come late and frames without anyone."""
    source = open_source(data, select(data, "train"), CPU, "mapped")
    model = model_of(recipe).eval()
    slots = model.slots(2)
    for place in (1, 2):
        score_TK = frame_scores(model, source, place, protocol(), slots=slots)
        odd = frame_scores(model, source, place, protocol(), slots=slots, chunk=13)
        torch.testing.assert_close(score_TK, odd, rtol=0, atol=1e-6)
        assert score_TK.isfinite().all()
        batch = source.take(torch.tensor([place]))
        for frame in (0, 4, 50, 106, 109):
            frame_NW, _ = window_frames(batch.frames_N, torch.tensor([frame]), torch.tensor([1]), 8)
            windows = gather_windows(batch, torch.tensor([0]), frame_NW, slots)
            with torch.no_grad():
                alone = model(windows)[0].double().softmax(-1)
            torch.testing.assert_close(score_TK[frame], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("absent_body", ["zeros", "copy"])
def test_a_stand_in_for_the_second_body_counts_as_one(data: Path, absent_body: str) -> None:
    recipe = tiny_recipe(f"views.absent_body={absent_body}")
    model = model_of(recipe).double().eval()
    batch = open_source(data, select(data, "train"), CPU, "mapped").take(torch.tensor([0]))
    frame_NW = torch.arange(8)[None]
    windows = gather_windows(batch, torch.tensor([0]), frame_NW, model.slots(1))
    assert windows.x_NMWJC.shape[1] == 2
    second = windows.x_NMWJC[:, 0] if absent_body == "copy" else windows.x_NMWJC[:, 1]
    x_BWJC = torch.cat([windows.x_NMWJC[:, 0], second]).double()
    feature_D = model.encoder(x_BWJC).patch_BSJD.mean((0, 1, 2))
    torch.testing.assert_close(model(windows)[0], model.head(feature_D))


def test_a_window_without_anybody_has_the_layers_bias(data: Path) -> None:
    model = model_of(tiny_recipe())
    with torch.no_grad():
        model.head.bias += torch.arange(3)
    batch = open_source(data, select(data, "train"), CPU, "mapped").take(torch.tensor([2]))
    frame_NW = torch.tensor([[104] * 8, [50] * 8])
    windows = gather_windows(batch, torch.tensor([0, 0]), frame_NW, 1)
    logits_NK = model(windows)
    assert torch.equal(logits_NK[0], model.head.bias)
    assert not torch.equal(logits_NK[1], model.head.bias)
    nobody = gather_windows(batch, torch.tensor([0]), frame_NW[:1], 1)
    model(nobody).sum().backward()
    assert model.head.bias.grad is not None


def test_a_frozen_encoder_stands_still_but_for_its_input_norm(data: Path) -> None:
    source = open_source(data, select(data, "train"), CPU, "mapped")
    labels = [one.label_T for one in read_frame_labels(data, select(data, "train"))]
    for kept in ("frozen", "trained"):
        changes = (f"encoder={kept}", "epochs=1", "drops=[]")
        model = model_of(tiny_pcm3_recipe(), *changes)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        fit(model, source, labels, protocol(*changes), slots=2, seed=0)
        moved = {
            name
            for name, value in model.state_dict().items()
            if not torch.equal(value, before[name])
        }
        assert {"head.weight", "encoder.input_norm.running_mean"} <= moved
        assert ("encoder.first.0.weight_hh_l0" in moved) == (kept == "trained")
        assert ("encoder.input_norm.weight" in moved) == (kept == "trained")


def refusal(work: Any) -> str:
    with pytest.raises(UserError) as error:
        work()
    return str(error.value)


def test_what_cannot_be_done_is_said_before_any_training(data: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    report = partial(_hear, heard)
    clips = write_set(tmp_path / "clips", pipeline="agcn")
    slim, pcm3 = tiny_recipe(), tiny_pcm3_recipe()
    message = refusal(lambda: untrained(pcm3, clips, report=report))
    assert "skelpipe prepare pku1 --split xsub --pipeline recordings" in message
    message = refusal(lambda: untrained(pcm3, data, val_subjects=(1,), report=report))
    assert "no subjects can be held out" in message
    message = refusal(lambda: untrained(slim, data, "window=6", report=report))
    assert "--set window=8" in message
    message = refusal(
        lambda: evaluate(protocol(), pcm3, data, subject="raw", device=CPU, report=report)
    )
    assert "--raw-features" in message
    assert "features 'patch'" in refusal(lambda: untrained(pcm3, data, kind="patch", report=report))
    assert "nesterov" in refusal(lambda: protocol("momentum=0"))
    assert heard == []


def _hear(heard: list[int], done: int, total: int) -> None:
    heard.append(done)


def test_subjects_are_held_out_where_recordings_have_them(tmp_path: Path) -> None:
    samples: list[Sample] = [
        recording_of(number, "train", subject=1 + number % 2) for number in range(4)
    ]
    samples.append(recording_of(0, "test", subject=3))
    data = write_recordings(tmp_path / "set", samples)
    record = untrained(tiny_pcm3_recipe(), data, "epochs=1", "drops=[]", val_subjects=(2,)).record
    assert record["samples"] == {"train": 2, "test": 2}
    assert {one["key"] for one in record["recordings"]} == {"train01", "train03"}


def test_a_rate_that_explodes_is_named(data: Path) -> None:
    message = refusal(lambda: untrained(tiny_recipe(), data, "lr=1e30"))
    assert "not finite in epoch 1" in message


def test_segments_hold_when_a_recording_is_joined_to_another(tmp_path: Path) -> None:
    """What is stored of one recording does not depend on which others are asked."""
    samples = [recording_of(number, part) for part in ("train", "test") for number in range(2)]
    both = write_recordings(tmp_path / "both", samples)
    alone = write_recordings(tmp_path / "alone", samples[:2] + samples[3:])
    model = model_of(tiny_pcm3_recipe()).eval()
    found = []
    for data, place in ((both, 1), (alone, 0)):
        source = open_source(data, select(data, "test"), CPU, "resident")
        score_TK = frame_scores(model, source, place, protocol(), slots=2).numpy()
        found.append(segments(smooth(score_TK, 3, "whole"), 0.3, 0))
    assert found[0] == found[1]


def test_the_seed_of_windows_is_the_samples_row(data: Path) -> None:
    """Training on a part draws the same windows of each recording as training on all."""
    table = select(data, "train")
    row_R = torch.as_tensor(table["row"].to_numpy().copy())
    frames_R = torch.as_tensor(table["frames"].to_numpy().copy()).long()
    whole = draw_windows(frames_R, row_R, protocol(), 0, 0)
    part = draw_windows(frames_R[2:], row_R[2:], protocol(), 0, 0)
    assert torch.equal(part.middle_N, whole.middle_N[32:])
    assert replace(part, place_N=part.place_N + 2).place_N.tolist() == whole.place_N[32:].tolist()
