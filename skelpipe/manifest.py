"""What a manifests/*.toml may say about data sets and topologies, validated."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
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

    def part(self, value: int) -> Part | None:
        """The part a value of the field belongs to; None where it stands in neither list."""
        if value in self.train:
            return "train"
        return "test" if value in self.test else None


class ListedSplit(Split):
    """A split that the data owners' file lists, recording by recording.

    ``file`` is a regular expression for the file's name; ``recordings`` how many it lists.
    """

    file: str
    recordings: Counts


class MissingList(_Strict):
    """The data owners' list of recordings to leave out, recognised by count and digest.

    ``sha256`` is over the sorted names joined by newlines, UTF-8, no newline at the end.
    """

    count: int
    sha256: str
    where: str


class Dataset(_Strict):
    """A data set: what its recordings are called, what classes they show, how they are split.

    ``mutual`` lists the actions (from 1) that two people perform together. ``published`` is the
    number of samples that others report, None where they do not agree or nobody has.
    """

    kind: Literal["dataset"]
    name: str
    title: str
    topology: str
    fps: float
    where: str
    classes: tuple[str, ...]
    mutual: tuple[int, ...] = ()
    published: int | None = None
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """The split of that name; an unknown one is the user's error."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no split '{name}'", remedy=nearest(name, self.splits))
        return self.splits[name]


class NtuDataset(Dataset):
    """NTU RGB+D: one `.skeleton` file a sample.

    ``setups`` and ``actions`` (first, last; counted from 1, as in file names) say which
    recordings belong to it, so that NTU-60 can be taken out of a folder that holds NTU-120.
    """

    format: Literal["ntu"]
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
    told apart; ``recordings`` how many there are.
    """

    format: Literal["pku"]
    names: str
    recordings: int
    splits: Mapping[str, ListedSplit]


AnyDataset = NtuDataset | PkuDataset
_DATASET: TypeAdapter[AnyDataset] = TypeAdapter(Annotated[AnyDataset, Discriminator("format")])


def manifest_names(kind: str) -> list[str]:
    """Names of the packaged manifests of a kind ("dataset", "topology", "recipe", "protocol")."""
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
    """A packaged data set manifest by name, such as "ntu60"."""
    try:
        return _DATASET.validate_python(read_manifest("dataset", name))
    except ValidationError as error:
        raise UserError(f"the manifest of data set '{name}' is wrong", found=error) from error


def load_topology(name: str) -> Topology:
    """A packaged topology by name, such as "kinect_v2"."""
    try:
        return Topology.model_validate(read_manifest("topology", name))
    except ValidationError as error:
        raise UserError(f"the manifest of topology '{name}' is wrong", found=error) from error
