from __future__ import annotations

import stat
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import raw

from skelpipe.errors import UserError
from skelpipe.prepare import archive, ntu
from skelpipe.prepare.archive import Found, Reader, find_recordings
from skelpipe.prepare.recording import RejectedError

SOME = raw.some_recordings(6)


def find(*places: Path) -> Found:
    return find_recordings(places, ntu.NAME, "NTU RGB+D")


def contents(found: Found) -> dict[str, bytes]:
    with Reader() as reader:
        return {key: reader.read(member) for key, member in found.recordings.items()}


def test_zip_tar_folder_and_loose_files_hold_the_same(tmp_path: Path) -> None:
    stored = tmp_path / "stored.bin"
    with zipfile.ZipFile(stored, "w") as opened:
        for name, data in SOME.items():
            opened.writestr(f"{name}.skeleton", data)
    places = [
        raw.write_zip(tmp_path / "archive.whatever", SOME),
        stored,
        raw.write_tar(tmp_path / "archive.tar", SOME),
        raw.write_folder(tmp_path / "folder" / "deep", SOME).parent,
    ]
    for place in places:
        found = find(place)
        assert list(found.recordings) == sorted(SOME)
        assert contents(found) == SOME
    loose = tmp_path / "folder" / "deep" / f"{min(SOME)}.skeleton"
    assert list(find(loose).recordings) == [min(SOME)]


def test_a_folder_may_hold_archives_loose_files_and_anything_else(tmp_path: Path) -> None:
    names = sorted(SOME)
    raw.write_zip(tmp_path / "a.zip", {name: SOME[name] for name in names[:2]})
    raw.write_tar(tmp_path / "b.tar", {name: SOME[name] for name in names[2:4]})
    raw.write_folder(tmp_path / "c", {name: SOME[name] for name in names[4:]})
    raw.write_tar(tmp_path / "packed.tar.gz", SOME, "w:gz")
    (tmp_path / "readme.md").write_text("hello")
    (tmp_path / f"._{names[0]}.skeleton").write_bytes(b"\0\0")
    with zipfile.ZipFile(tmp_path / "pku.zip", "w") as opened:
        opened.writestr("PKU_Skeleton_Renew/0002-L.txt", "0 " * 150)
    (tmp_path / "circle").symlink_to(tmp_path)
    found = find(tmp_path)
    assert contents(found) == SOME
    notes = "; ".join(found.notes)
    assert "1 PKU-MMD I recordings" in notes
    assert "2 other files" in notes
    assert "packed.tar.gz" in notes


def test_links_to_raw_data_are_followed(tmp_path: Path) -> None:
    raw.write_zip(tmp_path / "there.zip", SOME)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "here.zip").symlink_to(tmp_path / "there.zip")
    assert len(find(tmp_path / "raw").recordings) == len(SOME)


def test_the_same_recording_twice(tmp_path: Path) -> None:
    first = raw.write_zip(tmp_path / "a.zip", SOME)
    second = raw.write_folder(tmp_path / "b", SOME)
    third = raw.write_tar(tmp_path / "c.tar", SOME)
    found = find(first, second, third)
    assert {member.file for member in found.recordings.values()} == {first}
    assert "12 recordings stand in two places" in found.notes[0]
    name = min(SOME)
    other = SOME[name].replace(b"0", b"1", 1)
    assert len(other) == len(SOME[name])
    (second / f"{name}.skeleton").write_bytes(other)
    with pytest.raises(UserError, match="different content") as caught:
        find(first, second)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_links_and_names_that_lead_outside_are_refused(tmp_path: Path) -> None:
    names = sorted(SOME)
    zipped = tmp_path / "a.zip"
    with zipfile.ZipFile(zipped, "w") as opened:
        opened.writestr(f"good/{names[0]}.skeleton", SOME[names[0]])
        opened.writestr(f"../{names[1]}.skeleton", SOME[names[1]])
        opened.writestr(f"/etc/{names[2]}.skeleton", SOME[names[2]])
        link = zipfile.ZipInfo(f"{names[3]}.skeleton")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
    tarred = tmp_path / "b.tar"
    with tarfile.open(tarred, "w") as opened_tar:
        for name, kind in ((names[4], tarfile.SYMTYPE), (names[5], tarfile.LNKTYPE)):
            info = tarfile.TarInfo(f"{name}.skeleton")
            info.type, info.linkname = kind, "/etc/passwd"
            opened_tar.addfile(info)
    found = find(zipped, tarred)
    assert list(found.recordings) == names[:1]
    assert [key for key, _, _ in found.refused] == names[1:]
    kinds = [reason.partition(":")[0] for _, _, reason in found.refused]
    assert kinds == ["unsafe member name"] * 2 + ["not a plain file"] * 3
    with pytest.raises(UserError, match="can be read here"):
        find(tarred)


@pytest.mark.parametrize("flip", [0, 40, 200])
def test_a_damaged_member_is_rejected(tmp_path: Path, flip: int) -> None:
    file = raw.write_zip(tmp_path / "a.zip", SOME)
    found = find(file)
    member = found.recordings[min(SOME)]
    data = bytearray(file.read_bytes())
    data[member.offset + flip + (60 if flip else 0)] ^= 16
    file.write_bytes(data)
    with Reader() as reader, pytest.raises(RejectedError, match="damaged archive member"):
        reader.read(member)


def test_what_a_member_claims_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = {raw.key(): bytes(5_000_000)}
    member = find(raw.write_zip(tmp_path / "a.zip", bomb)).recordings[raw.key()]
    with Reader() as reader:
        with pytest.raises(RejectedError, match="found 1001 bytes"):
            reader.read(replace(member, size=1000))
        monkeypatch.setattr(archive, "LARGEST", 1_000_000)
        with pytest.raises(RejectedError, match="too large"):
            reader.read(member)


def test_fatal_raw_data(tmp_path: Path) -> None:
    def message(place: Path) -> str:
        with pytest.raises(UserError) as caught:
            find(place)
        assert str(place) in str(caught.value)
        return caught.value.what

    assert message(tmp_path / "nowhere") == "there are no raw data"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert message(empty) == "no recordings of NTU RGB+D here"
    text = tmp_path / "text.doc"
    text.write_text("no archive")
    assert message(text) == "this is no archive"
    text.write_text("")
    assert message(text) == "this is no archive"
    pku = tmp_path / "pku.zip"
    with zipfile.ZipFile(pku, "w") as opened:
        opened.writestr("PKU_Skeleton_Renew/0002-L.txt", "0 " * 150)
    assert message(pku) == "this is PKU-MMD I, not NTU RGB+D"
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("a.txt", "")
    assert message(other) == "no recordings of NTU RGB+D here"
    cut = raw.write_zip(tmp_path / "cut.zip", SOME)
    cut.write_bytes(cut.read_bytes()[:-100])
    assert message(cut) == "this zip is damaged"
    packed = raw.write_tar(tmp_path / "a.tgz", SOME, "w:gz")
    assert message(packed) == "a compressed tar cannot be read from the middle"
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr(f"{raw.key()}.skeleton", "0")
    assert message(tmp_path / "lzma.zip") == "this zip is packed in a way that cannot be read"
