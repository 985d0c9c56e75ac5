from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import CPU, KINECT, recording, tiny_recipe, write_set
from sets import Sample
from sets import write_set as write_own

from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import Evaluation, evaluate, write_result
from skelpipe.protocols.settings import load_protocol
from skelpipe.shards.card import CARD, digest_of
from skelpipe.train import start_run, train

QUICK = ("epochs=3", "batch=4", "random.shortest=4")
STEPS = (*QUICK, "drops=[1, 2]")
SMALL = (*QUICK, "hidden=8")
CHANGES: dict[str, tuple[str, ...]] = {
    "knn": (),
    "linear": QUICK,
    "linear-cmd": STEPS,
    "linear-pcm3": STEPS,
    "transfer-linear": QUICK,
    "occlusion-spatial": STEPS,
    "occlusion-temporal": STEPS,
    "finetune": SMALL,
    "finetune-cmd": STEPS,
    "semi": (*SMALL, "share=0.25", "runs=1"),
    "semi-cmd": (*STEPS, "share=0.25", "runs=1"),
    "transfer-finetune": SMALL,
    "transfer-cmd": STEPS,
}
FROZEN = [name for name in CHANGES if load_protocol(name).task != "finetune"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=16, test=8)


@pytest.mark.parametrize(
    ("name", "subject"),
    [*((name, "random-init") for name in CHANGES), *((name, "raw") for name in FROZEN)],
)
def test_floors_need_no_run(data: Path, name: str, subject: str) -> None:
    protocol = load_protocol(name, CHANGES[name])
    record: dict[str, Any] = evaluate(
        protocol, tiny_recipe(), data, subject=subject, device=CPU  # type: ignore[arg-type]
    ).record  # fmt: skip
    assert len(record["results"]) == 1
    assert 0 <= record["results"][0]["accuracy"] <= 100
    assert sum(map(sum, record["confusion"])) == 8
    right = sum(record["confusion"][label][label] for label in range(2))
    assert record["results"][0]["accuracy"] == pytest.approx(100 * right / 8)
    assert record["samples"] == {"train": 16, "test": 8}
    row = record["results"][0]
    assert record["headline"] == {
        "name": "accuracy", "value": row["accuracy"], "lower_is_better": False
    }  # fmt: skip
    assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
    assert row["one_person"] == row["accuracy"]
    assert row["mutual"] is None
    assert record["per_class"] == [100 * record["confusion"][c][c] / 4 for c in range(2)]
    json.dumps(record)


def test_a_run_is_evaluated_student_first(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", tiny_recipe("train.epochs=1"), data, seed=0)
    train(run, data, device=CPU)
    found = evaluate(load_protocol("knn"), run.recipe, data, subject="run", device=CPU, run=run)
    record = found.record
    assert [row["network"] for row in record["results"]] == ["student", "teacher"]
    assert record["checkpoint"] == "4"
    again = evaluate(load_protocol("knn"), run.recipe, data, subject="run", device=CPU, run=run)
    assert again == found
    path = write_result(run.folder, found)
    assert path == run.folder / "results" / "knn.json"
    assert json.loads(path.read_text(encoding="utf-8")) == record


def test_a_result_of_other_data_is_kept(tmp_path: Path) -> None:
    def found(split: str, accuracy: float) -> Evaluation:
        record = {"protocol": {"name": "knn"}, "subject": "run", "features": "last", "part": "test"}
        record |= {"dataset": "ntu60", "split": split, "accuracy": accuracy}
        return Evaluation(record, {"scores.parquet": f"{split} {accuracy}".encode()})

    def standing() -> dict[str, tuple[float, bytes]]:
        results = tmp_path / "results"
        return {
            path.stem: (json.loads(path.read_text())["accuracy"],
                        path.with_suffix(".scores.parquet").read_bytes())
            for path in results.glob("*.json")
        }  # fmt: skip

    write_result(tmp_path, found("xsub", 1))
    write_result(tmp_path, found("xview", 2))
    write_result(tmp_path, found("xview", 3))
    assert standing() == {"knn-ntu60-xsub": (1, b"xsub 1"), "knn": (3, b"xview 3")}
    write_result(tmp_path, found("xsub", 4))
    assert standing() == {"knn-ntu60-xview": (3, b"xview 3"), "knn": (4, b"xsub 4")}
    assert len(list((tmp_path / "results").iterdir())) == 4


@pytest.mark.parametrize("damage", [b"{broken", b"[]", b"{}"])
def test_a_damaged_result_is_replaced(data: Path, tmp_path: Path, damage: bytes) -> None:
    found = evaluate(load_protocol("knn"), tiny_recipe(), data, subject="raw", device=CPU)
    path = write_result(tmp_path, found)
    path.write_bytes(damage)
    assert write_result(tmp_path, found) == path
    assert json.loads(path.read_text(encoding="utf-8")) == found.record


def test_each_protocol_has_a_file_of_its_own(data: Path, tmp_path: Path) -> None:
    written = {
        write_result(
            tmp_path,
            evaluate(
                load_protocol(name, CHANGES[name]), tiny_recipe(), data, subject="raw", device=CPU
            ),
        ).name
        for name in FROZEN
    }
    assert written == {f"{name}-raw.json" for name in FROZEN}


def test_validation_leaves_the_test_part_alone(data: Path) -> None:
    found = evaluate(
        load_protocol("knn"), tiny_recipe(), data, subject="raw", device=CPU, val_subjects=(1, 2)
    )
    record = found.record
    assert record["samples"] == {"train": 8, "test": 8}
    assert record["part"] == "validation subjects [1, 2]"
    assert write_result(data.parent / "run", found).name == "knn-raw-val.json"


def test_another_pipeline_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    data = write_set(tmp_path / "toy", pipeline="agcn")
    with pytest.raises(UserError, match="--pipeline ctrgcn"):
        evaluate(load_protocol("knn"), tiny_recipe(), data, subject="raw", device=CPU)


def test_more_neighbours_than_samples_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match="k = 17"):
        evaluate(load_protocol("knn", ("k=17",)), tiny_recipe(), data, subject="raw", device=CPU)


def own_set(folder: Path, samples: list[Sample], **changes: Any) -> Path:
    return write_own(folder, KINECT, samples, **changes)


def sample(key: str, part: str, subject: int = 0, label: int = 0) -> Sample:
    return Sample(key, recording(len(key), 12), part, label, subject, 1, 1)


def asked(data: Path, name: str = "knn", **changes: Any) -> dict[str, Any]:
    protocol = load_protocol(name, CHANGES[name])
    return evaluate(protocol, tiny_recipe(), data, subject="raw", device=CPU, **changes).record


def test_a_sample_in_both_parts_is_refused_by_name(tmp_path: Path) -> None:
    samples = [sample(key, "train") for key in ("a", "b", "c")]
    samples += [sample(key, "test") for key in ("b", "d")]
    with pytest.raises(UserError, match=r"1 samples stand in both[\s\S]*found: b\n"):
        asked(own_set(tmp_path / "set", samples))


@pytest.mark.parametrize("field", ["subject", "camera", "setup"])
def test_who_trains_is_not_tested_where_the_split_keeps_them_apart(
    tmp_path: Path, field: str
) -> None:
    samples = [Sample(f"a{n}", recording(n, 12), "train", **{field: n}) for n in range(1, 5)]
    samples += [Sample(f"b{n}", recording(n, 12), "test", **{field: n}) for n in range(3, 7)]
    with pytest.raises(UserError, match=rf"2 {field}s stand in both[\s\S]*found: 3, 4\n"):
        asked(own_set(tmp_path / "apart", samples, apart=field))
    assert asked(own_set(tmp_path / "mixed", samples))["samples"] == {"train": 4, "test": 4}


def test_subjects_that_are_not_stated_are_not_compared(tmp_path: Path) -> None:
    samples = [sample("a", "train"), sample("b", "test")]
    assert asked(own_set(tmp_path / "set", samples, apart="subject"))["samples"]["test"] == 1


def older(folder: Path) -> Path:
    """The set as it was prepared before cards told mutual classes and what a split keeps apart."""
    table = json.loads((folder / CARD).read_bytes())
    for name in ("mutual", "apart", "digest"):
        del table[name]
    table["digest"] = digest_of([table])
    (folder / CARD).write_text(json.dumps(table))
    return folder


def test_mutual_classes_are_told_apart(tmp_path: Path) -> None:
    samples = [sample("a", "train", label=0), sample("bb", "train", label=2)]
    samples += [sample("ccc", "test", label=0), sample("dddd", "test", label=2)]
    row = asked(own_set(tmp_path / "set", samples, mutual=(2,)))["results"][0]
    assert {row["one_person"], row["mutual"]} <= {0.0, 100.0}
    assert row["one_person"] + row["mutual"] == 2 * row["accuracy"]
    assert asked(older(own_set(tmp_path / "old", samples)))["results"][0]["mutual"] is None


def test_of_a_packaged_set_the_manifest_knows_what_an_older_card_does_not(tmp_path: Path) -> None:
    samples = [sample("a", "train", 1, 0), sample("bb", "train", 1, 49)]
    samples += [sample("ccc", "test", 2, 0), sample("dddd", "test", 2, 49)]
    packaged: dict[str, Any] = {"dataset": "ntu60", "split": "xsub"}
    row = asked(older(own_set(tmp_path / "set", samples, **packaged)))["results"][0]
    assert row["mutual"] is not None  # class 50 of NTU RGB+D
    packaged["split"] = "xview"  # by cameras, which are all 1 here
    with pytest.raises(UserError, match="1 cameras stand in both"):
        asked(older(own_set(tmp_path / "view", samples, **packaged)))
    packaged["split"] = "xsub"
    samples.append(sample("eeeee", "test", 1))
    with pytest.raises(UserError, match="1 subjects stand in both"):
        asked(older(own_set(tmp_path / "both", samples, **packaged)))


def test_classes_without_a_training_sample_are_warned_of(tmp_path: Path) -> None:
    samples = [sample("a", "train", label=1), sample("bb", "test", label=1)]
    samples += [sample("ccc", "test", label=2), sample("dddd", "test", label=0)]
    record = asked(own_set(tmp_path / "set", samples))
    assert record["warnings"] == ["2 of 3 classes have no training sample: class0, class2"]
    assert record["per_class"] == [0, 100, 0]


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", ["knn", "linear", "linear-pcm3"])
def test_features_that_are_not_finite_are_named_by_sample(
    tmp_path: Path, name: str, part: str
) -> None:
    broken = recording(0, 12)
    broken[0, :, 3, 1] = np.nan
    samples = [sample(key, "train") for key in ("a", "b")]
    samples += [sample("c", "test"), Sample("broken", broken, part)]
    with pytest.raises(UserError, match=r"1 samples have features[\s\S]*found: broken\n"):
        asked(own_set(tmp_path / "set", samples), name)


def test_unknown_protocols_and_keys_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="'knn'"):
        load_protocol("kn")
    with pytest.raises(UserError, match="'epochs'"):
        load_protocol("linear", ("epoch=3",))
