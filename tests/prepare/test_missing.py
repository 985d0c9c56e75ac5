from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import raw

from skelpipe.errors import UserError
from skelpipe.manifest import Dataset, load_dataset
from skelpipe.prepare.missing import find_missing

NAMES = sorted(raw.key(subject=subject, action=60) for subject in range(1, 6))
BEYOND = raw.key(setup=18, action=61)  # belongs to NTU RGB+D 120 alone


@pytest.fixture
def dataset() -> Dataset:
    """NTU RGB+D with an official list of the five names above."""
    ntu60 = load_dataset("ntu60")
    sha256 = hashlib.sha256("\n".join(NAMES).encode()).hexdigest()
    official = ntu60.missing.model_copy(update={"count": len(NAMES), "sha256": sha256})
    return ntu60.model_copy(update={"missing": official})


@pytest.mark.parametrize("end", ["\n", "\r\n", ".skeleton\n", "  \n"])
def test_the_official_list_is_known_by_its_content(
    tmp_path: Path, dataset: Dataset, end: str
) -> None:
    other = tmp_path / "a.txt"
    other.write_text(NAMES[0] + "\n")
    file = tmp_path / "whatever.txt"
    heading = f"Samples such as {raw.key()} have\n missing skeletons.\n\n"
    file.write_bytes((heading + end.join([BEYOND, *reversed(NAMES), NAMES[0]]) + end).encode())
    missing = find_missing([other, file], dataset, None)
    assert missing is not None
    assert missing.official
    assert missing.names == frozenset(NAMES)
    assert find_missing([other], dataset, None) is None
    assert find_missing([other, file], dataset, file) == missing


def test_a_named_list_may_be_another(tmp_path: Path, dataset: Dataset) -> None:
    file = tmp_path / "mine.list"
    file.write_text(NAMES[0])
    missing = find_missing([], dataset, file)
    assert missing is not None
    assert not missing.official
    assert missing.names == {NAMES[0]}


def test_a_named_list_must_be_one(tmp_path: Path, dataset: Dataset) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(f"nothing of it but {NAMES[0]}\n{BEYOND}\n")
    with pytest.raises(UserError, match="this is no list of recordings"):
        find_missing([], dataset, file)
    with pytest.raises(UserError, match="cannot be read"):
        find_missing([], dataset, tmp_path / "nowhere.txt")
