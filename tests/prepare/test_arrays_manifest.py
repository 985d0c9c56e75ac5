"""What is wrong in a user's manifest is told with its place and what to do."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from skelpipe.errors import UserError
from skelpipe.manifest import ArrayDataset, load_dataset, load_topology, new_manifest, topology_of

GOOD = new_manifest("mine")


def load(folder: Path, text: str) -> ArrayDataset:
    file = folder / "my.toml"
    file.write_text(text, encoding="utf-8")
    dataset = load_dataset(str(file))
    assert isinstance(dataset, ArrayDataset)
    return dataset


def refusal(folder: Path, old: str, new: str) -> str:
    assert GOOD.count(old) >= 1, old
    with pytest.raises(UserError) as caught:
        load(folder, GOOD.replace(old, new, 1))
    message = str(caught.value)
    assert f"file: {folder / 'my.toml'}" in message
    return message


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        # Unknown keys suggest the right one.
        ("fps = 30", "fsp = 30", "fsp", "did you mean 'fps'?"),
        ("axes =", "axis =", "source.axis", "did you mean 'axes'?"),
        ('up = "y"', 'upp = "y"', "skeleton.upp", "did you mean 'up'?"),
        ('by = "subject"', 'bye = "subject"', "splits.xsub.bye", "did you mean 'by'?"),
        ('by = "subject"', 'by = { colum = "a" }', "splits.xsub.by.colum", "'column'?"),
        ("[subjects]", "[subject]", "subject", "did you mean 'subjects'?"),
        # The skeleton.
        ('"none", "hip", "spine"', '"neck", "hip", "spine"', "", "exactly one joint, the root"),
        ('"neck", "left_shoulder", "left_elbow"', '"left_wrist", "left_shoulder", "left_elbow"',
         "", "the parents hold a cycle"),
        ('"none", "hip", "spine", "neck",', '"none", "hip", "spine",', "", "15 parents for 16"),
        ('parents = [\n    "none"', "parents = [\n    99", "", "between -1 and 15"),
        ('"left_knee", "right_knee"]', '"left_knee", "right_elbow"]', "", "two mirror pairs"),
        ('"left_knee", "right_knee"]', '"left_knee", "left_knee"]', "", "two mirror pairs"),
        ('"left_knee", "right_knee"]', '"left_knee", 16]', "", "none of the joints"),
        ('trunk = ["hip", ', "trunk = [", "", "cover every joint exactly once"),
        ('trunk = ["hip", ', 'trunk = ["hip", "hip", ', "", "cover every joint exactly once"),
        ('trunk = ["hip", ', 'trunk = ["hipp", ', "", "no joint 'hipp': did you mean 'hip'"),
        ('"hip", "spine", "neck", "head",', '"hip", "spine", "neck", "hip",', "", "the same name"),
        ('up = "y"', 'up = "up"', "skeleton.up", "'-y'"),
        ('unit = "m"', 'unit = "km"', "skeleton.unit", "'mm'"),
        ('unit = "m"', 'unit = "m"\nscale = 2', "skeleton", "scale is for positions without"),
        ('unit = "m"', 'unit = "none"\nscale = -2', "skeleton", "scale is a positive"),
        ('unit = "m"', 'unit = "m"\ntopology = "kinect_v2"', "skeleton", "either topology"),
        # The source.
        ('"raw/**/*.npy"', '"raw/**"', "source", "does not follow from the suffix"),
        ('axes = "TJC"', 'axes = "TVC"', "source", "letters of MTJC"),
        ('axes = "TJC"', 'axes = "TJ"', "source", "name T, J and C once each"),
        ('axes = "TJC"', 'axes = "TJJC"', "source", "name T, J and C once each"),
        ('axes = "TJC"', 'axes = "(TM)JC"', "source", "say bodies"),
        ('axes = "TJC"', 'axes = "T(JC"', "source", "letters of MTJC"),
        ('axes = "TJC"', 'axes = "TJC"\nbodies = 2', "source", "size of axis M"),
        ('axes = "TJC"', 'axes = "TJC"\nskip = 1', "source", "skip is for csv"),
        ('axes = "TJC"', 'axes = "TJC"\ndata = "x"', "source", "no meaning in npy"),
        ('axes = "TJC"', 'axes = "TJC"\nlengths = "n"', "source", "lengths are for"),
        ('axes = "TJC"', 'axes = "TJC"\nformat = "hdf5"', "source", "data says"),
        ('axes = "TJC"', 'axes = "NTJC"\nformat = "npz"', "source", "data names the array"),
        ('axes = "TJC"', 'axes = "NTJC"\nformat = "csv"', "source", "for hdf5, npz and npy"),
        ('axes = "TJC"', 'axes = "JTC"\nformat = "npz"\ndata = "x"\nlengths = "n"', "source",
         "N or T as the first axis"),
        ('coordinates = "xyz"', 'coordinates = "xxz"', "source", "once each"),
        ('coordinates = "xyz"', 'coordinates = "xz"', "source", "once each"),
        # What is known of each sample.
        ('pattern = "_(', 'pattern = "_', "labels", "no regular expression"),
        ('pattern = "_(', 'pattern = "(_)(', "labels", "2 groups"),
        ("[labels]", '[labels]\ncolumn = "a"', "labels", "give one of"),
        ("[labels]", '[labels]\nkey = "a"', "labels", "key is the column of a table"),
        # Splits and the rest.
        ('by = "subject"', 'by = "camera"', "", "no [cameras] says where"),
        ('by = "subject"', 'by = "subjects"', "splits.xsub.by", "'subject'"),
        ('by = "subject"', "", "splits.xsub", "say by what it splits"),
        ("test = [5, 6]", "test = [4, 5]", "splits.xsub", "4 stands twice"),
        ("test = [5, 6]", 'test = "test.txt"', "splits.xsub", "list values"),
        ("[splits.xsub]", '[splits."../up"]', "", "becomes a folder"),
        ('name = "mine"', 'name = "a/b"', "", "becomes a folder"),
        ("fps = 30", "fps = 0", "", "frames a second"),
        ("fps = 30", 'fps = 30\nclasses = ["a", "a"]', "", "two classes"),
        ("fps = 30", "fps = ", "", "cannot be read"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, old: str, new: str, place: str, message: str) -> None:
    told = refusal(tmp_path, old, new)
    assert message in told
    if place:
        assert f"place: {place}\n" in told
    assert "to mend it" in told


def test_a_manifest_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"cannot be read[\s\S]*skelpipe new-dataset"):
        load_dataset("nowhere/my.toml")


def test_a_manifest_without_splits(tmp_path: Path) -> None:
    text = re.sub(r"(?s)\[splits\.xsub\].*", "", GOOD)
    with pytest.raises(UserError, match="lacks 'splits'"):
        load(tmp_path, text)
    with pytest.raises(UserError, match="there is no split"):
        load(tmp_path, text + "[splits]")


def test_the_topology_is_what_is_stored(tmp_path: Path) -> None:
    topology = topology_of(load(tmp_path, GOOD.replace('up = "y"', 'up = "z"')))
    assert topology.up == "y"
    assert topology.centre == topology.root == 0
    assert topology.parents[4:7] == (2, 4, 5)
    assert topology.parts["left_leg"] == (10, 11, 12)
    assert topology_of(load_dataset("ntu60")) == load_topology("kinect_v2")


def test_a_packaged_topology_by_name(tmp_path: Path) -> None:
    start, stop = GOOD.index("[skeleton]"), GOOD.index("\n[source]")
    table = '[skeleton]\ntopology = "kinect_v2"\nup = "z"\nunit = "cm"\n'
    dataset = load(tmp_path, GOOD[:start] + table + GOOD[stop:])
    assert topology_of(dataset) == load_topology("kinect_v2")
    with pytest.raises(UserError, match="did you mean 'kinect_v2'"):
        load(tmp_path, GOOD[:start] + table.replace("v2", "v3") + GOOD[stop:])


def test_a_manifest_keeps_its_place_on_the_way_to_a_worker(tmp_path: Path) -> None:
    dataset = load(tmp_path, GOOD)
    assert pickle.loads(pickle.dumps(dataset)).file == tmp_path / "my.toml"
