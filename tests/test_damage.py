from __future__ import annotations

import pytest

from skelpipe.bench.damage import KINDS, damage, markdown

ignored = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
FORGED = ("labels exchanged in the index, card signed anew",)  # only the JSON tells
HIT_PAYLOADS = (
    "… in an npy header",
    "… in the positions",
    "two samples' positions swapped",
    "shard of another preparation",
    "positions swapped, card signed anew",
)


@ignored
@pytest.mark.parametrize(
    ("faults", "seed"), [(264, 0), pytest.param(2500, 1, marks=pytest.mark.slow)]
)
def test_every_fault_is_found(faults: int, seed: int) -> None:
    rows = {row.kind: row for row in damage(faults, seed)}
    assert sum(row.faults for row in rows.values()) == faults
    assert rows.keys() == KINDS.keys()
    for kind, row in rows.items():
        assert row.verify == row.faults, kind
        loader, plain = row.loader, row.webdataset
        assert loader.stopped + loader.unharmed + loader.wrong == row.faults
        assert plain.stopped + plain.unharmed + plain.wrong == row.faults
        assert kind in FORGED or loader.wrong == 0, kind
    for kind in HIT_PAYLOADS:
        assert rows[kind].loader.stopped == rows[kind].faults
    # What plain webdataset cannot know, and no one would see.
    positions = rows["… in the positions"]
    assert positions.webdataset.wrong == positions.faults
    assert rows["shard cut between two samples"].webdataset.wrong > 0


@ignored
def test_the_same_faults_for_the_same_seed() -> None:
    table = markdown(damage(len(KINDS), 5))
    assert table == markdown(damage(len(KINDS), 5))
    assert table.count("\n") == len(KINDS) + 2
    assert table.splitlines()[-1].startswith(f"| **all** | {len(KINDS)} | {len(KINDS)} |")
