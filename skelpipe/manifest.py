"""What a manifests/*.toml may say about data sets and topologies, validated."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from skelpipe.errors import UserError, nearest
from skelpipe.skeleton import Topology

Part = Literal["train", "test"]
Field = Literal["subject", "camera", "setup"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(_Strict):
    """Samples a part has after the official missing list was applied."""

    train: int
    test: int


class Split(_Strict):
    """A way to divide a data set into train and test."""

    title: str
    published: Counts | None = None

    @property
    def apart(self) -> Field | None:
        """The field of which no value stands in both parts, where the split goes by one."""
        return None


class FieldSplit(Split):
    """Which values of one file-name field train and which test: explicit lists, never formulas."""

    field: Field
    train: tuple[int, ...]
    test: tuple[int, ...]
    published: Counts

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        both = set(self.train) & set(self.test)
        if both:
            raise ValueError(f"{self.field} {sorted(both)} stands in both train and test")
        return self

    @property
    def apart(self) -> Field | None:
        return self.field

    def part(self, value: int) -> Part | None:
        """The part a value of the field belongs to; None where it stands in neither list."""
        if value in self.train:
            return "train"
        return "test" if value in self.test else None


class ListedSplit(Split):
    """A split that the data owners' file lists, recording by recording.

    ``file`` is a regular expression for the file's name, in small or capital letters;
    ``recordings`` how many it lists. ``field`` is what it keeps apart.
    """

    file: str
    field: Field
    recordings: Counts

    @property
    def apart(self) -> Field | None:
        return self.field


class MissingList(_Strict):
    """The data owners' list of recordings to leave out, recognised by count and digest.

    ``sha256`` is over the sorted names joined by newlines, UTF-8, no newline at the end.
    """

    count: int
    sha256: str
    where: str


class Dataset(_Strict):
    """A data set: what its recordings are called, what classes they show, how they are split.

    ``mutual`` lists the actions, by their place from 1 in ``classes``, that two people perform
    together. ``published`` is the number of samples that others report, None where they do not
    agree or nobody has.
    """

    kind: Literal["dataset"]
    name: str
    title: str
    fps: float
    classes: tuple[str, ...]
    mutual: tuple[int, ...] = ()
    published: int | None = None
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """The split of that name; an unknown one is the user's error."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no split '{name}'", remedy=nearest(name, self.splits))
        return self.splits[name]

    @property
    def metric(self) -> bool:
        """Whether its positions are in metres once they are read."""
        return True


class NtuDataset(Dataset):
    """NTU RGB+D: one `.skeleton` file a sample.

    ``setups`` and ``actions`` (first, last; counted from 1, as in file names) say which
    recordings belong to it, so that NTU-60 can be taken out of a folder that holds NTU-120.
    """

    format: Literal["ntu"]
    topology: str
    where: str
    setups: tuple[int, int]
    actions: tuple[int, int]
    recordings: int
    published: int
    missing: MissingList
    splits: Mapping[str, FieldSplit]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.classes) != self.actions[1] - self.actions[0] + 1:
            raise ValueError(f"{len(self.classes)} class names for actions {self.actions}")
        for name, split in self.splits.items():
            if split.published.train + split.published.test != self.published:
                raise ValueError(f"the published counts of {name} do not add up")
        return self


class PkuDataset(Dataset):
    """PKU-MMD: recordings of minutes, each with a list of the actions in it.

    ``names`` is a regular expression for the names of its recordings, by which the two phases are
    told apart. Its groups are ``setup``, ``view`` (L, M or R) and, where names tell it,
    ``subject``. ``recordings`` is how many there are, ``longest`` how many frames of an action are
    kept.
    """

    format: Literal["pku"]
    topology: str
    where: str
    names: str
    recordings: int
    longest: int
    splits: Mapping[str, ListedSplit]


Joint = int | str
"""A joint by its number from 0 or by its name."""
Layout = Literal["hdf5", "npz", "npy", "parquet", "arrow", "csv", "json"]
_SUFFIXES: dict[str, Layout] = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".npz": "npz",
    ".npy": "npy",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,90}", re.ASCII)


class Skeleton(_Strict):
    """The skeleton of a user's own recordings: a packaged topology by name, or all of its parts.

    Attributes:
        topology: A packaged one, such as "kinect_v2"; then nothing down to ``shoulders`` is given.
        joints, parents, mirror, parts, centre, spine, shoulders: As in `Topology`; joints by name
            or number, the root's parent "none" or -1.
        up: The axis of the raw data that points up; what is stored is turned until y does.
        unit: Of the raw positions; what is stored is in metres, unless it is "none".
        scale: Where the unit is "none" (pixels), what positions are multiplied by.
    """

    topology: str = ""
    joints: tuple[str, ...] = ()
    parents: tuple[Joint, ...] = ()
    mirror: tuple[tuple[Joint, Joint], ...] = ()
    parts: dict[str, tuple[Joint, ...]] = {}
    centre: Joint | None = None
    spine: tuple[Joint, Joint] | None = None
    shoulders: tuple[Joint, Joint] | None = None
    up: Literal["x", "y", "z", "-x", "-y", "-z"]
    unit: Literal["m", "cm", "mm", "none"]
    scale: float = 1.0

    @model_validator(mode="after")
    def _either(self) -> Self:
        given = sorted(self.model_fields_set - {"topology", "up", "unit", "scale"})
        if bool(self.topology) == bool(given):
            raise ValueError("either topology names a packaged one, or joints and so on are given")
        if self.scale != 1 and self.unit != "none":
            raise ValueError("scale is for positions without a unit: unit = 'none'")
        if not 0 < self.scale < 1e9:
            raise ValueError("scale is a positive number")
        return self

    def resolved(self, name: str) -> Topology:
        """The topology of what is stored, y up.

        Raises:
            ValueError: it is none; see `Topology`. A joint that there is not.
        """
        if self.topology:
            return load_topology(self.topology)
        if len(set(self.joints)) != len(self.joints):
            raise ValueError("two joints have the same name")
        table: dict[str, Any] = {
            "name": name,
            "joints": self.joints,
            "parents": [-1 if joint == "none" else self._number(joint) for joint in self.parents],
            "mirror": [self._numbers(pair) for pair in self.mirror],
            "parts": {part: self._numbers(joints) for part, joints in self.parts.items()},
        }
        if self.centre is not None:
            table["centre"] = self._number(self.centre)
        for line in ("spine", "shoulders"):
            if pair := getattr(self, line):
                table[line] = self._numbers(pair)
        return Topology.model_validate(table)

    def _numbers(self, joints: Sequence[Joint]) -> list[int]:
        return [self._number(joint) for joint in joints]

    def _number(self, joint: Joint) -> int:
        if isinstance(joint, int):
            return joint
        if joint not in self.joints:
            raise ValueError(f"there is no joint '{joint}': {nearest(joint, self.joints)}")
        return self.joints.index(joint)


class ArraySource(_Strict):
    """Where a user's own arrays lie, and how they are laid out.

    Attributes:
        path: A file, or a pattern of files such as "raw/**/*.npy", seen from the manifest's folder
            or from what --raw names.
        format: By the suffix of ``path`` where it is not given.
        data: What holds the positions. HDF5: path of the data set, such as "*/joints", where `*`
            stands for a sample's group. npz: name of the array, or a pattern; by default every
            array is a sample. Parquet, Arrow: the column. JSON: the key, "a.b" within another; by
            default the document itself.
        axes: The axes of a sample's array: M bodies, T frames, J joints, C coordinates. Axes that
            are flattened into one stand in parentheses: "T(JC)" is a row of J·C numbers for every
            frame. A leading N (HDF5, npz, npy) says that one array holds all samples.
        coordinates: What each entry of C is: x, y, z, or _ for what is passed over. Without z, z
            is 0.
        bodies: Entries of M, needed only where M and T are flattened into one axis.
        lengths: HDF5, npz: the array that holds every sample's number of frames. With N, a sample
            is cut to it; without, the samples lie one after the other along T, the first axis.
        names: What names the samples where a file holds many in rows: a column (Parquet, Arrow) or
            an array (HDF5, npz). By default they are numbered from 0.
        skip: CSV: leading columns that are passed over, such as the time.
        missing: What becomes of a sample in which a joint is NaN while its body is there: it is
            "rejected", or the joint is "interpolated" in time, and held before it is first and
            after it is last seen.
    """

    path: str
    format: Layout | None = None
    data: str = ""
    axes: str
    coordinates: str = "xyz"
    bodies: int | None = None
    lengths: str = ""
    names: str = ""
    skip: int = 0
    missing: Literal["rejected", "interpolated"] = "rejected"

    @property
    def layout(self) -> Layout:
        """The format, given or by suffix."""
        return self.format or _SUFFIXES[Path(self.path).suffix.lower()]

    @property
    def groups(self) -> tuple[str, ...]:
        """The axes of one sample's array: the letters that are flattened into each."""
        return tuple(a or b for a, b in re.findall(r"\(([A-Z]+)\)|([A-Z])", self.axes) if b != "N")

    @property
    def stacked(self) -> bool:
        """Whether one array holds all samples: along N, or one after the other along T."""
        return self.axes.startswith("N") or bool(self.lengths)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format is None and Path(self.path).suffix.lower() not in _SUFFIXES:
            raise ValueError(
                f"the format does not follow from the suffix of {self.path!r}: name it"
            )
        if not re.fullmatch(r"N?(\([MTJC]{2,}\)|[MTJC])+", self.axes):
            raise ValueError("axes are letters of MTJC such as MTJC, NCTJM or T(JC)")
        letters = "".join(self.groups)
        if len(set(letters)) != len(letters) or not set("TJC") <= set(letters):
            raise ValueError("axes name T, J and C once each, and M where there are many bodies")
        if self.bodies is None and any({"M", "T"} <= set(group) for group in self.groups):
            raise ValueError("M and T are flattened into one axis: say bodies = …")
        if self.bodies is not None and ("M" not in letters or self.bodies < 1):
            raise ValueError("bodies is the size of axis M, from 1 on")
        if sorted(self.coordinates.replace("_", "").replace("z", "", 1)) != ["x", "y"]:
            raise ValueError("coordinates are x, y, z once each (z may be left out), and _")
        if self.stacked and self.layout not in ("hdf5", "npz", "npy"):
            raise ValueError("N and lengths are for hdf5, npz and npy")
        if self.lengths and not (self.axes.startswith("N") or self.groups[0] == "T"):
            raise ValueError("lengths need N or T as the first axis")
        if self.axes.startswith("N") and self.lengths and "T" not in self.groups:
            raise ValueError("lengths need T as an axis of its own")
        if self.layout in ("hdf5", "parquet", "arrow") and not self.data:
            raise ValueError(f"data says what holds the positions in {self.layout}")
        if self.stacked and self.layout == "npz" and not self.data:
            raise ValueError("data names the array that holds all samples")
        if self.stacked and re.search(r"[*?\[]", self.data):
            raise ValueError("data names the one array that holds all samples, and is no pattern")
        if self.data and self.layout in ("npy", "csv"):
            raise ValueError(f"data has no meaning in {self.layout}")
        if self.lengths and self.layout == "npy":
            raise ValueError("lengths are for hdf5 and npz")
        if self.names and not (
            self.layout in ("parquet", "arrow") or (self.stacked and self.layout != "npy")
        ):
            raise ValueError("names are for parquet, arrow, and for arrays that hold many samples")
        if self.skip < 0 or (self.skip and self.layout != "csv"):
            raise ValueError("skip is for csv: how many columns to pass over")
        return self


class Where(_Strict):
    """Where a value of each sample stands; one of three.

    Attributes:
        column: In the source itself: a column (Parquet, Arrow), a key (JSON), an attribute of the
            data set or its group or a data set beside it (HDF5), or, where one array holds many
            samples, another with a value for each (HDF5, npz). With ``table``: a column of that.
        pattern: A regular expression that is searched for in the sample's name; its one group is
            the value.
        table: A CSV file beside the manifest with a row for every sample, and a heading.
        key: The table's column that holds the samples' names; by default its first.
    """

    column: str = ""
    pattern: str = ""
    table: str = ""
    key: str = ""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.pattern) == bool(self.column) or (self.pattern and self.table):
            raise ValueError("give one of column, pattern, or table with column")
        if self.key and not self.table:
            raise ValueError("key is the column of a table")
        if self.pattern:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"the pattern is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"the pattern has {groups} groups where one is the value")
        return self


class Labels(Where):
    """Where the class of each sample stands: a name of ``classes``, or a number.

    ``first`` is the number of the first class. Where no classes are listed, they are the values
    that occur, in order.
    """

    first: int = 0


class ArraySplit(Split):
    """Which samples train and which test.

    Attributes:
        by: What decides: "subject", "camera" or "setup", or where another value stands.
        train, test: The values of it that train and test; or, without ``by``, a text file beside
            the manifest that lists the names of the samples, one a line.
        neither: Values of it whose samples are left out on purpose.
    """

    title: str = ""
    by: Field | Where | None = None
    train: tuple[Joint, ...] | str = ("train",)
    test: tuple[Joint, ...] | str = ("test",)
    neither: tuple[Joint, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        files = isinstance(self.train, str), isinstance(self.test, str)
        if self.by is None and not all(files):
            raise ValueError("say by what it splits; or give train and test as files of names")
        if self.by is not None and any(files):
            raise ValueError("train and test list values of what it splits by")
        if self.by is not None:
            values = [str(value) for value in (*self.train, *self.test, *self.neither)]
            if twice := {value for value in values if values.count(value) > 1}:
                raise ValueError(f"{', '.join(sorted(twice))} stands twice")
        return self

    @property
    def apart(self) -> Field | None:
        return None if isinstance(self.by, Where) else self.by


class ArrayDataset(Dataset):
    """A user's own recordings in arrays.

    ``classes`` may be left out; see `Labels`. ``home`` is the folder of its manifest.
    """

    kind: Literal["dataset"] = "dataset"
    format: Literal["arrays"] = "arrays"
    classes: tuple[str, ...] = ()
    skeleton: Skeleton
    source: ArraySource
    labels: Labels
    subjects: Where | None = None
    cameras: Where | None = None
    setups: Where | None = None
    splits: Mapping[str, ArraySplit]
    _file: Path = PrivateAttr(default=Path())

    @property
    def file(self) -> Path:
        """The manifest; what it names lies beside it."""
        return self._file

    @property
    def metric(self) -> bool:
        return self.skeleton.unit != "none"

    def where_is(self, field: Field) -> Where | None:
        """Where a field of each sample stands; None where it does nowhere."""
        return {"subject": self.subjects, "camera": self.cameras, "setup": self.setups}[field]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in (self.name, *self.splits):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} becomes a folder: letters, digits, - and _ only")
        if self.name in manifest_names("dataset"):
            raise ValueError(f"{self.name!r} is the name of a packaged data set: choose another")
        if not self.splits:
            raise ValueError("there is no split: [splits.NAME] says who trains and who tests")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if not 0 < self.fps < 1e6:
            raise ValueError("fps is the number of frames a second")
        for name, split in self.splits.items():
            if isinstance(split.by, str) and self.where_is(split.by) is None:
                raise ValueError(
                    f"split {name} goes by {split.by}, and no [{split.by}s] says where it stands"
                )
        self.skeleton.resolved(self.name)
        return self


AnyDataset = NtuDataset | PkuDataset | ArrayDataset
_DATASET: TypeAdapter[AnyDataset] = TypeAdapter(Annotated[AnyDataset, Discriminator("format")])


def manifest_names(kind: str) -> list[str]:
    """Names of the packaged manifests of a kind, such as "dataset", "topology" or "recipe"."""
    folder = resources.files("skelpipe.manifests")
    found = []
    for file in folder.iterdir():
        if file.name.endswith(".toml"):
            table = tomllib.loads(file.read_text(encoding="utf-8"))
            if table.get("kind") == kind:
                found.append(file.name.removesuffix(".toml"))
    return sorted(found)


def read_manifest(kind: str, name: str) -> dict[str, Any]:
    """The table of a packaged manifest; an unknown name is an error that suggests the nearest."""
    file = resources.files("skelpipe.manifests") / f"{name}.toml"
    if not name.replace("-", "").replace("_", "").isalnum() or not file.is_file():
        raise UserError(f"unknown {kind} '{name}'", remedy=nearest(name, manifest_names(kind)))
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    if table.get("kind") != kind:
        raise UserError(
            f"'{name}' is no {kind} but a {table.get('kind')}",
            remedy=nearest(name, manifest_names(kind)),
        )
    return table


def load_dataset(name: str) -> AnyDataset:
    """A packaged data set manifest by name, such as "ntu60", or one of the user's by its path.

    A path ends with ".toml" or holds a separator.
    """
    if name.endswith(".toml") or "/" in name or "\\" in name:
        return _load_own(Path(name))
    try:
        return _DATASET.validate_python(read_manifest("dataset", name))
    except ValidationError as error:
        raise UserError(f"the manifest of data set '{name}' is wrong", found=error) from error


def _load_own(file: Path) -> AnyDataset:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(
            "the manifest cannot be read",
            file=file,
            found=error,
            remedy="`skelpipe new-dataset NAME` writes one to start from; packaged data sets are "
            + ", ".join(manifest_names("dataset")),
        ) from error
    try:
        dataset = _DATASET.validate_python({"format": "arrays", **table})
    except ValidationError as error:
        raise _fault(file, table, error) from error
    if isinstance(dataset, ArrayDataset):
        dataset._file = file.absolute()
    return dataset


def _fault(file: Path, table: object, error: ValidationError) -> UserError:
    """The fault of a manifest that is most likely the user's: an unknown key before all others."""
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = _place(table, first["loc"])
    if first["type"] == "missing":
        place.append(str(first["loc"][-1]))
    if first["type"] == "extra_forbidden":
        known = _model_at(ArrayDataset, place[:-1]).model_fields
        return UserError(
            f"the manifest has an unknown key '{place[-1]}'",
            file=file,
            place=".".join(place),
            remedy=nearest(place[-1], set(known) - {"kind", "format"}),
        )
    if first["type"] == "missing":
        what, found = f"the manifest lacks '{'.'.join(place)}'", ""
    else:
        what = "the manifest is wrong"
        found = "" if isinstance(first["input"], dict | BaseModel) else repr(first["input"])
    ours = first["type"] == "value_error"  # a sentence that says what is wrong
    if ours:
        what = f"{what}: {first['msg'].removeprefix('Value error, ')}"
    return UserError(
        what,
        file=file,
        place=".".join(place),
        found=found[:200],
        expected="" if ours else first["msg"],
        remedy="`skelpipe new-dataset NAME` writes a manifest that explains every key",
    )


def _place(table: Any, steps: Sequence[int | str]) -> list[str]:
    """Those steps that lead through a table; the others name what Pydantic took it for."""
    place = []
    for step in steps:
        try:
            table = table[step]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(str(step))
    return place


def _model_at(model: type[BaseModel], place: Sequence[str]) -> type[BaseModel]:
    """The model that describes a place in a table."""
    for step in place:
        field = model.model_fields.get(step)
        if field is not None:
            options = [field.annotation, *get_args(field.annotation)]
            inner = [a for a in options if isinstance(a, type) and issubclass(a, BaseModel)]
            model = inner[0] if inner else model
    return model


def is_name(name: str) -> bool:
    """Whether a name can be a folder's: letters, digits, - and _."""
    return bool(_NAME.fullmatch(name))


def new_manifest(name: str) -> str:
    """The text of a manifest to start one of one's own from.

    Raises:
        UserError: the name cannot be a folder's.
    """
    if not is_name(name):
        raise UserError(
            "a data set's name becomes a folder", found=name, expected="letters, digits, - and _"
        )
    if name in manifest_names("dataset"):
        raise UserError(f"'{name}' is the name of a packaged data set", remedy="choose another")
    template = resources.files("skelpipe.manifests") / "new-dataset.toml"
    text = template.read_text(encoding="utf-8")
    return text.removeprefix('kind = "template"\n').replace("NAME", name)


def topology_of(dataset: AnyDataset) -> Topology:
    """The skeleton of a data set, as it is stored."""
    if isinstance(dataset, ArrayDataset):
        return dataset.skeleton.resolved(dataset.name)
    return load_topology(dataset.topology)


def load_topology(name: str) -> Topology:
    """A packaged topology by name, such as "kinect_v2"."""
    try:
        return Topology.model_validate(read_manifest("topology", name))
    except ValidationError as error:
        raise UserError(f"the manifest of topology '{name}' is wrong", found=error) from error
