from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skelpipe.errors import UserError
from skelpipe.manifest import ArrayDataset, topology_of
from skelpipe.prepare.archive import LARGEST, Reader
from skelpipe.prepare.array_texts import as_array, parse_csv, parse_json, under
from skelpipe.prepare.arrays import apart, arrange, read
from skelpipe.prepare.arrays_listing import list_arrays
from skelpipe.prepare.listing import Listing
from skelpipe.prepare.npy import parse_npy
from skelpipe.prepare.recording import RejectedError

Poses = npt.NDArray[np.float64]

JOINTS = ["hip", "head", "left", "right"]


def manifest(home: Path, changes: dict[str, Any] | None = None, **source: Any) -> ArrayDataset:
    """A manifest of four joints whose label stands in a sample's name, as in "wave-3"."""
    table = {
        "name": "mine",
        "title": "Mine",
        "fps": 30,
        "skeleton": {
            "joints": JOINTS,
            "parents": ["none", "hip", 0, "hip"],
            "mirror": [["left", "right"]],
            "parts": {"trunk": ["hip", "head"], "arms": [2, "right"]},
            "up": "y",
            "unit": "m",
        },
        "source": {"path": "*.npy", "axes": "MTJC", **source},
        "labels": {"pattern": "(.+)-"},
        "splits": {"half": {"by": {"pattern": r"-(\d+)"}, "train": [0, 1], "test": [2, 3]}},
        **(changes or {}),
    }
    dataset = ArrayDataset.model_validate(table)
    dataset._file = home / "my.toml"
    return dataset


def poses(seed: int, frames: int = 5, bodies: int = 2) -> Poses:
    """Multiples of 1/64, which float32 and float64 hold alike."""
    rng = np.random.default_rng(seed)
    return rng.integers(-200, 200, (bodies, frames, len(JOINTS), 3)) / 64


SAMPLES = {f"{action}-{number}": poses(number + len(action)) for action in ("wave", "sit")
           for number in range(4)}  # fmt: skip


def read_all(dataset: ArrayDataset, listing: Listing | None = None) -> dict[str, Poses]:
    """Key -> what is read of each sample."""
    listing = listing or list_arrays(dataset, [])
    with Reader() as reader:
        return {
            unit.clips[0].key: read(unit.member, dataset, reader).slots() for unit in listing.units
        }


def check(dataset: ArrayDataset, expected: dict[str, Poses]) -> Listing:
    listing = list_arrays(dataset, [])
    found = read_all(dataset, listing)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert np.array_equal(found[key], values), key
    assert not listing.refused
    return listing


# --- one sample a file, or an array of its own ---


def test_npy_files(tmp_path: Path) -> None:
    for name, values in SAMPLES.items():
        np.save(tmp_path / name, np.asfortranarray(values) if "wave" in name else values)
    listing = check(manifest(tmp_path), SAMPLES)
    assert listing.classes == ("sit", "wave")
    first = listing.units[0]
    assert (first.source, first.clips[0].label, first.parts) == ("sit-0.npy", 0, {"half": "train"})


def test_csv_files(tmp_path: Path) -> None:
    for number, (name, values) in enumerate(SAMPLES.items()):
        rows = values[0].reshape(len(values[0]), -1)
        numbered = np.column_stack([np.arange(len(rows)), rows])
        separator = ",;\t "[number % 4]
        lines = [separator.join(map(str, row)) for row in numbered.tolist()]
        if number % 3:
            lines.insert(0, separator.join(["t", *(f'"{j}.{a}"' for j in JOINTS for a in "xyz")]))
        (tmp_path / f"{name}.csv").write_bytes(
            ("\r\n" if number % 2 else "\n").join(lines).encode()
        )
    dataset = manifest(tmp_path, path="*.csv", axes="T(JC)", skip=1)
    check(dataset, {name: values[:1] for name, values in SAMPLES.items()})


def test_json_files_with_keys(tmp_path: Path) -> None:
    for name, values in SAMPLES.items():
        action, _, who = name.partition("-")
        document = {"meta": {"action": action, "who": int(who)}, "poses": values.tolist()}
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    changes = {
        "labels": {"column": "meta.action"},
        "subjects": {"column": "meta.who"},
        "splits": {"xsub": {"by": "subject", "train": [0, 1], "test": [2], "neither": [3]}},
    }
    listing = check(manifest(tmp_path, changes, path="*.json", data="poses"), SAMPLES)
    assert "subjects are numbered from 1: 0 = 1, 1 = 2, 2 = 3, 3 = 4" in listing.notes
    assert "xsub: left out 2 samples that the manifest puts in neither part" in listing.notes
    assert [unit.parts.get("xsub") for unit in listing.units][:4] == [
        "train",
        "train",
        "test",
        None,
    ]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_an_array_for_each_sample(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "all.npz", **SAMPLES)
    check(manifest(tmp_path, path="all.npz"), SAMPLES)
    named = {f"all_{name}": values for name, values in SAMPLES.items()}
    assert read_all(manifest(tmp_path, path="*.npz")).keys() == named.keys()


def test_hdf5_with_a_group_for_each_sample(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name, values in SAMPLES.items():
            group = file.create_group(name)
            group["joints"] = values.transpose(3, 1, 2, 0)
            group["joints"].attrs["action"] = name.partition("-")[0].encode()
            group.attrs["who"] = int(name[-1]) + 1
            group["day"] = "train" if name[-1] in "01" else "test"
    changes = {
        "labels": {"column": "action"},
        "subjects": {"column": "who"},
        "splits": {"days": {"by": {"column": "day"}}},
    }
    dataset = manifest(tmp_path, changes, path="all.h5", data="*/joints", axes="CTJM")
    listing = check(dataset, SAMPLES)
    assert listing.classes == ("sit", "wave")
    assert [unit.clips[0].subject for unit in listing.units] == [1, 2, 3, 4] * 2
    assert [unit.parts["days"] for unit in listing.units][:3] == ["train", "train", "test"]
    assert listing.units[0].source == "all.h5:sit-0/joints"


def test_a_filter_that_is_not_there_rejects_the_sample(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w", libver="earliest") as file:
        for name, values in SAMPLES.items():
            file.create_dataset(name, data=values, compression="gzip")
    whole = (tmp_path / "all.h5").read_bytes()
    deflate = b"\x01\x00\x08\x00\x01\x00\x01\x00deflate"  # its number, then its name
    other = whole.replace(deflate, b"\x01\x7d\x08\x00\x01\x00\x01\x00deflate", 1)
    assert other != whole
    (tmp_path / "all.h5").write_bytes(other)
    dataset = manifest(tmp_path, path="all.h5", data="*")
    listing = list_arrays(dataset, [])
    assert len(read_all(dataset, listing)) == len(SAMPLES) - 1
    ((_, _, reason),) = listing.refused
    assert reason == "compressed by a filter that is not there: found 'deflate', number 32001"


# --- many samples in one array or column ---

NAMES = list(SAMPLES)
STACK = np.stack(list(SAMPLES.values()))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_one_array_for_all_samples(tmp_path: Path, save: Callable[..., None]) -> None:
    labels = [name.partition("-")[0] == "wave" for name in NAMES]
    save(tmp_path / "all.npz", x=STACK, y=np.array(labels, dtype=np.int64), names=np.array(NAMES))
    changes = {"labels": {"column": "y", "first": 0}, "classes": ["sit", "wave"]}
    dataset = manifest(tmp_path, changes, path="all.npz", axes="NMTJC", data="x", names="names")
    listing = check(dataset, SAMPLES)
    assert [unit.clips[0].label for unit in listing.units] == [0] * 4 + [1] * 4
    assert sum(unit.size for unit in listing.units) == STACK.nbytes


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_padded_and_ragged_arrays_with_lengths(tmp_path: Path, save: Callable[..., None]) -> None:
    lengths = [1 + number % 5 for number in range(len(NAMES))]
    cut = {name: SAMPLES[name][:1, :frames] for name, frames in zip(NAMES, lengths, strict=True)}
    save(
        tmp_path / "all.npz",
        padded=STACK[:, 0],
        ragged=np.concatenate([values[0] for values in cut.values()]).reshape(-1, 12),
        frames=lengths,
        names=np.array(NAMES, dtype="S"),
    )
    common = {"path": "all.npz", "lengths": "frames", "names": "names"}
    check(manifest(tmp_path, axes="NTJC", data="padded", **common), cut)
    check(manifest(tmp_path, axes="T(JC)", data="ragged", **common), cut)


def test_hdf5_with_one_array_for_all_samples(tmp_path: Path) -> None:
    lengths = [1 + number % 5 for number in range(len(NAMES))]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_dataset("a/x", data=STACK, chunks=True, compression="gzip")
        file["names"] = NAMES
        file["frames"] = lengths
        flat = [SAMPLES[name][0, :frames] for name, frames in zip(NAMES, lengths, strict=True)]
        file["ragged"] = np.concatenate(flat)
    common = {"path": "all.h5", "names": "names"}
    check(manifest(tmp_path, axes="NMTJC", data="a/x", **common), SAMPLES)
    cut = {name: SAMPLES[name][:1, :n] for name, n in zip(NAMES, lengths, strict=True)}
    check(manifest(tmp_path, axes="TJC", data="ragged", lengths="frames", **common), cut)


def test_one_npy_file_for_all_samples_with_a_table(tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", STACK)
    rows = [f"{number},{name.partition('-')[0]}" for number, name in enumerate(NAMES)]
    (tmp_path / "labels.csv").write_text("\n".join(["sample,action", *rows]), encoding="utf-8")
    changes = {
        "labels": {"table": "labels.csv", "column": "action"},
        "splits": {"half": {"by": {"table": "labels.csv", "column": "action", "key": "sample"},
                            "train": ["wave"], "test": ["sit"]}},
    }  # fmt: skip
    dataset = manifest(tmp_path, changes, path="all.npy", axes="NMTJC")
    check(dataset, {str(number): values for number, values in enumerate(STACK)})


def column_of(samples: Sequence[Poses], kind: str) -> pa.Array:
    match kind:
        case "nested":
            return pa.array([values.tolist() for values in samples])
        case "flat":
            return pa.array([values.ravel() for values in samples], pa.large_list(pa.float32()))
        case "fixed":
            flat = pa.array(np.concatenate([values.ravel() for values in samples]))
            return pa.FixedSizeListArray.from_arrays(flat, samples[0].size)
        case _:
            return pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(samples))


@pytest.mark.parametrize("kind", ["nested", "flat", "fixed", "tensor"])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns_of_lists(tmp_path: Path, kind: str, suffix: str) -> None:
    table = pa.table(
        {
            "id": NAMES,
            "action": [name.partition("-")[0] for name in NAMES],
            "who": [int(name[-1]) + 1.0 for name in NAMES],
            "poses": column_of(list(SAMPLES.values()), kind),
        }
    )
    if suffix == "parquet":
        pq.write_table(table, tmp_path / "all.parquet", row_group_size=3)
    else:
        with pa.ipc.new_file(str(tmp_path / "all.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    changes = {
        "labels": {"column": "action"},
        "subjects": {"column": "who"},
        "splits": {"xsub": {"by": "subject", "train": [1, 2], "test": ["3", "4"]}},
    }
    axes = "(MTJC)" if kind in ("flat", "fixed") else "MTJC"
    bodies = {"bodies": 2} if kind in ("flat", "fixed") else {}
    dataset = manifest(
        tmp_path, changes, path=f"all.{suffix}", data="poses", names="id", axes=axes, **bodies
    )
    listing = check(dataset, SAMPLES)
    assert [unit.clips[0].subject for unit in listing.units] == [1, 2, 3, 4] * 2


# --- what becomes of positions ---


@pytest.mark.parametrize(
    ("axes", "order", "bodies"),
    [
        ("MTJC", "mtjc", None), ("TMJC", "tmjc", None), ("CTJM", "ctjm", None),
        ("T(MJC)", "tmjc", None), ("(TM)(JC)", "tmjc", 2), ("(MT)JC", "mtjc", 2),
        ("(JC)MT", "jcmt", None), ("C(TJ)M", "ctjm", None), ("(TMCJ)", "tmcj", 2),
    ],
)  # fmt: skip
def test_axes_in_any_order(axes: str, order: str, bodies: int | None) -> None:
    expected = poses(1, frames=7)
    shape: list[int] = []
    laid = np.einsum(f"mtjc->{order}", expected)
    dataset = manifest(Path(), axes=axes, **({"bodies": bodies} if bodies else {}))
    sizes = dict(zip(order.upper(), laid.shape, strict=True))
    for group in dataset.source.groups:
        shape.append(int(np.prod([sizes[letter] for letter in group])))
    assert np.array_equal(arrange(laid.reshape(shape), dataset).slots(), expected)


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_the_axis_that_points_up_is_turned_to_y(up: str) -> None:
    skeleton = {**manifest(Path()).skeleton.model_dump(exclude_unset=True), "up": up}
    dataset = manifest(Path(), {"skeleton": skeleton})
    axes = np.zeros((1, 1, 4, 3))
    axes[0, 0, :3] = np.eye(3)
    axes[0, 0, 3, "xyz".index(up[-1])] = -1 if up[0] == "-" else 1
    turned = arrange(axes, dataset).slots()[0, 0]
    assert turned[3].tolist() == [0, 1, 0]
    assert np.linalg.det(turned[:3]) == pytest.approx(1)
    assert topology_of(dataset).up == "y"


@pytest.mark.parametrize(
    ("unit", "scale", "factor"),
    [("m", 1, 1), ("cm", 1, 0.01), ("mm", 1, 0.001), ("none", 0.5, 0.5)],
)
def test_units(unit: str, scale: float, factor: float) -> None:
    skeleton = manifest(Path()).skeleton.model_dump(exclude_unset=True)
    dataset = manifest(Path(), {"skeleton": {**skeleton, "unit": unit, "scale": scale}})
    assert np.array_equal(arrange(poses(1), dataset).slots(), poses(1) * factor)
    assert dataset.metric == (unit != "none")


def test_two_coordinates_and_a_score() -> None:
    flat = manifest(Path(), axes="TJC", coordinates="xy")
    scored = manifest(Path(), axes="TJC", coordinates="_yx_")
    values = poses(1, bodies=1)[0]
    expected = values * [1, 1, 0]
    assert np.array_equal(arrange(values[..., :2], flat).slots()[0], expected)
    four = np.concatenate([values[..., 2:], values[..., [1, 0]], values[..., :1] * np.nan], axis=2)
    assert np.array_equal(arrange(four, scored).slots()[0], expected)


def test_a_body_of_nan_is_absent_and_one_nan_is_a_fault() -> None:
    values = poses(1)
    values[1, 2:] = np.nan
    values[0, 0] = 0
    found = arrange(values, manifest(Path())).slots()
    assert np.array_equal(found, np.nan_to_num(values))
    values[0, 1, 3, 2] = np.nan
    with pytest.raises(RejectedError, match="nan in body 0, frame 1, right, z"):
        arrange(values, manifest(Path()))


@pytest.mark.parametrize("kind", ["f2", "f4", ">f8", "i2", "u1", "i8"])
def test_any_type_of_number(kind: str) -> None:
    values = np.arange(48).reshape(2, 2, 4, 3).astype(kind)
    assert np.array_equal(arrange(values, manifest(Path())).slots(), values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 5, 3, 3)), "wrong joint count: found 3 along J"),
        (np.zeros((2, 5, 4, 2)), "wrong coordinate count: found 2 along C"),
        (np.zeros((5, 4, 3)), r"wrong axes: found shape \(5, 4, 3\), expected 4 by axes"),
        (np.zeros((2, 0, 4, 3)), "empty clip"),
        (np.zeros((2, 5, 4, 3), dtype=complex), "no numbers"),
        (np.array([["a"]]), "no numbers"),
        (np.full((1, 1, 4, 3), np.inf), "no number in x, y, z: found inf"),
        (np.full((1, 1, 4, 3), 1e9), "no number in x, y, z"),
    ],
)
def test_arrays_that_do_not_fit_are_rejected(values: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(RejectedError, match=message):
        arrange(values, manifest(Path()))


# --- damaged and hostile files ---


def npy(values: npt.NDArray[Any]) -> bytes:
    from io import BytesIO

    stream = BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def test_an_npy_header_is_checked_before_anything_is_allocated() -> None:
    good = npy(poses(1))
    assert np.array_equal(parse_npy(good), poses(1))
    lying = good.replace(b"(2, 5, 4, 3), }              ", b"(1000000000000, 5, 4, 3), }  ")
    assert lying != good
    for data, message in [
        (lying, "wrong size of .npy array"),
        (good[:-1], "wrong size"),
        (good + b"\0", "wrong size"),
        (npy(np.array([{}, None], dtype=object)), "array of Python objects"),
        (npy(np.zeros(3, dtype=[("a", "f4")])), "wrong .npy header"),
        (b"\x93NUMPX" + good[6:], "not an .npy array"),
        (good[:9], "not an .npy array"),
        (good.replace(b"'<f8'", b"exit( "), "wrong .npy header"),
        (b"", "not an .npy array"),
    ]:
        with pytest.raises(RejectedError, match=message):
            parse_npy(data)


def test_bombs_links_and_strange_names_in_an_npz_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("wave-0.npy", npy(poses(1)))
        file.writestr("wave-1.npy", bytes(LARGEST + 1))
        file.writestr("../wave-2.npy", npy(poses(2)))
        link = zipfile.ZipInfo("wave-3.npy")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    dataset = manifest(tmp_path, path="all.npz")
    listing = list_arrays(dataset, [])
    assert [reason.partition(":")[0] for _, _, reason in listing.refused] == [
        "unsafe member name", "not a plain file",
    ]  # fmt: skip
    with Reader() as reader:
        read(listing.units[0].member, dataset, reader)
        with pytest.raises(RejectedError, match="too large"):
            read(listing.units[1].member, dataset, reader)


def test_a_stacked_bomb_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "all.npz", x=np.zeros((1000, 2, 900, 4, 3), dtype=np.float32))
    dataset = manifest(tmp_path, {"labels": {"pattern": "(.)"},
                                  "splits": {"a": {"by": {"pattern": "(.)"}}}},
                       path="all.npz", axes="NMTJC", data="x")  # fmt: skip
    listing = list_arrays(dataset, [])
    with Reader() as reader, pytest.raises(RejectedError, match="too large to be inflated"):
        read(listing.units[0].member, dataset, reader)


def test_hdf5_that_lacks_or_links_is_rejected_by_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "outside.npy", poses(1))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = poses(1)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["good-1/joints"] = poses(1)
        file.create_group("lacks-1")
        file["texts-1/joints"] = "text"
        file["group-1/joints/inner"] = 1
        file.create_group("soft-1")["joints"] = h5py.SoftLink("/good-1/joints")
        file.create_group("external-1")["joints"] = h5py.ExternalLink("other.h5", "x")
        file["away-1"] = h5py.ExternalLink("other.h5", "/")
        layout = h5py.VirtualLayout((2, 5, 4, 3), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (2, 5, 4, 3))
        file.create_group("virtual-1").create_virtual_dataset("joints", layout)
        outside = [(str(tmp_path / "outside.npy"), 128, h5py.h5f.UNLIMITED)]
        file.create_group("raw-1").create_dataset("joints", (2, 5, 4, 3), "f8", external=outside)
        file.create_group("huge-1").create_dataset("joints", (10**9, 4, 3), "f8", chunks=True)
        file.create_group("null-1")["joints"] = h5py.Empty("f8")
        file.create_group("ragged-1").create_dataset("joints", (2,), h5py.vlen_dtype("f8"))
        file["fps"] = 30
    dataset = manifest(tmp_path, path="all.h5", data="*/joints")
    listing = list_arrays(dataset, [])
    assert [unit.clips[0].key for unit in listing.units] == ["good-1"]
    reasons = {key: reason.partition(":")[0] for key, _, reason in listing.refused}
    assert reasons == {
        "away-1": "a link to elsewhere",
        "external-1": "a link to elsewhere",
        "group-1": "missing data set",
        "huge-1": "too large",
        "lacks-1": "missing data set",
        "null-1": "no numbers",
        "ragged-1": "no numbers",
        "raw-1": "a link to elsewhere",
        "soft-1": "a link to elsewhere",
        "texts-1": "no numbers",
        "virtual-1": "a link to elsewhere",
    }


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[[1.0, 2.0], [3.0]]]), "ragged lists"),
        (pa.array([None], pa.list_(pa.float32())), "no numbers"),
        (pa.array([["a"]]), "no numbers"),
        (pa.array([{"a": 1}]), "no numbers"),
        (pa.array([3.0]), "wrong axes"),
    ],
)
def test_cells_that_are_no_arrays_are_rejected(
    tmp_path: Path, column: pa.Array, message: str
) -> None:
    pq.write_table(pa.table({"id": ["wave-0"], "poses": column}), tmp_path / "all.parquet")
    dataset = manifest(tmp_path, path="all.parquet", data="poses", names="id")
    with pytest.raises(RejectedError, match=message):
        read_all(dataset)


@pytest.mark.parametrize("suffix", ["h5", "parquet", "arrow", "npz"])
def test_what_is_no_such_file_is_told(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"wave-0.{suffix}").write_bytes(b"PK\x03\x04 nothing of the kind" * 9)
    data = {} if suffix == "npz" else {"data": "x"}
    with pytest.raises(UserError) as caught:
        list_arrays(manifest(tmp_path, path=f"*.{suffix}", **data), [])
    assert f"wave-0.{suffix}" in str(caught.value)


def test_a_death_of_the_reading_child_costs_one_sample() -> None:
    import os

    with pytest.raises(RejectedError, match="ended the process that read it: found it ended with"):
        apart(9, os._exit, 3)
    assert apart(9, divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3", "ragged rows: line 2"),
        ("a,b\n1,2\n3,x", "no number: line 3, found 'x'"),
        ("a,b", "no numbers"),
        ("", "no numbers"),
        ("1,2\n1_0,2", "no number: line 2"),
        ("1,2\n١,2", "no number: line 2"),
    ],
)
def test_csv_that_is_no_table_of_numbers(text: str, message: str) -> None:
    with pytest.raises(RejectedError, match=message):
        parse_csv(text.encode(), 0)
    assert np.isnan(parse_csv(b"1,\n,2", 0)).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[[1], [2, 3]]", "ragged"),
        ('[["a"]]', "ragged"),
        ("{}", "ragged"),
        ("[1" + "0" * 400 + "]", "ragged"),
        ("[" * 80 + "]" * 80, "ragged"),
    ],
)
def test_json_that_is_no_array(text: str, message: str) -> None:
    with pytest.raises(RejectedError, match=message):
        as_array(parse_json(text.encode()))
    with pytest.raises(RejectedError, match="missing key: found keys b, expected 'a'"):
        under({"b": 1}, "a")


def test_joints_that_were_not_seen_are_filled_in_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    walk = rng.normal(size=(2, 6, 4, 3))
    holes = walk.copy()
    holes[0, 2:4, 1] = np.nan  # within
    holes[0, 0, 2, 0] = np.nan  # before it is first seen, in one coordinate
    holes[1, 5] = np.nan  # all of a body: it is absent
    holes[1, 4, 3] = np.nan  # so that this is after it is last seen
    with pytest.raises(RejectedError, match="interpolated"):
        arrange(holes, manifest(tmp_path, axes="MTJC"))
    filled = arrange(holes, manifest(tmp_path, axes="MTJC", missing="interpolated")).slots()
    expected = walk.copy()
    for step, share in ((2, 1 / 3), (3, 2 / 3)):
        expected[0, step, 1] = walk[0, 1, 1] * (1 - share) + walk[0, 4, 1] * share
    expected[0, 0, 2] = walk[0, 1, 2]
    expected[1, 5] = 0
    expected[1, 4, 3] = walk[1, 3, 3]
    np.testing.assert_allclose(filled, expected, atol=1e-12)
    never = holes.copy()
    never[0, :, 1] = np.nan
    with pytest.raises(RejectedError, match="no number"):
        arrange(never, manifest(tmp_path, axes="MTJC", missing="interpolated"))
