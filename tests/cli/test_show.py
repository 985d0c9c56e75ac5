from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import raw
from PIL import Image, ImageColor
from sets import Sample, tree, walk, write_set
from skelpipe.cli import main as cli
from typer.testing import CliRunner

from skelpipe.errors import UserError
from skelpipe.report import gif

KEY = raw.key()


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["show", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own() -> Path:
    samples = [
        Sample("one", walk(0, 6, 17, flat=True)),
        Sample("two", walk(1, 7, 17, 2), part="test", label=1),
    ]
    return write_set(Path("set"), tree(17), samples, fps=20)


def recording(frames: int = 9) -> bytes:
    """Two bodies, the second of them from the third frame on, and it is narrow enough to stay."""
    rng = np.random.default_rng(0)
    first, second = raw.joints(rng), raw.joints(rng)
    return raw.skeleton(
        [
            [(raw.PERSON, first + 0.02 * frame)]
            + ([(raw.PERSON + 1, second - 0.02 * frame)] if frame > 1 else [])
            for frame in range(frames)
        ]
    )


def shades(file: str, frame: int) -> set[str]:
    """Which of the colours of the first bodies a raw recording's frame shows."""
    with Image.open(file) as gif:
        gif.seek(frame)
        seen = np.array(gif.convert("RGB"))[60:-36].reshape(-1, 3)
    colours = ("#0072B2", "#D55E00", "#009E73")
    return {colour for colour in colours if (seen == ImageColor.getrgb(colour)).all(-1).sum() > 50}


def test_a_sample_of_a_prepared_set(own: Path) -> None:
    assert run(own, "two").strip() == "7 frames, 2 bodies: two.gif"
    with Image.open("two.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (7, 50)
    assert run(own, "one", "--out", "page/one.HTML").startswith("6 frames, 1 body")
    assert "frame 6 of 6, 0.25 s" in Path("page/one.HTML").read_text(encoding="utf-8")


def test_nothing_is_replaced_unasked(own: Path) -> None:
    Path("one.gif").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        run(own, "one")
    assert Path("one.gif").read_bytes() == b"mine"
    run(own, "one", "--force")
    assert Path("one.gif").read_bytes()[:6] == b"GIF89a"
    assert sorted(path.name for path in Path().iterdir()) == ["one.gif", "set"]


def test_bodies_as_they_were_recorded() -> None:
    Path(f"{KEY}.skeleton").write_bytes(recording())
    assert run(f"{KEY}.skeleton").strip() == f"9 frames, 2 bodies: {KEY}.gif"
    assert shades(f"{KEY}.gif", 1) == {"#0072B2"}
    assert shades(f"{KEY}.gif", 2) == {"#0072B2", "#D55E00"}


def test_an_id_that_stands_twice_in_a_frame_is_two_bodies() -> None:
    rng = np.random.default_rng(0)
    frame = [(raw.PERSON, raw.joints(rng)), (raw.PERSON, raw.joints(rng))]
    Path("odd.skeleton").write_bytes(raw.skeleton([frame, frame[:1], []]))
    assert run("odd.skeleton").startswith("3 frames, 2 bodies")
    assert [len(shades("odd.gif", number)) for number in range(3)] == [2, 1, 0]


@pytest.mark.parametrize("member", [f"folder/{KEY}.skeleton", f"{KEY}.skeleton"])
def test_a_member_of_a_zip(member: str) -> None:
    with zipfile.ZipFile("raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"folder/other{KEY}.skeleton", b"0\n")
        archive.writestr(f"folder/{KEY}.skeleton", recording(5))
    assert run(f"raw.zip:{member}").strip() == f"5 frames, 2 bodies: {KEY}.gif"


@pytest.mark.parametrize("pipeline", ["ctrgcn", "agcn"])
def test_a_recording_after_a_pipeline(pipeline: str) -> None:
    Path(f"{KEY}.skeleton").write_bytes(recording(14))
    told = run(f"{KEY}.skeleton", "--pipeline", pipeline, "--out", "x.html")
    assert told.startswith("14 frames, 2 bodies")
    assert f"after {pipeline}" in Path("x.html").read_text(encoding="utf-8")
    run(f"{KEY}.skeleton", "--pipeline", pipeline)
    assert Path(f"{KEY}-{pipeline}.gif").is_file()


def test_a_key_that_leads_elsewhere_stays_here() -> None:
    folder = write_set(Path("set"), tree(15), [Sample("../../away", walk(0, 2, 15))])
    run(folder, "../../away")
    assert Path("away.gif").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["set"], r"which sample[^$]*skelpipe show set two"),
        (["set", "on"], "no sample 'on'[^$]*did you mean 'one'"),
        (["set", "one", "--out", "one.mp4"], r"cannot write '\.mp4'[^$]*\.gif or \.html"),
        (["set", "one", "--pipeline", "agcn"], "--pipeline is for raw files"),
        (["."], "holds no prepared set"),
        (["nowhere"], "no such file or folder"),
        (["nowhere.zip:x.skeleton"], "no such file or folder"),
        (["notes.md"], r"no raw file that can be shown[^$]*\.skeleton"),
        (["notes.md", "one"], "a KEY names a sample of a prepared set"),
        (["notes.md:x.skeleton"], "the zip cannot be read"),
        (["raw.zip:x.skeleton"], r"holds no 'x.skeleton'[^$]*2 members[^$]*bad.skeleton"),
        (["raw.zip:bad.skeleton"], "cannot be used: truncated file"),
        (["raw.zip:nobody.skeleton"], "nothing to draw of nobody[^$]*2 frames"),
        (["raw.zip:nobody.skeleton", "--pipeline", "agnc"], "did you mean 'agcn'"),
        (["raw.zip:nobody.skeleton", "--pipeline", "ctrgcn"], "cannot be used"),
    ],
)
def test_mistakes(own: Path, arguments: list[str], message: str) -> None:
    Path("notes.md").write_text("text")
    with zipfile.ZipFile("raw.zip", "w") as archive:
        archive.writestr("bad.skeleton", b"3\n")
        archive.writestr("nobody.skeleton", b"2\n0\n0\n")
    with pytest.raises(UserError, match=message):
        run(*arguments)
    assert not list(Path().glob("*.gif*"))


@pytest.mark.parametrize("damage", ["crc", "size", "encrypted"])
def test_a_damaged_zip(damage: str) -> None:
    with zipfile.ZipFile("raw.zip", "w") as archive:
        archive.writestr("a.skeleton", recording(3))
    data = bytearray(Path("raw.zip").read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    if damage == "crc":
        data[100] ^= 1
    elif damage == "size":
        data[directory + 24 : directory + 28] = b"\xff\xff\xff\x7f"
    else:
        data[directory + 8] |= 1
        data[6] |= 1
    Path("raw.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"zip cannot be read|too large"):
        run("raw.zip:a.skeleton")


def test_many_frames_of_many_bodies_take_no_memory() -> None:
    rng = np.random.default_rng(0)
    bodies = [(number, raw.joints(rng)) for number in range(40)]
    Path("large.skeleton").write_bytes(
        raw.skeleton([bodies]).replace(b"1\n", b"40001\n", 1) + b"0\n" * 40000
    )
    with pytest.raises(UserError, match=r"too large to be shown[^$]*40 bodies in 40,001 frames"):
        run("large.skeleton")


def test_pku_text() -> None:
    poses = np.zeros((3, 2, 75))
    poses[:, 0], poses[1:, 1] = walk(0, 3, 25)[0].reshape(3, 75), walk(1, 2, 25)[0].reshape(2, 75)
    Path("0002-M.txt").write_text(
        "\n".join(" ".join(map(str, row)) for row in poses.reshape(3, -1))
    )
    assert run("0002-M.txt").strip() == "3 frames, 2 bodies: 0002-M.gif"
    assert [len(shades("0002-M.gif", frame)) for frame in range(3)] == [1, 2, 2]
    Path("0003-M.txt").write_text(" ".join(map(str, poses[0].ravel())))
    assert run("0003-M.txt").startswith("1 frame, 1 body:")


def test_real_motion(real_data: Path) -> None:
    member = "nturgb+d_skeletons/S002C003P003R001A003.skeleton"
    told = run(f"{real_data / 'odd' / 'odd_ntu.zip'}:{member}", "--out", "odd.html")
    assert told.startswith("30 frames, 4 bodies")


def test_a_long_recording_becomes_a_page(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gif, "LONGEST", 6)
    assert run(own, "one").strip() == "6 frames, 1 body: one.gif"
    assert run(own, "two").strip() == "7 frames, 2 bodies: two.html"
