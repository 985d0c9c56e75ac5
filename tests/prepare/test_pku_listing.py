from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import raw

from skelpipe.errors import UserError
from skelpipe.manifest import load_dataset
from skelpipe.prepare.archive import Reader
from skelpipe.prepare.engine import prepare
from skelpipe.prepare.formats import list_raw, read, switches_of
from skelpipe.prepare.listing import Clip, Listing, Unit
from skelpipe.prepare.synth import write_recordings
from skelpipe.shards.index import read_index

SKELETONS, LABELS = "PKU_Skeleton_Renew", "Train_Label_PKU_final"
NAMES = {
    "pku1": ("0002-L", "0002-M", "0003-R", "0291-L"),
    "pku2": ("A01N01-L", "A01N01-M", "A26N02-L", "A03N04-R"),
}
FRAMES = 20


def skeletons(seed: int = 0, frames: int = FRAMES) -> bytes:
    rows = np.random.default_rng(seed).normal(size=(frames, 150))
    rows[:, 75:] = 0
    return "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows).encode()


def split_list(train: Sequence[str], test: Sequence[str]) -> bytes:
    parts = ("Training videos:", ", ".join(train) + ",", "Validataion videos:", ", ".join(test))
    return "\n".join(parts).encode()


def files(name: str = "pku1", **others: bytes) -> dict[str, bytes]:
    """An archive of four recordings, two rows each; ``others`` replace the labels of some."""
    made = {}
    for number, recording in enumerate(NAMES[name]):
        made[f"{SKELETONS}/{recording}.txt"] = skeletons(number)
        made[f"{LABELS}/{recording}.txt"] = b"5,0,8,2\n51,10,18,2\n"
    train, test = NAMES[name][:3], NAMES[name][3:]
    for split in ("subject", "view"):
        file = f"cross-{split}.txt" if name == "pku1" else f"cross_{split}_v2.txt"
        made[f"Split/{file}"] = split_list(train, test)
    return made


def labelled(labels: bytes, frames: int = FRAMES) -> dict[str, bytes]:
    """An archive whose first recording has other labels and another length."""
    changed = {f"{LABELS}/0002-L.txt": labels, f"{SKELETONS}/0002-L.txt": skeletons(0, frames)}
    return files() | changed


def write_zip(file: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def write_tar(file: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def write_folder(folder: Path, members: Mapping[str, bytes]) -> Path:
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def listing(
    places: Path | Sequence[Path],
    name: str = "pku1",
    *splits: str,
    pipeline: str = "ctrgcn",
    **switches: str,
) -> Listing:
    dataset = load_dataset(name)
    settled = {switch: values[0] for switch, values in switches_of(dataset).items()} | switches
    return list_raw(
        dataset,
        [places] if isinstance(places, Path) else places,
        splits=splits,
        pipeline=pipeline,
        switches=settled,
        missing_list=None,
    )


def of_labels(tmp_path: Path, labels: bytes, **switches: str) -> tuple[Listing, Unit | None]:
    """What is listed where the first recording has these labels; its unit."""
    listed = listing(write_zip(tmp_path / "a.zip", labelled(labels)), **switches)
    units = [unit for unit in listed.units if unit.source == "0002-L.txt"]
    return listed, units[0] if units else None


def without_places(listed: Listing) -> list[tuple[Any, ...]]:
    return [
        (unit.source, unit.parts, unit.clips, unit.size, unit.stored, unit.odd)
        for unit in listed.units
    ]


def test_every_label_row_is_a_clip(tmp_path: Path) -> None:
    listed = listing(write_zip(tmp_path / "a.zip", files()))
    assert [unit.source for unit in listed.units] == [f"{name}.txt" for name in NAMES["pku1"]]
    assert [dict(unit.parts) for unit in listed.units] == [
        *[{"xsub": "train", "xview": "train"}] * 3,
        {"xsub": "test", "xview": "test"},
    ]
    assert listed.units[0].clips == (
        Clip("0002-L-000", label=4, camera=1, setup=2, frames=(0, 8)),
        Clip("0002-L-001", label=50, camera=1, setup=2, frames=(10, 18)),
    )
    assert listed.units[2].clips[0].camera == 3
    assert listed.units[3].clips[0].setup == 291
    assert listed.source.recordings == 4
    assert listed.source.layout == "pku"
    assert (listed.refused, listed.missing, listed.left_out, listed.notes) == ((), None, 0, ())
    assert listed.outside == {"xsub": (), "xview": ()}
    assert not any(unit.odd for unit in listed.units)


def test_names_of_part_two_tell_the_subject(tmp_path: Path) -> None:
    listed = listing(write_zip(tmp_path / "a.zip", files("pku2")), "pku2")
    clip = listed.units[-1].clips[1]
    assert (clip.key, clip.subject, clip.camera, clip.setup) == ("A26N02-L-001", 2, 1, 26)
    assert set(listed.units[0].parts) == {"xsub", "xview"}


def test_wherever_the_files_lie(tmp_path: Path) -> None:
    """Folder, tar, several archives, other names of folders, loose files, capital letters."""
    given = files()
    expected = listing(write_zip(tmp_path / "one.zip", given))

    def only(folder: str) -> dict[str, bytes]:
        return {name: data for name, data in given.items() if name.startswith(folder)}

    renamed = {
        name.replace(SKELETONS, "x/data").replace(LABELS, "x/truth"): data
        for name, data in given.items()
    }
    capital = {name.replace("cross-s", "Cross_S"): data for name, data in given.items()}
    flat = tmp_path / "flat"
    flat.mkdir()
    for name, data in only("Split").items():
        write_folder(flat, {Path(name).name: data})
    beside = [
        write_zip(flat / "skeletons.zip", only(SKELETONS)),
        write_tar(flat / "truth.tar", {Path(n).name: d for n, d in only(LABELS).items()}),
    ]
    inside = write_folder(tmp_path / "inside", only("Split"))
    write_zip(inside / "s.zip", only(SKELETONS))
    write_folder(inside / "l", only(LABELS))
    loose = write_folder(tmp_path / "loose", given)
    places: list[Path | list[Path]] = [
        write_folder(tmp_path / "folder", given),
        write_tar(tmp_path / "one.tar", given),
        write_zip(tmp_path / "renamed.zip", renamed),
        write_folder(tmp_path / "renamed", renamed),
        write_zip(tmp_path / "capital.zip", capital),
        beside,
        inside,
        sorted(file for file in loose.rglob("*.txt")),
        [loose / SKELETONS, loose / LABELS, *sorted((loose / "Split").iterdir())],
    ]
    for place in places:
        listed = listing(place)
        assert without_places(listed) == without_places(expected)
        assert listed.source == expected.source
        assert listed.warnings == expected.warnings


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("pku1", ["cross-subject.txt", "cross_subject.txt", "cross_subject_v1.txt"]),
        ("pku2", ["cross_subject_v2.txt", "cross-subject-v2.txt", "cross-subject.txt"]),
    ],
)
def test_names_of_lists(name: str, variants: list[str], tmp_path: Path) -> None:
    given = {path: data for path, data in files(name).items() if not path.startswith("Split")}
    for variant in (*variants, variants[0].upper(), variants[0].title()):
        lists = {variant: split_list(NAMES[name][:3], NAMES[name][3:])}
        listed = listing(write_zip(tmp_path / "a.zip", given | lists), name)
        assert set(listed.outside) == {"xsub"}
        assert all(set(unit.parts) == {"xsub"} for unit in listed.units)
    for other in ("cross.txt", "subject.txt", "cross-subject.csv", "cross-subject-v3.txt"):
        with pytest.raises(UserError, match="no list of the recordings of xsub"):
            listing(write_zip(tmp_path / "a.zip", given | {other: b"x"}), name)


def test_an_empty_file_is_known_by_its_folder(tmp_path: Path) -> None:
    given = files() | {f"{LABELS}/0002-L.txt": b"", f"{SKELETONS}/0002-M.txt": b"\n"}
    for place in (write_zip(tmp_path / "a.zip", given), write_folder(tmp_path / "a", given)):
        listed = listing(place)
        assert listed.refused == (("0002-L", "0002-L.txt", "no label rows"),)
        assert listed.units[0].clips[0].key == "0002-M-000"
        (whole, *_) = listing(place, pipeline="recordings").units
        assert whole.clips[0].actions == ()


def test_recordings_without_labels_and_labels_without_recording(tmp_path: Path) -> None:
    given = files()
    del given[f"{LABELS}/0002-L.txt"], given[f"{SKELETONS}/0003-R.txt"]
    listed = listing(write_zip(tmp_path / "a.zip", given))
    assert listed.refused == (("0002-L", "0002-L.txt", "no label file"),)
    assert [unit.source for unit in listed.units] == ["0002-M.txt", "0291-L.txt"]
    assert listed.notes == ("passed over 1 label files without skeletons, such as 0003-R",)
    assert listed.source.recordings == 3


def test_damaged_labels_reject_the_recording(tmp_path: Path) -> None:
    listed, unit = of_labels(tmp_path, b"5,0,8,2\n5,0,8\n")
    assert unit is None
    ((key, source, reason),) = listed.refused
    assert (key, source) == ("0002-L", "0002-L.txt")
    assert reason.startswith("wrong label row: line 2, found '5,0,8'")
    assert len(listed.units) == 3


def test_labels_that_a_damaged_archive_holds(tmp_path: Path) -> None:
    place = tmp_path / "a.zip"
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in files().items():
            archive.writestr(name, data)
    at = place.read_bytes().index(b"5,0,8,2")
    with place.open("r+b") as file:
        file.seek(at)
        file.write(b"6")
    listed = listing(place)
    assert listed.refused == (
        ("0002-L", "0002-L.txt", "damaged archive member: found another CRC-32"),
    )
    assert len(listed.units) == 3


def test_links_and_members_that_lead_outside(tmp_path: Path) -> None:
    given = files()
    for name in ("0002-L", "0004-L"):
        given[f"../{SKELETONS}/{name}.txt"] = given[f"{SKELETONS}/0002-L.txt"]
    listed = listing(write_zip(tmp_path / "a.zip", given))
    ((key, _, reason),) = listed.refused
    assert key == "0004-L"
    assert reason.startswith("unsafe member name")
    assert len(listed.units) == 4


def test_actions_that_there_are_not(tmp_path: Path) -> None:
    listed, unit = of_labels(tmp_path, b"0,0,8,2\n1,0,8,2\n\n52,0,8,2\n-1,0,8,2\n51,0,8,2\n")
    assert unit is not None
    assert [clip.key for clip in unit.clips] == ["0002-L-001", "0002-L-004"]
    assert listed.refused == tuple(
        (f"0002-L-{row}", "0002-L.txt", f"action out of range: found {found}, expected 1-51")
        for row, found in (("000", 0), ("002", 52), ("003", -1))
    )


@pytest.mark.parametrize(
    ("row", "frames", "odd"),
    [
        ("9,3,7", (3, 7), {}),
        ("9,5,5", (5, 5), {}),
        ("9,7,3", (3, 7), {"start after end, swapped": 1}),
        ("9,-4,6", (0, 6), {"label before the start": 1}),
        ("9,-4,-1", (0, 0), {"label before the start": 1}),
        ("9,6,-4", (0, 6), {"label before the start": 1, "start after end, swapped": 1}),
        ("9,100,400", (100, 400), {}),
        ("9,100,401", (100, 400), {"cut to 300 frames": 1}),
        ("9,-1,300", (0, 300), {"label before the start": 1}),
        ("9,0,999999999", (0, 300), {"cut to 300 frames": 1}),
    ],
)
def test_odd_rows(row: str, frames: tuple[int, int], odd: dict[str, int], tmp_path: Path) -> None:
    _, unit = of_labels(tmp_path, f"{row},2\n".encode())
    assert unit is not None
    assert unit.clips[0].frames == frames
    assert dict(unit.odd) == odd


def test_reversed_rows_as_published(tmp_path: Path) -> None:
    _, unit = of_labels(tmp_path, b"9,7,3,2\n4,0,5,2\n", reversed="as_published")
    assert unit is not None
    assert unit.clips[0].frames == (7, 3)
    assert unit.odd == (("start after end", 1),)
    assert poses(unit, unit.clips[0]).size == 0


@pytest.mark.parametrize(
    ("labels", "overlapping"),
    [
        (b"1,0,5,2\n2,5,9,2\n", 0),
        (b"1,0,6,2\n2,5,9,2\n", 1),
        (b"2,5,9,2\n1,6,0,2\n", 1),
        (b"1,0,19,2\n2,3,5,2\n3,4,6,2\n4,18,20,2\n", 3),
        (b"1,0,9,2\n2,5,5,2\n", 0),
        (b"1,0,9,2\n1,0,9,2\n", 1),
    ],
)
def test_overlaps_are_counted(labels: bytes, overlapping: int, tmp_path: Path) -> None:
    _, unit = of_labels(tmp_path, labels)
    assert unit is not None
    assert dict(unit.odd).get("label rows overlap", 0) == overlapping


def test_whole_recordings(tmp_path: Path) -> None:
    labels = b"5,12,8,2\n60,0,3,2\n51,10,18,1\n"
    for reversed in ("swapped", "as_published"):
        place = write_zip(tmp_path / "a.zip", labelled(labels))
        listed = listing(place, pipeline="recordings", reversed=reversed)
        assert not listed.refused
        assert [unit.clips[0].key for unit in listed.units] == list(NAMES["pku1"])
        (clip,) = listed.units[0].clips
        assert (clip.label, clip.frames, clip.camera, clip.setup) == (-1, None, 1, 2)
        assert clip.actions == ((5, 12, 8, 2), (51, 10, 18, 1))
        odd = dict(listed.units[0].odd)
        assert odd["action out of range"] == 1
        assert odd.get("label rows overlap", 0) == (reversed == "swapped")


def test_recordings_in_no_list(tmp_path: Path) -> None:
    given = files() | {"Split/cross-subject.txt": split_list(["0002-L", "0002-M"], ["0291-L"])}
    listed = listing(write_zip(tmp_path / "a.zip", given))
    assert listed.outside == {
        "xsub": tuple(
            (f"0003-R-{row}", "0003-R.txt", "not in the lists of xsub") for row in ("000", "001")
        ),
        "xview": (),
    }


def test_what_is_not_the_whole_is_told(tmp_path: Path) -> None:
    given = files()
    train = [f"{number:04}-{view}" for number in range(2, 317) for view in "LMR"][:944]
    test = [f"{number:04}-{view}" for number in range(317, 365) for view in "LMR"][:132]
    given["Split/cross-subject.txt"] = split_list(train, test)
    listed = listing(write_zip(tmp_path / "a.zip", given))
    assert listed.warnings == (
        "a part of PKU-MMD I: 4 of 1,076 recordings",
        "the list of xview is not the published one: 3 + 1 recordings where 717 + 359 are "
        "published",
    )


def test_the_source_changes_with_labels_and_lists(tmp_path: Path) -> None:
    given = files()
    whole = listing(write_zip(tmp_path / "a.zip", given))
    digests = {whole.source.digest}
    swapped = split_list((*NAMES["pku1"][1:3], "0291-L"), NAMES["pku1"][:1])
    for name, data in {
        f"{LABELS}/0002-L.txt": b"6,0,8,2\n51,10,18,2\n",
        f"{SKELETONS}/0002-L.txt": skeletons(0, 21),
    }.items():
        digests.add(listing(write_zip(tmp_path / "a.zip", given | {name: data})).source.digest)
    assert len(digests) == 3
    crlf = given["Split/cross-view.txt"].replace(b"\n", b"\r\n")
    for data, same in ((swapped, False), (crlf, True)):
        place = write_zip(tmp_path / "a.zip", given | {"Split/cross-view.txt": data})
        lists = listing(place).lists
        assert (lists["xview"] == whole.lists["xview"]) is same
        assert lists["xsub"] == whole.lists["xsub"]
        digests.add(listing(place).source.digest)
    assert len(digests) == 3  # another list of a split changes that split's identity alone


def test_lists_of_the_other_phase_are_passed_over(tmp_path: Path) -> None:
    """PCM3's code ships Part II's lists under Part I's names."""
    wrong = split_list(NAMES["pku2"][:3], NAMES["pku2"][3:])
    place = write_zip(tmp_path / "a.zip", files() | {"PCM3/cross_subject.txt": wrong})
    listed = listing(place)
    assert set(listed.outside) == {"xsub", "xview"}
    assert listed.notes == (
        f"passed over {place}:PCM3/cross_subject.txt, which lists recordings of PKU-MMD II",
    )
    given = {name: data for name, data in files().items() if not name.startswith("Split")}
    place = write_zip(tmp_path / "b.zip", given | {"cross-subject.txt": wrong})
    with pytest.raises(UserError) as caught:
        listing(place)
    told = str(caught.value)
    assert "no list of the recordings of xsub of PKU-MMD I" in told
    assert f"{place}:cross-subject.txt, which lists recordings of PKU-MMD II" in told
    assert "944 + 132 recordings of PKU-MMD I" in told
    assert "get it from https://github.com/ECHO960/PKU-MMD" in told


def test_only_the_splits_that_are_asked_for_need_a_list(tmp_path: Path) -> None:
    given = {name: data for name, data in files().items() if name != "Split/cross-view.txt"}
    place = write_zip(tmp_path / "a.zip", given)
    for splits in ((), ("xsub",)):
        assert set(listing(place, "pku1", *splits).outside) == {"xsub"}
    for splits in (("xview",), ("xsub", "xview")):
        with pytest.raises(UserError, match="no list of the recordings of xview of PKU-MMD I") as e:
            listing(place, "pku1", *splits)
        assert "expected: cross-view.txt" in str(e.value)


def test_two_lists_of_a_split(tmp_path: Path) -> None:
    given = files()
    given["other/Cross_Subject.txt"] = given["Split/cross-subject.txt"].replace(b", ", b",\n")
    assert set(listing(write_zip(tmp_path / "a.zip", given)).outside) == {"xsub", "xview"}
    given["other/Cross_Subject.txt"] = split_list(["0002-L"], ["0291-L"])
    del given["Split/cross-view.txt"]
    with pytest.raises(UserError, match="two different lists of xsub") as caught:
        listing(write_zip(tmp_path / "a.zip", given))
    assert "Split/cross-subject.txt" in str(caught.value)
    assert "other/Cross_Subject.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello", "truncated list"),
        (split_list(["0002-L", "0002-M"], ["0002-L"]), "listed twice"),
        (split_list(["0002-L", "A01N01-L"], ["0002-M"]), "A01N01-L, which belongs to PKU-MMD II"),
        (b"a\n0002-L\nb\n" + b"0003-L, " * 200_000, "too large"),
    ],
)
def test_lists_that_cannot_be_used(data: bytes, message: str, tmp_path: Path) -> None:
    given = {name: text for name, text in files().items() if name != "Split/cross-view.txt"}
    with pytest.raises(UserError, match=message) as caught:
        listing(write_zip(tmp_path / "a.zip", given | {"Split/cross-subject.txt": data}))
    assert "cross-subject.txt" in str(caught.value)


@pytest.mark.parametrize(("name", "other"), [("pku1", "pku2"), ("pku2", "pku1")])
def test_the_other_phase(name: str, other: str, tmp_path: Path) -> None:
    titles = {"pku1": "PKU-MMD I", "pku2": "PKU-MMD II"}
    place = write_zip(tmp_path / "a.zip", files(other))
    with pytest.raises(UserError) as caught:
        listing(place, name)
    assert caught.value.what == f"this is {titles[other]}, not {titles[name]}"
    both = listing([place, write_zip(tmp_path / "b.zip", files(name))], name)
    assert len(both.units) == 4
    assert f"left out 8 files that do not belong to {titles[name]}" in both.notes


def test_another_data_set(tmp_path: Path) -> None:
    ntu = raw.write_zip(tmp_path / "ntu.zip", raw.some_recordings(3))
    with pytest.raises(UserError, match=r"this is NTU RGB\+D, not PKU-MMD I"):
        listing(ntu)
    with pytest.raises(UserError, match=r"this is PKU-MMD.*, not NTU RGB\+D"):
        listing(write_zip(tmp_path / "pku.zip", files()), "ntu60")


@pytest.mark.parametrize(("has", "lacks"), [("skeletons", "labels"), ("labels", "skeletons")])
def test_half_of_the_archives(has: str, lacks: str, tmp_path: Path) -> None:
    folder = {"skeletons": SKELETONS, "labels": LABELS}[lacks]
    given = {name: data for name, data in files().items() if not name.startswith(folder)}
    with pytest.raises(UserError, match=f"there are {has} of PKU-MMD I here, but no {lacks}"):
        listing(write_zip(tmp_path / "a.zip", given))


def test_lists_alone(tmp_path: Path) -> None:
    given = {name: data for name, data in files().items() if name.startswith("Split")}
    with pytest.raises(UserError, match="there are no recordings of PKU-MMD I here"):
        listing(write_zip(tmp_path / "a.zip", given))
    with pytest.raises(UserError, match="no recordings of PKU-MMD I"):
        listing(write_folder(tmp_path / "a", given) / "Split" / "cross-subject.txt")


def test_labels_that_differ_in_two_places(tmp_path: Path) -> None:
    given = files()
    copy = {f"again/{name}": data for name, data in given.items()}
    listed = listing(write_zip(tmp_path / "a.zip", given | copy))
    assert len(listed.units) == 4
    assert "stand in two places with the same content" in listed.notes[0]
    copy[f"again/{LABELS}/0002-L.txt"] = b"7,0,8,2\n"
    with pytest.raises(UserError, match="stands in two places with different content"):
        listing(write_zip(tmp_path / "a.zip", given | copy))


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no list of missing recordings"):
        prepare(
            "pku1",
            ["xsub"],
            raw=[write_zip(tmp_path / "a.zip", files())],
            out=tmp_path / "out",
            missing_list=tmp_path / "missing.txt",
        )


def poses(unit: Unit, clip: Clip) -> npt.NDArray[np.float64]:
    """A clip's poses (M, T, J, 3), in metres, as they are read."""
    with Reader() as reader:
        whole = read(unit, load_dataset("pku1"), reader)
    assert clip.frames is not None
    return whole.cut(*clip.frames).slots()


Plain = dict[str, tuple[int, npt.NDArray[np.float64]]]


def plain_clips(place: Path, longest: int) -> Plain:
    """Key -> label and poses (T, 2, 25, 3) of every clip that is not empty, by plain loops."""
    clips: Plain = {}
    with zipfile.ZipFile(place) as archive:
        for member in archive.namelist():
            if not member.startswith(LABELS):
                continue
            name = member.split("/")[1][:-4]
            lines = archive.read(f"{SKELETONS}/{name}.txt").decode().splitlines()
            video = [[float(field) for field in line.split()] for line in lines]
            for number, row in enumerate(archive.read(member).decode().splitlines()):
                action, start, end, _ = (int(field) for field in row.split(","))
                if start > end:
                    start, end = end, start
                frames = np.array(video[start:end][:longest]).reshape(-1, 2, 25, 3)
                if frames.any():
                    clips[f"{name}-{number:03}"] = (action - 1, frames)
    return clips


def stored(folder: Path) -> dict[str, tuple[dict[str, Any], npt.NDArray[np.float32]]]:
    """Key -> index row and poses of every sample in a prepared set."""
    samples = {}
    for row in read_index(folder).to_pylist():
        data = (folder / row["shard"]).read_bytes()[row["offset"] :][: row["size"]]
        samples[row["key"]] = (row, np.load(io.BytesIO(data), allow_pickle=False))
    return samples


@pytest.mark.parametrize("name", ["pku1", "pku2"])
def test_clips_are_those_of_plain_loops(name: str, tmp_path: Path) -> None:
    place = tmp_path / "raw.zip"
    write_recordings(
        name, place, subjects=4, cameras=3, replications=2, actions=4, classes=12, seed=3
    )
    result = prepare(
        name, raw=[place], out=tmp_path / "out", switches={"centre": "none"}, workers=1
    )
    expected = plain_clips(place, 300)
    for made in result.sets:
        samples = stored(made.folder)
        assert samples.keys() == expected.keys()
        for key, (label, poses_TMJC) in expected.items():
            row, poses_MTJC = samples[key]
            assert row["label"] == label
            there = [body for body in range(2) if poses_TMJC[:, body].any()]
            np.testing.assert_array_equal(
                poses_MTJC, np.swapaxes(poses_TMJC[:, there], 0, 1).astype(np.float32)
            )
        odd = made.card.counts.odd
        reasons = made.card.counts.rejected
        assert set(reasons) <= {"empty clip"}
        assert made.card.counts.total.samples + sum(reasons.values()) == sum(
            len(unit.clips) for unit in listing(place, name).units
        )
        if name == "pku2":
            assert odd["label rows overlap"] > 0


def test_whole_recordings_are_those_of_the_files(tmp_path: Path) -> None:
    place = write_zip(tmp_path / "a.zip", files())
    (made,) = prepare(
        "pku1", ["xsub"], raw=[place], out=tmp_path, pipeline="recordings", workers=1
    ).sets
    samples = stored(made.folder)
    for number, name in enumerate(NAMES["pku1"]):
        rows = [line.split() for line in skeletons(number).splitlines()]
        expected = np.array(rows, dtype=np.float64).astype(np.float32).reshape(-1, 2, 25, 3)
        row, poses_MTJC = samples[name]
        np.testing.assert_array_equal(poses_MTJC[0], expected[:, 0])
        assert (len(poses_MTJC), row["label"]) == (1, -1)


def test_what_is_rejected_and_odd_is_in_the_card(tmp_path: Path) -> None:
    labels = b"1,0,8,2\n2,9,4,2\n3,15,30,2\n4,90,99,2\n5,6,6,2\n60,0,3,2\n"
    place = write_zip(tmp_path / "a.zip", labelled(labels))
    (made,) = prepare("pku1", ["xsub"], raw=[place], out=tmp_path / "out", workers=1).sets
    counts = made.card.counts
    assert counts.total.samples == 3 + 6
    assert counts.rejected == {"empty clip": 2, "action out of range": 1}
    assert counts.odd == {
        "start after end, swapped": 1,
        "label rows overlap": 1,
        "label beyond the end": 2,
    }
    assert len(made.card.classes) == 51
    assert [made.card.classes[label] for label in made.card.mutual][1] == "handshaking"
    assert made.card.apart == "subject"
    assert counts.total.classes == {0: 1, 1: 1, 2: 1, 4: 3, 50: 3}
    rows = [json.loads(line) for line in (made.folder / "rejected.jsonl").read_bytes().splitlines()]
    assert [row["key"] for row in rows] == ["0002-L-003", "0002-L-004", "0002-L-005"]


def test_the_real_archive(real_data: Path, tmp_path: Path) -> None:
    place = real_data / "ui_prmd_as_pku.zip"
    (made,) = prepare("pku1", ["xsub"], raw=[place], out=tmp_path).sets
    counts = made.card.counts
    assert (counts.train.samples, counts.test.samples) == (600, 400)
    assert made.card.source.recordings == 50
    assert not counts.rejected
    assert not counts.odd
    assert made.card.warnings[0] == "a part of PKU-MMD I: 50 of 1,076 recordings"
    rows = read_index(made.folder).to_pylist()
    assert set(Counter(row["key"][:6] for row in rows).values()) == {20}
    assert {row["setup"] for row in rows if row["part"] == "test"} == set(range(291, 311))
