from __future__ import annotations

from pathlib import Path

import pytest
import raw

from skelpipe.manifest import NtuDataset, load_dataset
from skelpipe.prepare import plan as planning
from skelpipe.prepare.archive import Member
from skelpipe.prepare.listing import Unit
from skelpipe.prepare.ntu_listing import _unit, list_ntu
from skelpipe.prepare.plan import Plan, make_plan

NTU60 = load_dataset("ntu60")
assert isinstance(NTU60, NtuDataset)


def listed(members: dict[str, Member]) -> list[Unit]:
    return [_unit(NTU60, key, members[key], {}) for key in sorted(members)]


def members(subjects: range, where: str = "a.zip") -> dict[str, Member]:
    keys = [raw.key(camera=c, subject=s, action=a)
            for s in subjects for c in (1, 2, 3) for a in range(1, 6)]  # fmt: skip
    return {
        key: Member(Path(where), f"{key}.skeleton", 7 * i, 500, 900 + 10 * (i % 7), "zip-deflated")
        for i, key in enumerate(keys)
    }


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(planning, "SHARD_BYTES", 1000)
    return make_plan(NTU60.splits, listed(members(range(1, 9))))


def test_every_sample_stands_once_in_every_split(plan: Plan) -> None:
    for split, rule in NTU60.splits.items():
        seen = []
        for group in plan.of([split]):
            for unit in group.units:
                (clip,) = unit.clips
                assert rule.part(getattr(clip, rule.field)) == group.parts[split]
                seen.append(clip.key)
        assert sorted(seen) == sorted(members(range(1, 9)))


def test_shards_are_numbered_without_a_gap_and_of_about_one_size(plan: Plan) -> None:
    for split in NTU60.splits:
        names = [group.shards[split] for group in plan.of([split])]
        for part in ("train", "test"):
            of_part = [name for name in names if name.startswith(part)]
            assert len(of_part) > 2
            assert of_part == [f"{part}-{number:06d}.tar" for number in range(len(of_part))]
    sizes = [group.stored for group in plan.groups]
    assert max(sizes) <= 1000 + 110
    assert min(sizes) > 500


def test_the_plan_depends_on_names_and_sizes_only(plan: Plan) -> None:
    moved = {
        key: Member(Path("elsewhere"), f"x/{key}.skeleton", 1, 1, member.size, "plain")
        for key, member in reversed(members(range(1, 9)).items())
    }
    assert make_plan(NTU60.splits, listed(moved)).digest == plan.digest
    assert make_plan(NTU60.splits, listed(members(range(1, 8)))).digest != plan.digest


def test_a_value_in_neither_list_is_outside_of_that_split_alone(tmp_path: Path) -> None:
    names = [raw.key(camera=camera, subject=s) for s in (40, 41) for camera in (1, 2, 3)]
    place = raw.write_zip(tmp_path / "raw.zip", dict.fromkeys(names, b"0\n"))
    listing = list_ntu(NTU60, [place], None)
    outside = listing.outside["xsub"]
    keys = [key for key, _, _ in outside]
    assert keys == sorted(raw.key(camera=camera, subject=41) for camera in (1, 2, 3))
    assert "subject 41" in outside[0][2]
    assert not listing.outside["xview"]
    plan = make_plan(NTU60.splits, listing.units)
    assert sum(group.clips for group in plan.of(["xsub"])) == 3
    assert sum(group.clips for group in plan.of(["xview"])) == 6
