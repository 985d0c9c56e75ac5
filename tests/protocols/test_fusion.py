"""Fusion of tiny SLiM runs of several seeds, which stand for streams."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import CPU, tiny_recipe, write_set

from skelpipe.checkpoint import Run, read_json, read_run, write_json
from skelpipe.errors import UserError
from skelpipe.protocols.evaluate import Evaluation, evaluate, write_result
from skelpipe.protocols.fusion import Wanted, fuse
from skelpipe.protocols.scores import digest, pack_scores, read_scores
from skelpipe.protocols.settings import load_protocol
from skelpipe.report.page import write_page
from skelpipe.report.tables import comparable, read_results, result_tables
from skelpipe.train import start_run, train

LINEAR = ("epochs=3", "batch=4", "random.shortest=4")
PLACES = {"linear": LINEAR, "knn": (), "linear-pcm3": (*LINEAR, "drops=[1, 2]")}
Streams = tuple[Path, list[Run]]


def evaluated(run: Run, data: Path, name: str, *changes: str, **more: Any) -> Path:
    protocol = load_protocol(name, changes)
    found = evaluate(protocol, run.recipe, data, subject="run", device=CPU, run=run, **more)
    return write_result(run.folder, found)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Streams:
    root = tmp_path_factory.mktemp("streams")
    data = write_set(root / "set", train=16, test=15)
    runs = []
    for seed in range(3):
        run = start_run(root / f"run{seed}", tiny_recipe("train.epochs=1"), data, seed=seed)
        train(run, data, device=CPU)
        for name, changes in PLACES.items():
            evaluated(run, data, name, *changes)
        runs.append(run)
    return data, runs


@pytest.fixture
def streams(made: Streams, tmp_path: Path) -> Streams:
    """The same, to be spoiled."""
    for run in made[1]:
        shutil.copytree(run.folder, tmp_path / run.folder.name)
    return made[0], [read_run(tmp_path / run.folder.name) for run in made[1]]


def stored(run: Run, name: str) -> dict[str, tuple[int, list[float]]]:
    """Label and scores by key, straight from the file."""
    rows = pq.read_table(run.folder / "results" / f"{name}.scores.parquet").to_pylist()
    return {row["key"]: (row["label"], row["score"]) for row in rows}


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0), (0.6, 0.6, 0.4), (0.0, 0.0, 2.0)])
@pytest.mark.parametrize("name", PLACES)
def test_a_fusion_is_the_weighted_sum(made: Streams, name: str, weights: tuple[float]) -> None:
    runs = made[1]
    tables = [stored(run, name) for run in runs]
    right = 0
    for key, (label, _) in tables[0].items():
        total = [0.0, 0.0]
        for table, weight in zip(tables, weights or (1, 1, 1), strict=True):
            for place in range(2):
                total[place] += weight * table[key][1][place]
        right += total.index(max(total)) == label
    record = fuse(runs, Wanted(name), weights).record
    assert record["results"] == [{"network": "fusion of 3 streams", "accuracy": 100 * right / 15}]
    assert [stream["weight"] for stream in record["streams"]] == list(weights or (1, 1, 1))
    for run, stream in zip(runs, record["streams"], strict=True):
        own = read_json(run.folder / "results" / f"{name}.json")
        assert stream["accuracy"] == own["results"][0]["accuracy"]
        assert stream["scores_sha256"] == own["files"]["scores.parquet"]
    if weights == (0.0, 0.0, 2.0):
        assert record["results"][0]["accuracy"] == record["streams"][2]["accuracy"]
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("name", PLACES)
def test_stored_scores_answer_as_the_student(made: Streams, name: str) -> None:
    for run in made[1]:
        record = read_json(run.folder / "results" / f"{name}.json")
        confusion = [[0, 0], [0, 0]]
        for label, score in stored(run, name).values():
            confusion[label][score.index(max(score))] += 1
        assert confusion == record["confusion"]


def test_streams_differ_so_that_a_fusion_can_be_wrong(made: Streams) -> None:
    answers = {str(stored(run, "linear")) for run in made[1]}
    assert len(answers) == 3


def test_samples_are_matched_by_key_not_by_place(streams: Streams) -> None:
    runs = streams[1]
    before = fuse(runs, Wanted("linear")).record["results"]

    def turned(keys: list[str], label: Any, score: Any) -> tuple[list[str], Any, Any]:
        return keys[::-1], label.flip(0), score.flip(0)

    rewrite(runs[1], "linear", turned)
    assert fuse(runs, Wanted("linear")).record["results"] == before


def rewrite(run: Run, name: str, change: Callable[..., tuple[list[str], Any, Any]]) -> None:
    """Change a run's scores, with the record that names them."""
    file = run.folder / "results" / f"{name}.scores.parquet"
    table = pq.read_table(file)
    label_N = torch.tensor(table["label"].to_numpy())
    score_NC = torch.tensor(table["score"].to_pylist())
    keys, label_N, score_NC = change(table["key"].to_pylist(), label_N, score_NC)
    file.write_bytes(pack_scores(keys, label_N, [score_NC]))
    record = file.parent / f"{name}.json"
    write_json(record, read_json(record) | {"files": {"scores.parquet": digest(file.read_bytes())}})


def refusal(runs: list[Run], wanted: Wanted, weights: tuple[float, ...] = ()) -> str:
    with pytest.raises(UserError) as error:
        fuse(runs, wanted, weights)
    return str(error.value)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ((1.0, 1.0), "one weight for each run"),
        ((1.0, -1.0, 1.0), "numbers from 0 up"),
        ((1.0, float("nan"), 1.0), "numbers from 0 up"),
        ((1.0, float("inf"), 1.0), "numbers from 0 up"),
        ((0.0, 0.0, 0.0), "not all of them 0"),
    ],
)
def test_weights_must_fit(made: Streams, weights: tuple[float, ...], named: str) -> None:
    assert named in refusal(made[1], Wanted("knn"), weights)


def test_two_different_runs_are_the_least(made: Streams) -> None:
    assert "two runs at least" in refusal(made[1][:1], Wanted("knn"))
    assert "twice" in refusal([made[1][0], made[1][1], made[1][0]], Wanted("knn"))


def test_other_test_sets_are_refused(streams: Streams) -> None:
    runs = streams[1]
    rewrite(runs[2], "knn", lambda keys, label, score: (keys[3:], label[3:], score[3:]))
    message = refusal(runs, Wanted("knn"))
    assert "run run2 has no scores of 3 samples that run run0 has" in message
    gone = set(stored(runs[0], "knn")) - set(stored(runs[2], "knn"))
    assert all(key in message for key in gone)
    message = refusal(runs[::-1], Wanted("knn"))
    assert "run run2 has no scores of 3 samples that run run1 has" in message
    rewrite(runs[1], "linear", lambda keys, label, score: (keys, 1 - label, score))
    assert "15 samples have other labels in run run1 than in run run0" in refusal(
        runs, Wanted("linear")
    )


@pytest.mark.parametrize("key", ["dataset", "split", "classes"])
def test_other_data_are_refused(streams: Streams, key: str) -> None:
    runs = streams[1]
    file = runs[1].folder / "results" / "knn.json"
    value = ["rest", "turn"] if key == "classes" else "other"
    write_json(file, read_json(file) | {key: value})
    message = refusal(runs, Wanted("knn"))
    assert f"run run1 was evaluated on another {key} than run0" in message
    assert f"evaluate --protocol knn --run {runs[1].folder}" in message


def test_the_command_that_is_named_mends_it(streams: Streams) -> None:
    data, runs = streams

    def follow(message: str) -> None:
        """Do what the error says."""
        words = shlex.split(message.partition("to mend it: ")[2])
        assert words[:3] == ["skelpipe", "evaluate", "--protocol"]
        options = list(zip(words[2::2], words[3::2], strict=True))
        given = dict(options)
        subjects = tuple(map(int, given.get("--val-subjects", "").replace(",", " ").split()))
        changes = [value for name, value in options if name == "--set"]
        evaluated(
            read_run(Path(given["--run"])), data, given["--protocol"], *changes,
            kind=given.get("--features"), val_subjects=subjects,
        )  # fmt: skip

    def accuracies(wanted: Wanted) -> list[float]:
        return [stream["accuracy"] for stream in fuse(runs, wanted).record["streams"]]

    # Other settings: those of the first are asked for.
    evaluated(runs[1], data, "linear-pcm3", *PLACES["linear-pcm3"], "lr=0.5", "batch=5")
    message = refusal(runs, Wanted("linear-pcm3"))
    assert "run run1 was evaluated under other settings than run0" in message
    before = [read_json(run.folder / "results" / "linear-pcm3.json") for run in runs]
    follow(message)
    assert read_json(runs[1].folder / "results" / "linear-pcm3.json") != before[1]
    assert len(accuracies(Wanted("linear-pcm3"))) == 3
    # No record at all, of one that comes after a record.
    (runs[2].folder / "results" / "linear-pcm3.json").unlink()
    follow(refusal(runs, Wanted("linear-pcm3")))
    assert read_json(runs[2].folder / "results" / "linear-pcm3.json") == before[2]
    # Another part, and other features.
    wanted = Wanted("knn", "class", (1, 2))
    for _ in runs:
        follow(refusal(runs, wanted))
    assert len(accuracies(wanted)) == 3
    evaluated(runs[0], data, "knn", kind="class", val_subjects=(1, 3))
    assert "found: part validation subjects [1, 3]" in refusal(runs, wanted)
    # Scores of an older checkpoint, and a record from before there were scores.
    file = runs[0].folder / "results" / "knn.json"
    plain = read_json(file)
    for change in ({"checkpoint": "2"}, {"files": {}}):
        write_json(file, plain | change)
        follow(refusal(runs, Wanted("knn")))
        assert read_json(file) == plain
    # Damage, and a file that is gone.
    scores = file.with_suffix(".scores.parquet")
    whole = scores.read_bytes()
    scores.write_bytes(whole[:90] + bytes([whole[90] ^ 1]) + whole[91:])
    message = refusal(runs, Wanted("knn"))
    assert "damaged, or another evaluation's" in message
    assert str(scores) in message
    follow(message)
    assert scores.read_bytes() == whole
    scores.unlink()
    follow(refusal(runs, Wanted("knn")))
    assert scores.read_bytes() == whole


def other_scores(**changes: list[Any] | None) -> bytes:
    """A file of two repeats of samples a and b, but for these columns."""
    columns: dict[str, Any] = {"repeat": [0, 0, 1, 1], "key": ["a", "b"] * 2, "label": [0, 1] * 2}
    columns |= {"score": [[0.0, 1.0]] * 4} | changes
    rows = min(len(column) for column in columns.values() if column)
    types = {"repeat": pa.int32(), "key": pa.string(), "label": pa.int32(),
             "score": pa.list_(pa.float32(), 2)}  # fmt: skip
    buffer = BytesIO()
    table = {name: pa.array(c[:rows], types[name]) for name, c in columns.items() if c}
    pq.write_table(pa.table(table), buffer)
    return buffer.getvalue()


def test_scores_of_every_training_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "semi.scores.parquet"
    scores = torch.arange(12.0).view(2, 3, 2)
    file.write_bytes(pack_scores(["c", "a", "b"], torch.tensor([2, 0, 1]), list(scores)))
    found = read_scores(file, sha256=digest(file.read_bytes()), classes=2, remedy="")
    assert found.keys == ("a", "b", "c")
    assert found.label_N.tolist() == [0, 1, 2]
    assert torch.equal(found.score_RNC, scores[:, [1, 2, 0]])
    file.write_bytes(other_scores())
    assert read_scores(file, sha256=digest(other_scores()), classes=2, remedy="").keys == ("a", "b")


SEMI = ("runs=2", "epochs=2", "batch=4", "random.shortest=4", "hidden=4")


def test_trainings_are_fused_one_by_one(streams: Streams) -> None:
    data, runs = streams[0], streams[1][:2]
    for run in runs:
        for share in ("share=0.5", "share=0.25"):
            assert evaluated(run, data, "semi", *SEMI, share).name.startswith("semi-")
    wanted = Wanted("semi", changes=("share=0.5",))
    record = fuse(runs, wanted, (1.0, 0.25)).record
    tables = [
        pq.read_table(run.folder / "results" / "semi-50-random.scores.parquet").to_pylist()
        for run in runs
    ]
    right = [0, 0]
    for one, other in zip(*tables, strict=True):
        assert (one["repeat"], one["key"]) == (other["repeat"], other["key"])
        total = [a + 0.25 * b for a, b in zip(one["score"], other["score"], strict=True)]
        right[one["repeat"]] += total.index(max(total)) == one["label"]
    (row,) = record["results"]
    assert row["by_seed"] == [100 * count / 15 for count in right]
    assert row["accuracy"] == pytest.approx(100 * sum(right) / 30)
    assert row["std"] == pytest.approx(100 * abs(right[0] - right[1]) / 15 / 2**0.5)
    path = write_result(runs[0].folder, fuse(runs, wanted))
    assert path.name == "fused-semi-50-random.json"
    write_result(runs[0].folder, fuse(runs, Wanted("semi", changes=("share=0.25",))))
    assert len(list(path.parent.glob("fused-semi-*.json"))) == 2
    (table,) = [t for t in result_tables([record]) if t.title.startswith("Fusion")]
    assert table.rows[-1][-1] == f"{row['accuracy']:.1f} ± {row['std']:.1f}"
    # The command names the share, and labels that were drawn by another seed are not mixed in.
    gone = refusal(runs, Wanted("semi", changes=("share=0.5", "subset=balanced")))
    assert "--set share=0.5 --set 'subset=\"balanced\"'" in gone
    evaluated(runs[0], data, "semi", *SEMI, "share=0.5", seed=3)
    message = refusal(runs, wanted)
    assert "run run1 has learnt from other labels than run0" in message
    assert "--seed 3" in message
    evaluated(runs[1], data, "semi", *SEMI, "share=0.5", seed=3)
    assert fuse(runs, wanted).record["results"] != record["results"]


def test_settings_choose_what_is_fused(made: Streams) -> None:
    runs = made[1]
    assert fuse(runs, Wanted("knn", changes=("k=1",))).record == fuse(runs, Wanted("knn")).record
    message = refusal(runs, Wanted("knn", changes=("k=5",)))
    assert "for k 5" in message
    assert "found: k 1" in message
    assert message.rstrip().endswith("--set k=5")
    message = refusal(runs, Wanted("linear", changes=("random={shortest=8}",)))
    assert "for random.shortest 8" in message


@pytest.mark.parametrize(
    "data",
    [
        b"PAR1",
        b"",
        pack_scores(["a", "a"], torch.zeros(2), torch.zeros(1, 2, 2)),
        pack_scores(["a"], torch.zeros(1), torch.full((1, 1, 2), torch.nan)),
        pack_scores(["a"], torch.zeros(1), torch.zeros(1, 1, 3)),
        other_scores(repeat=[0, 1, 1]),
        other_scores(repeat=[0, 0, 0]),
        other_scores(key=["a", "b", "a", "c"]),
        other_scores(label=[0, 1, 1, 0]),
        other_scores(repeat=None),
    ],
)
def test_what_is_no_table_of_scores_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "knn.scores.parquet"
    file.write_bytes(data)
    with pytest.raises(UserError, match="scores are damaged"):
        read_scores(file, sha256=digest(data), classes=2, remedy="")


def test_other_readers_take_a_fusion_for_what_it_is(streams: Streams) -> None:
    runs = streams[1]
    before = comparable(read_results(runs[0].folder))
    assert write_result(runs[0].folder, fuse(runs, Wanted("knn"))).name == "fused-knn.json"
    records = read_results(runs[0].folder)
    assert len(records) == 4
    assert comparable(records) == before
    tables = result_tables(records)
    assert tables[-1].title.startswith("Fusion: ")
    assert tables[-1].columns == ("stream", "features", "weight", "accuracy, %")
    assert [row[0] for row in tables[-1].rows] == [
        *(f"run{number}, step 4" for number in range(3)),
        "fusion of 3 streams",
    ]
    found = fuse(runs, Wanted("linear"))
    changes = {"part": "validation subjects [1]", "features": "both"}
    other = Evaluation(found.record | changes)
    assert write_result(runs[0].folder, other).name == "fused-linear-both-val.json"
    write_page(runs[0], runs[0].folder / "page.html", title="A run")
    text = (runs[0].folder / "page.html").read_text()
    assert text.count("<h3>Fusion: ") == 2
    assert text.count("fusion of 3 streams") == 2
