from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pages import words_of
from sets import Sample, counts, tree, walk, write_set

from skelpipe.report.set_facts import origin, per_class, per_number
from skelpipe.report.set_page import write_set_page
from skelpipe.report.set_plots import bars_figure, columns_figure
from skelpipe.shards.card import read_card

EVIL = "<script>alert('&\"')</script>"


def samples(joints: int, bodies: int = 1, *, flat: bool = False, subjects: int = 3) -> list[Sample]:
    return [
        Sample(
            f"k{number:02}",
            walk(number, 5 + number, joints, 1 + number % bodies, flat=flat),
            part="test" if number % 4 == 3 else "train",
            label=number % 3,
            subject=1 + number % subjects if subjects else 0,
            camera=0,
            setup=number % 2,
        )
        for number in range(12)
    ]


def page(folder: Path, out: Path) -> str:
    write_set_page(folder, out)
    return out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("joints", "bodies", "flat"), [(17, 1, True), (15, 2, False), (20, 1, False)]
)
def test_a_page_of_any_skeleton_holds_the_numbers(
    tmp_path: Path, joints: int, bodies: int, flat: bool
) -> None:
    made = samples(joints, bodies, flat=flat)
    told = counts(made, rejected={"no usable body": 7}, odd={"empty clip": 1234})
    folder = write_set(tmp_path / "set", tree(joints), made, counts=told, metric=not flat)
    text = page(folder, tmp_path / "page.html")
    words = words_of(text)
    assert text.count('<div class="player">') == 6
    assert text.count(" body 2") == 0  # it is in the picture, not in the text
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    frames = [len(sample.poses_MTJC[0]) for sample in made if sample.part == "train"]
    several = sum(len(sample.poses_MTJC) for sample in made if sample.part == "train")
    assert ["train", "9", f"{several}", f"{sum(frames)}"] in cells
    assert ["0  class0", "3", "1"] in cells
    assert ["1", "3", "1"] in cells  # subject 1
    assert ["not stated", "6", "0"] in cells  # setups
    assert ["no usable body", "7"] in cells
    assert ["empty clip", "1,234"] in cells
    assert "The cameras are not stated." in words
    assert any("at least 5, quartiles 7.75, 10.5 and 13.25, at most 16" in word for word in words)
    assert ("unknown unit" in text) == flat


def test_nothing_stated_rejected_or_odd_is_said_in_words(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", tree(17), samples(17, subjects=0))
    words = words_of(page(folder, tmp_path / "page.html"))
    assert "The subjects are not stated." in words
    assert "No recording was rejected." in words
    assert "Nothing odd was met." in words


def test_a_set_without_a_test_part(tmp_path: Path) -> None:
    made = [sample for sample in samples(15) if sample.part == "train"]
    folder = write_set(tmp_path / "set", tree(15), made)
    words = words_of(page(folder, tmp_path / "page.html"))
    assert words[words.index("test") + 1 :][:3] == ["0", "0", "0"]


def test_whole_recordings_have_no_class(tmp_path: Path) -> None:
    made = [Sample(f"k{number}", walk(number, 9, 15), label=-1) for number in range(3)]
    folder = write_set(tmp_path / "set", tree(15), made, classes=("one", "two"))
    text = page(folder, tmp_path / "page.html")
    assert "Whole recordings have no class." in words_of(text)
    assert text.count('aria-label="k1, whole recording"') == 1


def test_published_counts_stand_beside_those_of_the_set(tmp_path: Path) -> None:
    made = samples(15)
    told = counts(made, published={"train": 40091, "test": 16487})
    folder = write_set(tmp_path / "set", tree(15), made, counts=told)
    words = words_of(page(folder, tmp_path / "page.html"))
    assert words[words.index("train") + 1 :][:4] == ["9", "9", "90", "40,091"]
    assert words[words.index("both") + 1 :][:4] == ["12", "12", "126", "56,578"]


def test_names_of_others_do_no_harm(tmp_path: Path) -> None:
    made = [Sample("k", walk(0, 4, 15)), Sample("$x_{$", walk(0, 4, 15))]
    folder = write_set(
        tmp_path / "set",
        tree(15),
        made,
        title=EVIL,
        classes=(EVIL + "$x_{$",),
        warnings=(EVIL,),
        counts=counts(made, rejected={EVIL: 1}),
    )
    text = page(folder, tmp_path / "page.html")
    words_of(text)
    assert EVIL not in text
    assert text.count("<script>") == 1


def test_the_same_set_gives_the_same_page(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", tree(15), samples(15, 2))
    assert page(folder, tmp_path / "a.html") == page(folder, tmp_path / "b.html")


def test_facts_in_words(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", tree(20, up="z"), samples(20), precision="int16", fps=25)
    told = origin(read_card(folder))
    assert told["skeleton"] == "tree20, 20 joints, z up, metres"
    assert told["precision"] == "int16, steps of 0.25 mm"
    assert told["missing list"] == "the data set has none"
    assert told["frames a second"] == "25"
    assert re.fullmatch(r"0\.\d MB, 2 shards", told["size on disk"])


def test_counts_of_both_parts_with_what_is_not_stated_last(tmp_path: Path) -> None:
    card = read_card(write_set(tmp_path / "set", tree(15), samples(15)))
    assert per_number(card, "setups") == {"1": (3, 3), "not stated": (6, 0)}
    assert per_number(card, "subjects") == {"1": (3, 1), "2": (3, 1), "3": (3, 1)}
    assert per_class(card) == {0: (3, 1), 1: (3, 1), 2: (3, 1)}


@pytest.mark.parametrize("names", [1, 2, 60, 61, 120])
def test_bars_of_any_number_of_names(names: int) -> None:
    train, test = np.arange(names).tolist(), (2 * np.arange(names)).tolist()
    figure = bars_figure([f"class {name}" for name in range(names)], {"train": train, "test": test})
    figure.draw_without_rendering()
    labels = [label.get_text() for panel in figure.axes for label in panel.get_yticklabels()]
    assert labels == [f"class {name}" for name in range(names)]
    ends = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert ends == [f"{3 * name:,}" for name in range(names)]


@pytest.mark.parametrize("names", [21, 106, 300])
def test_upright_bars_are_named_as_often_as_can_be_read(names: int) -> None:
    numbers = [str(1 + name) for name in range(names)]
    figure = columns_figure(numbers, {"train": [2] * names, "test": [1] * names}, "subject")
    figure.draw_without_rendering()
    (panel,) = figure.axes
    assert len(panel.patches) == 2 * names
    boxes = [label.get_window_extent() for label in panel.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert len(boxes) >= 20
