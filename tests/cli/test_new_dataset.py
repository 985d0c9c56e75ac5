from __future__ import annotations

import re
from pathlib import Path

import pytest
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.manifest import ArrayDataset, load_dataset, manifest_names, new_manifest


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["new-dataset", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def load(folder: Path, text: str) -> ArrayDataset:
    file = folder / "my.toml"
    file.write_text(text, encoding="utf-8")
    dataset = load_dataset(str(file))
    assert isinstance(dataset, ArrayDataset)
    return dataset


def test_what_is_written_is_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "skelpipe prepare kitchen.toml" in run("kitchen")
    dataset = load_dataset("kitchen.toml")
    assert isinstance(dataset, ArrayDataset)
    assert (dataset.name, len(dataset.skeleton.joints)) == ("kitchen", 16)
    assert dataset.file == tmp_path / "kitchen.toml"


def test_nothing_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        run("kitchen", "--out", file)
    assert file.read_text() == "mine"


def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="becomes a folder"):
        run("../kitchen", "--out", tmp_path / "mine.toml")


def test_the_template_is_no_data_set() -> None:
    assert "new-dataset" not in manifest_names("dataset")
    with pytest.raises(UserError, match="is no dataset"):
        load_dataset("new-dataset")


def alternatives(text: str) -> list[str]:
    """The manifest with each block of commented settings taken in, in place of what it replaces."""
    lines = text.splitlines()
    found: list[str] = []
    at = 0
    while at < len(lines):
        stop = at
        while stop < len(lines) and re.match(r"#\S", lines[stop]):
            stop += 1
        if stop > at:
            block = [line.removeprefix("#") for line in lines[at:stop]]
            rest = [*lines[:at], "@", *lines[stop:]]
            found.append("\n".join(without(rest, block)).replace("@", "\n".join(block)))
        at = stop + 1
    return found


def without(lines: list[str], block: list[str]) -> list[str]:
    """Lines but for the table that a block replaces, or the keys."""
    kept: list[str] = []
    table, keys = "", {line.split(" = ")[0] for line in block}
    if is_table := block[0].startswith("["):
        keys = set()
    for line in lines:
        table = line if line.startswith("[") else table
        replaced = is_table and re.match(re.escape(block[0][:-1]) + r"[].]", table)
        if line == "@" or not (replaced or line.split(" = ")[0] in keys):
            kept.append(line)
    return kept


TEMPLATE = new_manifest("kitchen")


def test_all_blocks_are_found() -> None:
    settings = [line for line in TEMPLATE.splitlines() if re.match(r"#\S", line)]
    assert len(alternatives(TEMPLATE)) == 18
    assert len(settings) == 60


@pytest.mark.parametrize("text", alternatives(TEMPLATE))
def test_every_alternative_is_a_manifest(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) != load(tmp_path, TEMPLATE)


@pytest.mark.parametrize("key", ["axes", "up", "unit", "fps", "name", "path"])
def test_every_setting_that_is_needed_is_asked_for(tmp_path: Path, key: str) -> None:
    text = re.sub(rf"(?m)^{key} = .*\n", "", TEMPLATE)
    with pytest.raises(UserError, match=f"the manifest lacks '.*{key}'"):
        load(tmp_path, text)
