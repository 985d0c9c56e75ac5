from __future__ import annotations

from pathlib import Path

import pytest
import raw
from sets import Sample, counts, tree, walk, write_set
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.prepare.engine import prepare


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["info", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def rows(output: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = (line.strip("│┃ ").replace("┃", "│") for line in output.splitlines())
    return [[cell.strip() for cell in line.split("│")] for line in lines]


def test_shows_the_card_of_the_newest_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKELPIPE_SHARDS", str(tmp_path / "shards"))
    with pytest.raises(UserError, match="there is no prepared set"):
        run()
    place = raw.write_zip(tmp_path / "raw.zip", raw.some_recordings())
    for split in ("xsub", "xview"):
        result = prepare("ntu60", [split], raw=[place], out=tmp_path / "shards", workers=1)
    card = result.sets[0].card
    newest = run()
    assert "split xview" in newest
    assert "ctrgcn version" in newest
    assert card.data_digest[:40] in newest
    assert "59 more classes have no sample" in newest
    named = run(tmp_path / "shards" / "ntu60" / "ctrgcn" / "xsub")
    assert "split xsub" in named
    assert ["0  drink water", "18", "6"] in rows(named)
    assert ["3", "0", "6"] in rows(named)  # subject 3
    assert "frames per sample: 4 at least, quartiles 4, 4, 4, 4 at most" in named


def test_a_folder_without_a_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="skelpipe prepare"):
        run(tmp_path)


def large(folder: Path) -> Path:
    """120 classes and 106 subjects, 53 of them in each part; cameras and some setups not stated."""
    samples = [
        Sample(
            f"k{number:03}",
            walk(number, 3 + number % 40, 15, 1 + (number % 4 == 0)),
            part="test" if number % 2 else "train",
            label=number % 120,
            subject=1 + number % 106,
            camera=0,
            setup=number % 3,
        )
        for number in range(240)
    ]
    told = counts(samples, rejected={"no usable body": 5}, odd={"overlap": 12, "empty clip": 1300})
    return write_set(folder, tree(15), samples, counts=told, precision="int16")


@pytest.mark.parametrize("width", [60, 80, 160])
def test_wide_sets_stay_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    folder = large(tmp_path / "set")
    monkeypatch.setattr("skelpipe.cli.info.console.width", width)
    shown = run(folder)
    beside = shown.partition("samples per subject")[2].partition("frames per sample")[0]
    assert max(map(len, beside.splitlines())) <= width
    assert ["119  class119", "0", "2"] in rows(shown)
    assert "samples per subject, train (53 subjects)" in shown
    pairs = shown.partition("train (53 subjects)")[2].partition("samples per")[0].split()
    assert pairs[:2] == ["1:", "3"]
    assert sorted(map(int, (pair.strip(":") for pair in pairs[::2]))) == list(range(1, 107, 2))
    assert "the cameras are not stated" in shown
    assert ["not stated", "40", "40"] in rows(shown)
    assert ["empty clip", "1,300"] in rows(shown)
    assert ["no usable body", "5"] in rows(shown)
    assert "int16, steps of 0.25 mm" in shown
    assert ["2", "60", "0"] in rows(shown)  # bodies
    assert "frames per sample: 3 at least, quartiles 12.75, 22.5, 32.25, 42 at most" in shown
    bars = [line.split() for line in shown.splitlines() if "█" in line]
    assert sum(int(bar[1]) for bar in bars) == 240
    assert max(len(bar[2]) for bar in bars) == 40


def test_names_of_others_are_shown_as_they_are(tmp_path: Path) -> None:
    samples = [Sample("k", walk(0, 3, 15))]
    folder = write_set(
        tmp_path / "set", tree(15), samples, classes=("[bold]a[/bold]",), title="[red]T"
    )
    shown = run(folder)
    assert "[bold]a[/bold]" in shown
    assert "[red]T (own)" in shown


def test_whole_recordings_have_no_class(tmp_path: Path) -> None:
    samples = [Sample("k", walk(0, 3, 15), label=-1)]
    shown = run(write_set(tmp_path / "set", tree(15), samples, classes=("one", "two")))
    assert "whole recordings have no class" in shown
    assert "more classes" not in shown


def test_writes_a_page(tmp_path: Path) -> None:
    folder, out = large(tmp_path / "set"), tmp_path / "page.html"
    assert str(out) in run(folder, "--html", out).replace("\n", "")
    first = out.read_text(encoding="utf-8")
    assert "119  class119" in first
    with pytest.raises(UserError, match="exists already"):
        run(folder, "--html", out)
    run(folder, "--html", out, "--seed", 1, "--force")
    assert out.read_text(encoding="utf-8") != first
