"""Recordings where they lie: members of folders, zips and tars, read in place, never extracted.

What something is follows from what its members are called inside, never from an archive's name.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Literal, Self

from isal import isal_zlib

from skelpipe.errors import UserError

from . import ntu
from .recording import RejectedError

LARGEST = 64 << 20  # bytes of one recording; the longest of NTU RGB+D are a tenth of that
_TEXT = 1 << 20  # bytes up to which a text file may be a list of recordings
_KNOWN = {
    "NTU RGB+D": ntu.NAME,
    "PKU-MMD I": re.compile(r"\d{4}-[LMR]\.txt", re.ASCII),
    "PKU-MMD II": re.compile(r"A\d\dN\d\d-[LMR]\.txt", re.ASCII),
}
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # gzip, bzip2, xz: no reading from the middle


@dataclass(frozen=True, slots=True)
class Member:
    """A recording where it lies: so many bytes of a file from an offset on.

    Attributes:
        file: The archive, or the loose file itself.
        name: The member's name in the archive.
        offset: Its first byte; for a zip, that of its local header.
        stored: Bytes it takes in the file.
        size: Bytes once unpacked.
        packing: How it is kept.
        crc: Its CRC-32 where the archive tells it.
    """

    file: Path
    name: str
    offset: int
    stored: int
    size: int
    packing: Literal["plain", "zip-stored", "zip-deflated"]
    crc: int | None = None

    @property
    def source(self) -> str:
        """The member's base name, which says nothing about this machine."""
        return self.name.rpartition("/")[2]

    def __str__(self) -> str:
        return str(self.file) if self.name == self.file.name else f"{self.file}:{self.name}"


@dataclass(frozen=True)
class Found:
    """What the raw data hold.

    Attributes:
        recordings: Key -> where it lies, sorted by key.
        refused: (key, source, reason) of members that are not read, sorted.
        texts: Small text files beside the recordings, sorted.
        notes: What was passed over, in sentences for the user.
    """

    recordings: dict[str, Member]
    refused: tuple[tuple[str, str, str], ...]
    texts: tuple[Path, ...]
    notes: tuple[str, ...]


class Reader:
    """Reads members; keeps the file it has read from last open until it is left."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def read(self, member: Member) -> bytes:
        """The bytes of a member.

        Raises:
            RejectedError: the member is damaged or beyond `LARGEST`.
            UserError: the file cannot be read.
        """
        if max(member.size, member.stored) > LARGEST:
            raise RejectedError("too large", found=f"{member.size} bytes", expected=f"≤ {LARGEST}")
        try:
            data = self._bytes(member.file, self.start_of(member), member.stored)
        except OSError as error:
            raise UserError("the raw data cannot be read", file=member.file, found=error) from error
        if member.packing == "zip-deflated":
            data = inflated(data, member.size + 1)
        if len(data) != member.size:
            raise RejectedError(
                "damaged archive member", found=f"{len(data)} bytes", expected=str(member.size)
            )
        if member.crc is not None and isal_zlib.crc32(data) != member.crc:
            raise RejectedError("damaged archive member", found="another CRC-32")
        return data

    def start_of(self, member: Member) -> int:
        """Where the bytes of a member begin in its file, packed or not.

        Raises:
            RejectedError: there is no member of a zip.
            OSError: the file cannot be read.
        """
        if member.packing == "plain":
            return member.offset
        # The central directory, read once, gave the place; the local header differs in length.
        local = self._bytes(member.file, member.offset, 30)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise RejectedError("damaged archive member", found="no zip header")
        names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        return member.offset + 30 + names

    def _bytes(self, file: Path, offset: int, size: int) -> bytes:
        if file != self._file:
            self._close()
            self._descriptor, self._file = os.open(file, os.O_RDONLY), file
        parts = []
        while size and (part := os.pread(self._descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._descriptor)
            self._file = None


def loose(file: Path) -> Member:
    """A file that is no archive, as the one member of itself."""
    size = file.stat().st_size
    return Member(file, file.name, 0, size, size, "plain")


def inflated(data: bytes, most: int) -> bytes:
    """The first bytes, ``most`` of them, of what a zip has deflated.

    Raises:
        RejectedError: it is damaged.
    """
    try:
        return bytes(isal_zlib.decompressobj(-15).decompress(data, most))
    except isal_zlib.error as error:  # type: ignore[misc]  # typed as an instance
        raise RejectedError("damaged archive member", found=str(error)) from error


def find_recordings(
    raw: Sequence[Path],
    name: re.Pattern[str],
    title: str,
    kind: Callable[[Member], str] = lambda member: "",
) -> Found:
    """All recordings in folders (with what is below them), zips, tars and loose files.

    Args:
        raw: Where to look.
        name: What a recording's base name looks like; its first group is the key.
        title: The data set's, for messages.
        kind: Tells members of one name apart, by where they lie or what they hold: what it returns
            is put before the key.

    Raises:
        UserError: there is no such place, a named file is no archive or is damaged, the same
            recording stands in two places with different content, or nothing matches.
    """
    found: dict[str, Member] = {}
    refused: dict[str, tuple[str, str]] = {}
    texts: dict[Path, None] = {}
    others: Counter[str] = Counter()
    notes: list[str] = []
    twice = 0
    for member in _members(raw, texts, others, notes):
        match = name.fullmatch(member.source)
        if match is None:
            others[_known(member.source)] += 1
            continue
        fault = _fault(member)
        if fault:
            refused[match.group(1)] = (member.source, fault)
            continue
        key = kind(member) + match.group(1)
        if key in found:
            _same(found[key], member)
            twice += 1
        else:
            found[key] = member
    if twice:
        notes.append(f"{twice:,} recordings stand in two places with the same content: read once")
    if not found:
        raise _nothing(raw, title, refused, others, notes)
    passed_over = sum(others.values())
    if passed_over:
        kinds = ", ".join(f"{count:,} {what}" for what, count in sorted(others.items()))
        notes.append(f"passed over {kinds}")
    return Found(
        recordings=dict(sorted(found.items())),
        refused=tuple((key, *why) for key, why in sorted(refused.items()) if key not in found),
        texts=tuple(sorted(texts)),
        notes=tuple(notes),
    )


def _members(
    raw: Sequence[Path], texts: dict[Path, None], others: Counter[str], notes: list[str]
) -> Iterator[Member]:
    for path in raw:
        if not path.exists():
            raise UserError(
                "there are no raw data",
                file=path,
                found="no such file or folder",
                remedy="put the official archive there, or name it with --raw",
            )
        inside = path.is_dir()
        if not inside:
            texts.update(dict.fromkeys(_texts(path.parent.iterdir())))
        files = list(_walk(path)) if inside else [path]
        texts.update(dict.fromkeys(_texts(files) if inside else ()))
        for file in files:
            yield from _open(file, inside, others, notes)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in sorted order; links to folders are followed, but not in circles."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(place, name) for name in sorted(names))


def _texts(files: Iterable[Path]) -> list[Path]:
    return [
        file
        for file in files
        if file.suffix.lower() == ".txt" and file.is_file() and file.stat().st_size <= _TEXT
    ]


def _open(file: Path, inside: bool, others: Counter[str], notes: list[str]) -> Iterator[Member]:
    """The members of one file; ``inside`` a folder, files of other kinds are passed over."""
    try:
        status = file.stat()
    except OSError:  # a link to nothing
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        yield Member(file, file.name, -1, 0, 0, "plain")
        return
    if _known(file.name) != "other files":
        yield Member(file, file.name, 0, status.st_size, status.st_size, "plain")
        return
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise UserError("the raw data cannot be read", file=file, found=error) from error
    suffixes = {suffix.lower() for suffix in file.suffixes}
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06") or ".zip" in suffixes:
        yield from _zip_members(file)
    elif head[257:262] == b"ustar":
        yield from _tar_members(file)
    elif head.startswith(_PACKED) and (suffixes & {".tar", ".tgz", ".tbz2", ".txz"} or not inside):
        if not inside:
            raise UserError(
                "a compressed tar cannot be read from the middle",
                file=file,
                remedy="gunzip (bunzip2, unxz) it first, then name the .tar",
            )
        notes.append(f"passed over a compressed tar: {file} (gunzip it to have it read)")
    elif not inside:
        raise UserError(
            "this is no archive",
            file=file,
            found=repr(head[:16]) if head else "an empty file",
            expected="a zip or tar of recordings, or a folder that holds them",
        )
    elif file.suffix.lower() != ".txt":
        others["other files"] += 1


def _zip_members(file: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(file) as opened:
            infos = opened.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            "this zip is damaged",
            file=file,
            found=error,
            remedy="fetch it again and compare its size with the owners'",
        ) from error
    for info in infos:
        if info.filename.endswith("/"):  # is_dir() fails on an empty name
            continue
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            how = "encrypted" if info.flag_bits & 1 else f"method {info.compress_type}"
            raise UserError(
                "this zip is packed in a way that cannot be read",
                file=file,
                place=info.filename,
                found=how,
                expected="stored or deflated",
                remedy="unpack it and name the folder",
            )
        # A link is kept under its name alone, so that it is refused and never read.
        linked = stat.S_ISLNK(info.external_attr >> 16)
        yield Member(
            file,
            info.filename,
            -1 if linked else info.header_offset,
            info.compress_size,
            info.file_size,
            "zip-deflated" if info.compress_type else "zip-stored",
            info.CRC,
        )


def _tar_members(file: Path) -> Iterator[Member]:
    try:
        with tarfile.open(file, "r:") as opened:
            for info in opened:
                if not info.isdir():
                    readable = info.isreg() and not info.issparse()
                    offset = info.offset_data if readable else -1
                    yield Member(file, info.name, offset, info.size, info.size, "plain")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(
            "this tar is damaged",
            file=file,
            found=error,
            remedy="fetch it again and compare its size with the owners'",
        ) from error


def _fault(member: Member) -> str:
    """Why a member is not read, though its name fits; empty where it is."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if member.offset < 0:
        return "not a plain file: a link, a pipe or the like"
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", member.name):
        return "unsafe member name: it leads outside the archive"
    return ""


def _same(first: Member, second: Member) -> None:
    """Raise unless two places hold the same recording."""
    same = first.size == second.size
    if same:
        with Reader() as reader:
            sums = [
                member.crc if member.crc is not None else isal_zlib.crc32(reader.read(member))
                for member in (first, second)
            ]
        same = sums[0] == sums[1]
    if not same:
        raise UserError(
            f"the recording {first.source} stands in two places with different content",
            file=str(first),
            found=str(second),
            remedy="name only the one you mean with --raw",
        )


def _known(source: str) -> str:
    for title, name in _KNOWN.items():
        if name.fullmatch(source):
            return f"{title} recordings"
    return "other files"


def _nothing(
    raw: Sequence[Path],
    title: str,
    refused: dict[str, tuple[str, str]],
    others: Counter[str],
    notes: list[str],
) -> UserError:
    where = ", ".join(map(str, raw))
    known = [what for what in others if what != "other files"]
    if refused:
        return UserError(
            f"no recording of {title} can be read here",
            file=where,
            found="; ".join(f"{source}: {why}" for source, why in list(refused.values())[:3]),
        )
    if known:
        return UserError(
            f"this is {known[0].removesuffix(' recordings')}, not {title}",
            file=where,
            found=f"{others[known[0]]:,} {known[0]}",
            remedy="name the data set that it is, or another archive with --raw",
        )
    found = f"{others['other files']:,} other files" if others else "nothing"
    return UserError(
        f"no recordings of {title} here",
        file=where,
        found="; ".join([found, *notes]),
        expected="a folder, zip or tar with members such as S001C001P001R001A001.skeleton "
        "(NTU RGB+D) or 0002-L.txt (PKU-MMD)",
        remedy="name the official archive with --raw",
    )
