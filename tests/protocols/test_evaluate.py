from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import CPU, tiny_recipe, write_set

from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import Evaluation, evaluate, write_result
from skelpipe.protocols.settings import load_protocol
from skelpipe.train import start_run, train

QUICK = ("epochs=3", "batch=4", "random.shortest=4")
CHANGES = {"knn": (), "linear": QUICK, "linear-pcm3": (*QUICK, "drops=[1, 2]")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "toy", train=16, test=8)


@pytest.mark.parametrize("subject", ["random-init", "raw"])
@pytest.mark.parametrize("name", CHANGES)
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


def test_each_protocol_has_a_file_of_its_own(data: Path, tmp_path: Path) -> None:
    written = {
        write_result(
            tmp_path,
            evaluate(
                load_protocol(name, CHANGES[name]), tiny_recipe(), data, subject="raw", device=CPU
            ),
        ).name
        for name in CHANGES
    }
    assert written == {"knn-raw.json", "linear-raw.json", "linear-pcm3-raw.json"}


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


def test_unknown_protocols_and_keys_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="'knn'"):
        load_protocol("kn")
    with pytest.raises(UserError, match="'epochs'"):
        load_protocol("linear", ("epoch=3",))
