from __future__ import annotations

from pathlib import Path

import pytest
from skelpipe.cli.demo import demo

from skelpipe.checkpoint import read_run
from skelpipe.errors import UserError
from skelpipe.report.tables import comparable, gains, read_results


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with pytest.raises(UserError, match="something else than a demo"):
        demo(out=tmp_path, epochs=1, force=True)
    assert (tmp_path / "shards").is_dir()


def test_a_demo_that_stands_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "generated.zip").touch()
    with pytest.raises(UserError, match="--force"):
        demo(out=tmp_path, epochs=1)


@pytest.mark.slow
def test_the_demo_ends_in_a_page_with_both_floors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    demo(out=out, epochs=1)
    run = read_run(out / "run")
    assert run.recipe.train.epochs == 1
    groups = comparable(read_results(run.folder))
    assert [len(gains(group)) for group in groups] == [4, 4]
    page = (out / "report.html").read_text()
    assert page.count("<img") == 7
    assert "Nothing in them was recorded from people" in page
    assert "no number here says anything about NTU RGB+D" in capsys.readouterr().out
    with pytest.raises(UserError, match="stands here already"):
        demo(out=out, epochs=1)
