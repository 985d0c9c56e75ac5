"""Arrays that others have prepared, listed and read: files as their authors' scripts write them."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import raw

from skelpipe.errors import UserError
from skelpipe.manifest import load_dataset, load_topology
from skelpipe.prepare import ntu
from skelpipe.prepare.agcn import agcn
from skelpipe.prepare.archive import Reader
from skelpipe.prepare.bodies import actors
from skelpipe.prepare.engine import Preparation, prepare
from skelpipe.prepare.formats import list_raw, read
from skelpipe.prepare.recording import RejectedError
from skelpipe.shards.index import read_index

KINECT = load_topology("kinect_v2")
LONGEST = 300
Poses = npt.NDArray[np.float64]
DEFAULTS = {"gaps": "closed", "tail": "tiled", "centre": "first"}


def recordings() -> dict[str, bytes]:
    """Recordings of one and of two people, of subjects 1 to 4 and cameras 1 to 3."""
    rng = np.random.default_rng(1)
    found = raw.some_recordings(12, frames=5)
    for number in range(12):
        bodies = [
            (raw.PERSON + 16 * person, 14 + int(rng.integers(5)), int(rng.integers(3)) * person)
            for person in range(2)
        ]
        frames = [
            [(who, raw.joints(rng)) for who, length, first in bodies if first <= t < first + length]
            for t in range(19)
        ]
        name = raw.key(
            camera=1 + number % 3, subject=1 + number % 4, replication=1 + number, action=55
        )
        found[name] = raw.skeleton(frames)
    return dict(sorted(found.items()))


RAW = recordings()


def trains(name: str) -> bool:
    return load_dataset("ntu60").splits["xsub"].part(ntu.parse_name(name).subject) == "train"


def stored(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Key -> poses of a prepared set."""
    found = {}
    for row in read_index(folder).to_pylist():
        shard = (folder / row["shard"]).read_bytes()
        data = shard[row["offset"] : row["offset"] + row["size"]]
        shape = (row["bodies"], row["frames"], 25, 3)
        found[row["key"]] = np.frombuffer(data, "<f4", offset=128).reshape(shape)
    return found


def run(place: Path | list[Path], out: Path, *splits: str, **options: Any) -> Preparation:
    options.setdefault("workers", 1)
    dataset = options.pop("dataset", "ntu60")
    places = place if isinstance(place, list) else [place]
    return prepare(dataset, splits or ["xsub"], raw=places, out=out, **options)


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """Pipeline -> key -> poses, prepared from the raw recordings."""
    folder = tmp_path_factory.mktemp("plain")
    archive = raw.write_zip(folder / "raw.zip", RAW)
    made = {}
    for pipeline in ("ctrgcn", "agcn"):
        run(archive, folder, "xsub", pipeline=pipeline)
        made[pipeline] = stored(folder / "ntu60" / pipeline / "xsub")
        assert len(made[pipeline]) == len(RAW)
    return made


# --- What the authors' scripts write ---


def one_hot(labels: list[int], classes: int) -> Poses:
    return np.eye(classes)[labels]


def ctrgcn_arrays(
    samples: dict[str, npt.NDArray[np.float32]], *, copied: bool = False, classes: int = 60
) -> dict[str, npt.NDArray[Any]]:
    """x and y of both parts; ``copied`` as in NTU RGB+D 120's, with the only body in both slots."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for part in ("train", "test"):
        names = [name for name in samples if trains(name) == (part == "train")]
        x = np.zeros((len(names), LONGEST, 150), dtype=np.float32)
        for row, name in zip(x, names, strict=True):
            poses = samples[name]
            for slot in range(2):
                if slot < len(poses) or copied:
                    body = poses[slot if slot < len(poses) else 0]
                    row[: len(body), 75 * slot : 75 * slot + 75] = body.reshape(len(body), 75)
        arrays[f"x_{part}"] = x
        arrays[f"y_{part}"] = one_hot([ntu.parse_name(n).action - 1 for n in names], classes)
    return arrays


def write_agcn(
    folder: Path, samples: dict[str, npt.NDArray[np.float32]], *, lengths: bool, protocol: int = 3
) -> Path:
    """A folder as 2s-AGCN writes it, with frame counts as skeleton-contrast does."""
    folder.mkdir(exist_ok=True)
    for part in ("train", "val"):
        names = [name for name in samples if trains(name) == (part == "train")]
        data = np.zeros((len(names), 3, LONGEST, 25, 2), dtype=np.float32)
        for row, name in zip(data, names, strict=True):
            poses = samples[name]
            tiled = poses[:, np.arange(LONGEST) % poses.shape[1]]
            row[..., : len(poses)] = tiled.transpose(3, 1, 2, 0)
        np.save(folder / f"{part}_data_joint.npy", data)
        labels = [ntu.parse_name(name).action - 1 for name in names]
        content = ([f"{name}.skeleton" for name in names], labels)
        (folder / f"{part}_label.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        if lengths:
            counts = np.array([samples[name].shape[1] for name in names])
            np.save(folder / f"{part}_num_frame.npy", counts)
    return folder


def pyskl_content() -> dict[str, Any]:
    names = list(RAW)
    cameras = {name: ntu.parse_name(name).camera for name in names}
    return {
        "split": {
            "xsub_train": [name for name in names if trains(name)],
            "xsub_val": [name for name in names if not trains(name)],
            "xview_train": [name for name in names if cameras[name] != 1],
            "xview_val": [name for name in names if cameras[name] == 1],
        },
        "annotations": [
            {
                "frame_dir": name,
                "label": ntu.parse_name(name).action - 1,
                "keypoint": actors(ntu.parse(RAW[name])).astype(np.float16),
                "total_frames": 5,
            }
            for name in names
        ],
    }


def write_pickle(file: Path, content: object, protocol: int = 2) -> Path:
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


def same(
    made: dict[str, npt.NDArray[np.float32]], expected: dict[str, npt.NDArray[np.float32]]
) -> None:
    assert made.keys() == expected.keys()
    for name, poses in expected.items():
        np.testing.assert_array_equal(made[name], poses, err_msg=name)


def nearly_same(
    made: dict[str, npt.NDArray[np.float32]], expected: dict[str, npt.NDArray[np.float32]]
) -> None:
    """Equal but for float16: half a step for a position, half a step for the origin."""
    assert made.keys() == expected.keys()
    for name, poses in expected.items():
        farthest = np.abs(ntu.parse(RAW[name]).xyz_RJC).max()
        step = float(np.spacing(np.float16(farthest)))
        assert step < 0.004  # 2 mm within 4 m
        np.testing.assert_allclose(made[name], poses, rtol=0, atol=step, err_msg=name)


# --- CTR-GCN ---


def ctrgcn_names(samples: dict[str, Any]) -> dict[str, str]:
    """The key that a sample of an npz is given -> its name."""
    found = {}
    for part in ("train", "test"):
        names = [name for name in samples if trains(name) == (part == "train")]
        found |= {f"{part}-{number:06d}": name for number, name in enumerate(names)}
    return found


@pytest.mark.parametrize("file", ["NTU60_CS.npz", "some.npz", "some"])
def test_ctr_gcn_arrays_give_what_the_recordings_give(
    file: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    place = tmp_path / file
    with place.open("wb") as opened:
        np.savez(opened, **ctrgcn_arrays(plain["ctrgcn"]))
    (made,) = run(place, tmp_path / "out", "xsub").sets
    names = ctrgcn_names(plain["ctrgcn"])
    same({names[key]: poses for key, poses in stored(made.folder).items()}, plain["ctrgcn"])
    card = made.card
    assert card.source.layout == "ctrgcn-npz"
    assert (card.counts.train.samples, card.counts.test.samples) == (18, 6)
    assert card.counts.published == {"train": 40091, "test": 16487}
    assert card.counts.total.subjects == {}
    assert card.counts.total.classes == {0: 12, 54: 12}
    assert "prepared by CTR-GCN's code, in float32" in card.warnings
    rows = read_index(made.folder).to_pylist()
    for row in rows:
        assert row["label"] == ntu.parse_name(names[row["key"]]).action - 1
        assert row["part"] == ("train" if trains(names[row["key"]]) else "test")


def test_a_copied_only_body_is_left_out(plain: dict[str, Any], tmp_path: Path) -> None:
    arrays = ctrgcn_arrays(plain["ctrgcn"], copied=True, classes=120)
    np.savez(tmp_path / "NTU120_CSub.npz", **arrays)
    (made,) = run(tmp_path / "NTU120_CSub.npz", tmp_path / "out", "xsub", dataset="ntu120").sets
    names = ctrgcn_names(plain["ctrgcn"])
    same({names[key]: poses for key, poses in stored(made.folder).items()}, plain["ctrgcn"])


def test_a_compressed_npz_is_to_be_unpacked_and_then_read(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    arrays = ctrgcn_arrays(plain["ctrgcn"])
    np.savez(tmp_path / "whole.npz", **arrays)
    file = tmp_path / "packed.npz"
    np.savez_compressed(file, **arrays)
    with pytest.raises(UserError, match=r"compressed(.*\n)*.*unzip packed\.npz"):
        run(file, tmp_path / "out")
    with zipfile.ZipFile(file) as opened:
        opened.extractall(tmp_path / "arrays")
    (unpacked,) = run(tmp_path / "arrays", tmp_path / "a").sets
    (whole,) = run(tmp_path / "whole.npz", tmp_path / "b").sets
    assert unpacked.card.data_digest == whole.card.data_digest
    # What is small is read though it is packed.
    with zipfile.ZipFile(tmp_path / "mixed.npz", "w") as mixed:
        for name in arrays:
            how = zipfile.ZIP_DEFLATED if name.startswith("y") else zipfile.ZIP_STORED
            mixed.write(tmp_path / "arrays" / f"{name}.npy", f"{name}.npy", how)
    (third,) = run(tmp_path / "mixed.npz", tmp_path / "c").sets
    assert third.card.data_digest == whole.card.data_digest


def test_one_split_must_be_named_and_fit_the_file(plain: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "NTU60_CV.npz"
    np.savez(place, **ctrgcn_arrays(plain["ctrgcn"]))
    with pytest.raises(UserError, match="do not say of which"):
        run(place, tmp_path / "out", "xsub", "xview")
    with pytest.raises(UserError, match=r"another split than xsub(.*\n)*.*--split xview"):
        run(place, tmp_path / "out", "xsub")
    (made,) = run(place, tmp_path / "out", "xview").sets
    assert made.card.counts.train.samples == 18
    place.rename(tmp_path / "some.npz")
    assert run(tmp_path / "some.npz", tmp_path / "other", "xsub").sets[0].fresh


def test_rows_that_cannot_be_used_are_rejected(plain: dict[str, Any], tmp_path: Path) -> None:
    arrays = ctrgcn_arrays(plain["ctrgcn"])
    arrays["y_train"][0] = 0
    arrays["y_train"][1, :2] = 1
    arrays["y_train"][2] *= 0.5
    arrays["x_train"][3, 2, 5] = np.nan
    arrays["x_train"][4, 299, 149] = np.inf
    arrays["x_train"][5] = 0
    arrays["x_test"][0, 0, 0] = 1e7
    np.savez(tmp_path / "some.npz", **arrays)
    (made,) = run(tmp_path / "some.npz", tmp_path / "out").sets
    assert made.card.counts.rejected == {
        "no single class": 3, "no number in x, y, z": 3, "empty clip": 1
    }  # fmt: skip
    lines = (made.folder / "rejected.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "key": "train-000000",
        "source": "some.npz:x_train[0]",
        "reason": "no single class: found 0 marked",
    }


def bad_npz(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, dict[str, Any]]:
    whole = dict(arrays)
    return {
        "shape": whole | {"x_train": whole["x_train"][:, :, :75]},
        "axes": whole | {"x_train": whole["x_train"].reshape(-1, LONGEST, 2, 75)},
        "whole numbers": whole | {"x_train": whole["x_train"].astype(np.int32)},
        "order of axes": whole | {"x_train": np.asfortranarray(whole["x_train"])},
        "objects": whole | {"x_train": np.array([{}], dtype=object)},
        "classes": whole | {"y_train": whole["y_train"][:, :51]},
        "number of labels": whole | {"y_train": whole["y_train"][:-1]},
        "labels in words": whole | {"y_train": whole["y_train"].astype(str)},
        "labels as objects": whole | {"y_train": whole["y_train"].astype(object)},
        "no labels": {name: array for name, array in whole.items() if name != "y_train"},
        "no test": {name: array for name, array in whole.items() if "test" not in name},
        "not centred": whole | {"x_train": whole["x_train"] + 1, "x_test": whole["x_test"] + 1},
    }


def test_arrays_of_another_kind_are_an_error(plain: dict[str, Any], tmp_path: Path) -> None:
    for number, (what, arrays) in enumerate(bad_npz(ctrgcn_arrays(plain["ctrgcn"])).items()):
        place = tmp_path / f"{number}.npz"
        np.savez(place, **arrays)
        with pytest.raises(UserError) as caught:
            run(place, tmp_path / "out")
        assert str(place) in str(caught.value), what
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_headers_and_sizes_are_not_trusted(plain: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", **ctrgcn_arrays(plain["ctrgcn"]))
    data = (tmp_path / "whole.npz").read_bytes()
    shape = b"(18, 300, 150)"
    assert data.count(shape) == 1
    damaged = {
        "cut": data[: len(data) // 2],
        "cut in the directory": data[:-30],
        "10^12 elements": data.replace(shape, b"(9999999,4096)"),
        "another dtype": data.replace(b"<f4", b"|O8", 1),
        "no header": data.replace(b"\x93NUMPY", b"\x93NUMBY", 1),
    }
    for what, bytes_ in damaged.items():
        place = tmp_path / "damaged.npz"
        place.write_bytes(bytes_)
        with pytest.raises(UserError) as caught:
            run(place, tmp_path / "out")
        assert "damaged" in str(caught.value), what


def test_a_bomb_is_not_inflated(plain: dict[str, Any], tmp_path: Path) -> None:
    arrays = ctrgcn_arrays(plain["ctrgcn"])
    place = tmp_path / "bomb.npz"
    np.savez(place, **{name: arrays[name] for name in ("x_train", "x_test", "y_test")})
    with (
        zipfile.ZipFile(place, "a", zipfile.ZIP_DEFLATED) as opened,
        opened.open("y_train.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(100):
            member.write(bytes(1 << 20))
    with pytest.raises(UserError, match="too large"):
        run(place, tmp_path / "out")


# --- 2s-AGCN ---


@pytest.mark.parametrize(("lengths", "protocol"), [(True, 0), (True, 4), (False, 2)])
def test_2s_agcn_arrays_give_what_the_recordings_give(
    lengths: bool, protocol: int, plain: dict[str, Any], tmp_path: Path
) -> None:
    samples = plain["agcn"]
    folder = write_agcn(tmp_path / "arrays", samples, lengths=lengths, protocol=protocol)
    options = {"pipeline": "agcn"}
    xsub, xview = run(folder, tmp_path / "out", "xsub", "xview", **options).sets
    expected = samples
    if not lengths:
        frames = np.arange(LONGEST)
        expected = {name: p[:, frames % p.shape[1]] for name, p in samples.items()}
    same(stored(xsub.folder), expected)
    same(stored(xview.folder), expected)
    assert xsub.card.source.layout == "2s-agcn-npy"
    assert (xsub.card.counts.train.samples, xview.card.counts.test.samples) == (18, 8)
    assert xsub.card.counts.total.subjects == {1: 6, 2: 6, 3: 6, 4: 6}
    assert "prepared by 2s-AGCN's code, in float32" in xsub.card.warnings
    assert any("frame counts" in text for text in xsub.card.warnings) != lengths
    files = [folder / "val_data_joint.npy", folder / "val_label.pkl"]
    (part,) = run(files, tmp_path / "part", "xsub", **options).sets
    assert (part.card.counts.train.samples, part.card.counts.test.samples) == (0, 6)


def test_a_trailing_emptiness_is_cut_where_no_length_is_known(tmp_path: Path) -> None:
    poses = agcn(ntu.parse(next(iter(RAW.values()))), KINECT, DEFAULTS)
    samples = dict.fromkeys(RAW, poses)
    folder = write_agcn(tmp_path / "arrays", samples, lengths=False)
    for part in ("train", "val"):
        data = np.load(folder / f"{part}_data_joint.npy")
        data[:, :, poses.shape[1] :] = 0
        np.save(folder / f"{part}_data_joint.npy", data)
    (made,) = run(folder, tmp_path / "out", pipeline="agcn").sets
    same(stored(made.folder), samples)


def broken_agcn(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    joints, labels = folder / "train_data_joint.npy", folder / "train_label.pkl"
    counts = folder / "train_num_frame.npy"
    data, names = np.load(joints), pickle.loads(labels.read_bytes())
    yield "fit the arrays", lambda: np.save(joints, data[:-1])
    yield "of another shape", lambda: np.save(joints, data[..., :1])
    yield "of another shape", lambda: np.save(joints, data[:, :2])
    yield "of another shape", lambda: np.save(joints, data[:, :, :, :17])
    yield "damaged", lambda: joints.write_bytes(joints.read_bytes()[:-1000])
    yield "labels of these arrays are missing", labels.unlink
    yield "something else", lambda: write_pickle(labels, names[0])
    yield "something else", lambda: write_pickle(labels, (names[1], names[0]))
    yield "something else", lambda: write_pickle(labels, (names[0], names[0]))
    yield "damaged, or none", lambda: labels.write_bytes(labels.read_bytes()[:-40])
    yield "fit the arrays", lambda: np.save(counts, np.ones(3, int))
    yield "something else", lambda: np.save(counts, np.full(18, 1.5))


def test_broken_2s_agcn_arrays_are_an_error(plain: dict[str, Any], tmp_path: Path) -> None:
    whole = write_agcn(tmp_path / "whole", plain["agcn"], lengths=True)
    for number in range(len(list(broken_agcn(whole)))):
        folder = write_agcn(tmp_path / str(number), plain["agcn"], lengths=True)
        message, breaks = list(broken_agcn(folder))[number]
        breaks()
        with pytest.raises(UserError, match=message):
            run(folder, tmp_path / "out", pipeline="agcn")


def test_arrays_that_were_never_normalised_are_an_error(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    samples = {name: poses + np.float32(1) for name, poses in plain["agcn"].items()}
    folder = write_agcn(tmp_path / "arrays", samples, lengths=True)
    with pytest.raises(UserError, match="not centred"):
        run(folder, tmp_path / "out", pipeline="agcn")


def test_samples_of_2s_agcn_that_cannot_be_used_are_rejected(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_agcn(tmp_path / "arrays", plain["agcn"], lengths=True)
    names, labels = pickle.loads((folder / "train_label.pkl").read_bytes())
    names[0] = "../../etc/passwd"
    labels[1] += 1
    names[3], labels[3] = names[2], labels[2]
    write_pickle(folder / "train_label.pkl", (names, labels))
    counts = np.load(folder / "train_num_frame.npy")
    counts[4] = 0
    np.save(folder / "train_num_frame.npy", counts)
    (made,) = run(folder, tmp_path / "out", pipeline="agcn").sets
    assert made.card.counts.rejected == {
        "wrong name": 1,
        "another label than its name says": 1,
        "the same name twice": 1,
        "wrong frame count": 1,
    }
    assert made.card.counts.train.samples == 14


# --- pyskl ---


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pyskl_pickle_gives_what_the_recordings_give(
    protocol: int, plain: dict[str, Any], tmp_path: Path
) -> None:
    place = write_pickle(tmp_path / "ntu60_3danno.pkl", pyskl_content(), protocol)
    xsub, xview = run(place, tmp_path / "out", "xsub", "xview").sets
    nearly_same(stored(xsub.folder), plain["ctrgcn"])
    nearly_same(stored(xview.folder), plain["ctrgcn"])
    assert xsub.card.source.layout == "pyskl-pickle"
    assert (xsub.card.counts.train.samples, xview.card.counts.test.samples) == (18, 8)
    assert "prepared by pyskl, in float16" in xsub.card.warnings
    assert xsub.card.counts.total.cameras == {1: 8, 2: 8, 3: 8}


def test_pyskl_positions_can_be_left_where_the_camera_saw_them(tmp_path: Path) -> None:
    place = write_pickle(tmp_path / "some.pickle", pyskl_content())
    (made,) = run(place, tmp_path / "out", switches={"centre": "none"}).sets
    for name, poses in stored(made.folder).items():
        np.testing.assert_array_equal(poses, actors(ntu.parse(RAW[name])).astype(np.float16))


def test_annotations_that_cannot_be_used_are_rejected(tmp_path: Path) -> None:
    content = pyskl_content()
    some = content["annotations"]
    train = content["split"]["xsub_train"]
    some[0]["label"] = 59
    some[1]["keypoint"] = some[1]["keypoint"][:, :, :17]
    some[2]["keypoint"] = None
    some[3]["keypoint"] = np.full_like(some[3]["keypoint"], np.nan)
    some[4]["keypoint"] = np.zeros_like(some[4]["keypoint"])
    swapped = content["split"]["xsub_val"][-1]
    content["split"]["xsub_val"].remove(swapped)
    train.append(swapped)
    nowhere = next(name for name in reversed(train) if name != swapped)
    train.remove(nowhere)
    (made,) = run(write_pickle(tmp_path / "some.pkl", content), tmp_path / "out").sets
    assert made.card.counts.rejected == {
        "another label than its name says": 1,
        "wrong shape": 1,
        "no array of positions": 1,
        "no number in x, y, z": 1,
        "empty clip": 1,
        "in the wrong list of xsub": 1,
        "not in the lists of xsub": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "something else"),
        ({"split": {}, "annotations": [{"frame_dir": 1}]}, "something else"),
        ({"split": {}, "annotations": []}, "none of the samples"),
        (
            {
                "split": {"xsub_train": ["a"]},
                "annotations": [
                    {"frame_dir": "a", "label": 1, "keypoint": np.ones((1, 9, 17, 2), np.float16)}
                ],
            },
            "3-D keypoints",
        ),
    ],
)
def test_other_pickles_are_an_error(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(write_pickle(tmp_path / "some.pkl", content), tmp_path / "out")


def test_protocol_0_of_a_pyskl_pickle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="protocol"):
        run(write_pickle(tmp_path / "some.pkl", pyskl_content(), 0), tmp_path / "out")


def test_a_pickle_with_code_is_an_error_and_not_run(tmp_path: Path) -> None:
    content = b"\x80\x04}\x8c\x05split\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85Rs."
    (tmp_path / "some.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"os\.system"):
        run(tmp_path / "some.pkl", tmp_path / "out")


def test_a_file_of_ntu_120_serves_ntu_60(plain: dict[str, Any], tmp_path: Path) -> None:
    content = pyskl_content()
    name = raw.key(setup=20, subject=50, action=100)
    keypoint = content["annotations"][0]["keypoint"]
    content["annotations"].append({"frame_dir": name, "label": 99, "keypoint": keypoint})
    content["split"]["xsub_train"].append(name)
    place = write_pickle(tmp_path / "some.pkl", content)
    result = run(place, tmp_path / "out")
    nearly_same(stored(result.sets[0].folder), plain["ctrgcn"])
    assert any("left out 1 samples" in note for note in result.notes)


# --- What the authors' code gave on real motion with every oddity ---


@pytest.mark.parametrize("layout", ["ctrgcn-npz", "2s-agcn-npy"])
def test_published_outputs_give_what_their_recordings_give(
    layout: str, real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "odd"
    if not folder.is_dir():
        pytest.skip(f"no odd recordings in {folder}")
    pipeline = {"ctrgcn-npz": "ctrgcn", "2s-agcn-npy": "agcn"}[layout]
    with np.load(folder / f"{pipeline}.npz") as arrays:
        published = {name: np.asarray(arrays[name]) for name in arrays.files}
    if pipeline == "ctrgcn":
        published = {name: poses.swapaxes(0, 1) for name, poses in published.items()}
        place = tmp_path / "some.npz"
        np.savez(place, **ctrgcn_arrays(published, copied=True))
    else:
        place = write_agcn(tmp_path / "arrays", published, lengths=True)
    archive = folder / "odd_ntu.zip"
    (expected,) = run(archive, tmp_path / "plain", pipeline=pipeline).sets
    (made,) = run(place, tmp_path / "out", pipeline=pipeline).sets
    got = stored(made.folder)
    if pipeline == "ctrgcn":
        names = ctrgcn_names(published)
        got = {names[key]: poses for key, poses in got.items()}
    plain = stored(expected.folder)
    assert got.keys() == plain.keys()
    assert len(got) >= 58
    for name, poses in plain.items():
        np.testing.assert_allclose(got[name], poses, rtol=0, atol=1e-5, err_msg=name)


# --- PKU-MMD: names say nothing of the part, and arrays are not centred ---


def test_pku_arrays_are_centred_and_belong_to_the_split_asked_for(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    usable = {name: poses for name, poses in plain["ctrgcn"].items() if "A055" in name}
    few = dict(item for item in plain["ctrgcn"].items() if "C001" in item[0]) | usable
    moved = {name: poses + np.float32([1, 2, 3]) for name, poses in few.items()}
    for name, poses in few.items():
        moved[name][~poses.any(axis=(2, 3))] = 0
    arrays = ctrgcn_arrays(moved)
    for part in ("train", "test"):
        arrays[f"y_{part}"] = arrays[f"y_{part}"][:, 9:]
    np.savez(tmp_path / "some.npz", **arrays)
    names = ctrgcn_names(moved)
    (made,) = run(tmp_path / "some.npz", tmp_path / "out", "xview", dataset="pku2").sets
    got = {names[key]: poses for key, poses in stored(made.folder).items()}
    assert got.keys() == usable.keys()
    for name, poses in usable.items():
        np.testing.assert_allclose(got[name], poses, rtol=0, atol=1e-5)
    assert made.card.counts.rejected == {"no single class": 4}


def test_names_that_are_not_ntus_go_by_part(plain: dict[str, Any], tmp_path: Path) -> None:
    folder = write_agcn(tmp_path / "arrays", plain["agcn"], lengths=True)
    for part, samples in (("train", 18), ("val", 6)):
        content = ([f"clip_{part}_{number}" for number in range(samples)], [50] * samples)
        write_pickle(folder / f"{part}_label.pkl", content)
    options = {"dataset": "pku1", "pipeline": "agcn"}
    with pytest.raises(UserError, match="do not say of which"):
        run(folder, tmp_path / "out", "xsub", "xview", **options)
    (made,) = run(folder, tmp_path / "out", "xsub", **options).sets
    assert (made.card.counts.train.samples, made.card.counts.test.samples) == (18, 6)
    assert {"clip_train_0", "clip_val_5"} <= stored(made.folder).keys()


# --- What was asked for ---


def test_what_has_been_done_already_cannot_be_asked_for(
    plain: dict[str, Any], tmp_path: Path
) -> None:
    npz = tmp_path / "some.npz"
    np.savez(npz, **ctrgcn_arrays(plain["ctrgcn"]))
    folder = write_agcn(tmp_path / "arrays", plain["agcn"], lengths=True)
    pyskl = write_pickle(tmp_path / "some.pkl", pyskl_content())
    for place, options, message in [
        (npz, {"pipeline": "agcn"}, "made with pipeline 'ctrgcn'"),
        (pyskl, {"pipeline": "agcn"}, "made with pipeline 'ctrgcn'"),
        (folder, {"pipeline": "ctrgcn"}, "made with pipeline 'agcn'"),
        (npz, {"pipeline": "recordings"}, "made with pipeline 'ctrgcn'"),
        (npz, {"switches": {"centre": "none"}}, "switch 'centre' has no effect"),
        (npz, {"switches": {"gaps": "kept"}}, "switch 'gaps' has no effect"),
        (pyskl, {"switches": {"gaps": "kept"}}, "switch 'gaps' has no effect"),
        (folder, {"pipeline": "agcn", "switches": {"tail": "zeros"}}, "switch 'tail' has no"),
        (npz, {"missing_list": tmp_path / "list.txt"}, "missing list has no effect"),
    ]:
        with pytest.raises(UserError, match=message):
            run(place, tmp_path / "out", "xsub", **options)


def test_other_raw_data_beside_arrays_are_an_error(plain: dict[str, Any], tmp_path: Path) -> None:
    npz = tmp_path / "some.npz"
    np.savez(npz, **ctrgcn_arrays(plain["ctrgcn"]))
    archive = raw.write_zip(tmp_path / "raw.zip", RAW)
    pyskl = write_pickle(tmp_path / "some.pkl", pyskl_content())
    agcn_folder = write_agcn(tmp_path / "arrays", plain["agcn"], lengths=True)
    for places in ([npz, archive], [npz, pyskl], [pyskl, agcn_folder], [npz, tmp_path / "nothing"]):
        with pytest.raises(UserError, match="cannot be mixed"):
            run(places, tmp_path / "out")
    shutil.copy(npz, tmp_path / "same.npz")
    with pytest.raises(UserError, match="several sets"):
        run([npz, tmp_path / "same.npz"], tmp_path / "out")
    # In a folder that holds archives they are passed over, as ever.
    assert run(tmp_path, tmp_path / "out").sets[0].card.source.layout == "ntu"


def test_the_same_bytes_for_any_number_of_workers(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skelpipe.prepare.plan.SHARD_BYTES", 8000)
    np.savez(tmp_path / "some.npz", **ctrgcn_arrays(plain["ctrgcn"]))
    pyskl = write_pickle(tmp_path / "some.pkl", pyskl_content())
    for place in (tmp_path / "some.npz", pyskl):
        name = place.suffix[1:]
        run(place, tmp_path / f"{name}-1", workers=1)
        run(place, tmp_path / f"{name}-2", workers=2)
        files = raw.all_files(tmp_path / f"{name}-1")
        assert len(files) > 5
        assert raw.all_files(tmp_path / f"{name}-2") == files
    assert not run(pyskl, tmp_path / "pkl-1").sets[0].fresh


# --- Mutations ---


def mutated(data: bytes, rng: np.random.Generator, near: list[int]) -> bytes:
    """Bytes changed, cut out or doubled, most of them near places where headers are."""
    bytes_ = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.choice(near) + rng.integers(-60, 160)) % len(bytes_)
        match int(rng.integers(4)):
            case 0:
                bytes_[at] = int(rng.integers(256))
            case 1:
                del bytes_[at : at + int(rng.integers(1, 30))]
            case 2:
                bytes_[at:at] = bytes_[at : at + int(rng.integers(1, 30))]
            case 3:
                bytes_[at : at + 4] = rng.bytes(4)
    return bytes(bytes_)


@pytest.mark.parametrize(
    "count", [pytest.param(60, id="some"), pytest.param(1500, id="many", marks=pytest.mark.slow)]
)
def test_mutated_npz_give_our_errors_or_samples(
    count: int, plain: dict[str, Any], tmp_path: Path
) -> None:
    few = dict(list(plain["ctrgcn"].items())[:3])
    few |= dict(list(plain["ctrgcn"].items())[-3:])
    np.savez(tmp_path / "whole.npz", **ctrgcn_arrays(few))
    data = (tmp_path / "whole.npz").read_bytes()
    near = [at for at in range(len(data)) if data[at : at + 2] in (b"PK", b"\x93N")]
    rng = np.random.default_rng(count)
    dataset = load_dataset("ntu60")
    refused = 0
    for _ in range(count):
        place = tmp_path / "mutated.npz"
        place.write_bytes(mutated(data, rng, near))
        try:
            listing = list_raw(
                dataset,
                [place],
                splits=["xsub"],
                pipeline="ctrgcn",
                switches={"gaps": "closed", "centre": "first"},
                missing_list=None,
            )
            with Reader() as reader:
                for unit in listing.units:
                    poses = read(unit, dataset, reader).slots()
                    assert poses.shape[2:] == (25, 3)
                    assert np.isfinite(poses).all()
        except (UserError, RejectedError):
            refused += 1
    assert count / 4 < refused <= count
