"""Topology of a skeleton: joints, the tree they form, mirror pairs and body parts. NumPy only."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class Topology(BaseModel):
    """A skeleton's joints, counted from 0.

    Attributes:
        joints: Joint names; J of them.
        parents: Parent of each joint in a tree with one root, whose parent is -1.
        mirror: Pairs of joints that change place in a mirror.
        parts: Name -> joints of each body part; together they are all joints, each once. Parts are
            numbered by their lowest joint, wherever they were read from.
        up: The axis that points up ("x", "y" or "z").
        centre: The joint that "ctrgcn" and "agcn" move to the origin; by default the root.
        spine: (lower, upper) joint of the bone that "agcn" turns upwards.
        shoulders: (left, right) joint of the line that "agcn" turns to +x.
        bones: The joint at the other end of each joint's bone in the bone stream where published
            lists differ from `parents`; the root's is itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = "topology"
    name: str
    title: str = ""
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    mirror: tuple[tuple[int, int], ...]
    parts: dict[str, tuple[int, ...]]
    up: str = "y"
    centre: int = -1
    spine: tuple[int, int] | None = None
    shoulders: tuple[int, int] | None = None
    bones: tuple[int, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _centre_is_root(cls, table: Any) -> Any:
        if isinstance(table, dict) and "centre" not in table and -1 in table.get("parents", ()):
            return {**table, "centre": list(table["parents"]).index(-1)}
        return table

    @field_validator("parts")
    @classmethod
    def _numbered(cls, parts: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        if not all(parts.values()):
            raise ValueError("a part without joints")
        return dict(sorted(parts.items(), key=lambda part: min(part[1])))

    @model_validator(mode="after")
    def _check(self) -> Self:
        count = len(self.joints)
        if len(self.parents) != count:
            raise ValueError(f"{len(self.parents)} parents for {count} joints")
        if [p for p in self.parents if not -1 <= p < count]:
            raise ValueError(f"parents must lie between -1 and {count - 1}")
        if self.parents.count(-1) != 1:
            raise ValueError("exactly one joint, the root, has the parent -1")
        if len(self.order) != count:
            raise ValueError("the parents hold a cycle")
        named = [self.centre, *(self.spine or ()), *(self.shoulders or ())]
        if not set(named) <= set(range(count)):
            raise ValueError(f"centre, spine and shoulders must lie between 0 and {count - 1}")
        if self.bones and (len(self.bones) != count or not set(self.bones) <= set(range(count))):
            raise ValueError(f"bones must be {count} joints between 0 and {count - 1}")
        paired = [joint for pair in self.mirror for joint in pair]
        if len(set(paired)) != len(paired) or not set(paired) <= set(range(count)):
            raise ValueError("a joint stands in two mirror pairs, or is none of the joints")
        covered = sorted(joint for part in self.parts.values() for joint in part)
        if covered != list(range(count)):
            raise ValueError("the parts must cover every joint exactly once")
        return self

    @property
    def root(self) -> int:
        return self.parents.index(-1)

    @property
    def bone_parents(self) -> tuple[int, ...]:
        """`bones`, by default the parents, and the root its own."""
        root = self.root
        return self.bones or tuple(root if p < 0 else p for p in self.parents)

    @property
    def order(self) -> tuple[int, ...]:
        """Joints with every parent before its children (S20: index order is not topological)."""
        placed = [self.root]
        for joint in placed:
            placed += [child for child, parent in enumerate(self.parents) if parent == joint]
            if len(placed) > len(self.parents):
                break
        return tuple(placed)

    @property
    def mirrored(self) -> npt.NDArray[np.int64]:
        """The joint that stands at each place after mirroring: an involution, shape (J,)."""
        swapped = np.arange(len(self.joints))
        for left, right in self.mirror:
            swapped[left], swapped[right] = right, left
        return swapped

    @property
    def part_of(self) -> npt.NDArray[np.int64]:
        """Number of the part that each joint belongs to, shape (J,)."""
        part_of = np.zeros(len(self.joints), dtype=np.int64)
        for number, part in enumerate(self.parts.values()):
            part_of[list(part)] = number
        return part_of

    @property
    def ancestry(self) -> npt.NDArray[np.float32]:
        """A[j, k] = 1 where bone k lies on the path from the root to joint j, shape (J, J).

        A bone carries its child's number. Joints are the root plus ``ancestry @ bones``, which
        turns the walk down the tree (SLiM, Algorithm 4, Step 4) into one matrix product.
        """
        ancestry = np.zeros((len(self.joints), len(self.joints)), dtype=np.float32)
        for joint in self.order:
            if self.parents[joint] >= 0:
                ancestry[joint] = ancestry[self.parents[joint]]
                ancestry[joint, joint] = 1
        return ancestry
