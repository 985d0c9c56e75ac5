"""Generated recordings to measure with, raw and prepared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

from skelpipe.prepare import engine
from skelpipe.prepare.programmes import ACTIONS
from skelpipe.prepare.synth import Take, recording

PREFIX = "skelpipe-bench-"  # of temporary folders
_CLASSES = sorted(ACTIONS["ntu60"][:12])
_SHORT = 30  # frames
_KINDS = 4 * len(_CLASSES)  # of recordings by a replication number, see takes


def write_raw(folder: Path, recordings: int, copies: int) -> int:
    """Write generated recordings as files, each under several names; returns bytes of text."""
    folder.mkdir()
    size = 0
    for number, take in enumerate(islice(takes(), recordings)):
        text = recording(0, take)
        size += len(text) * copies
        for copy in range(copies):
            name = replace(take, replication=1 + number // _KINDS * copies + copy)
            (folder / f"{name.key}.skeleton").write_bytes(text)
    return size


def write_short(folder: Path, files: int) -> None:
    """Write recordings of a second: few different ones, linked under as many names as wanted."""
    folder.mkdir()
    different: list[Path] = []
    for number, take in enumerate(islice(takes(), files)):
        file = folder / f"{take.key}.skeleton"
        if number < _KINDS:
            file.write_bytes(_start(recording(0, take)))
            different.append(file)
        else:
            file.hardlink_to(different[number % _KINDS])


def _start(text: bytes) -> bytes:
    """The first frames of a recording."""
    lines = text.splitlines()
    at = 1
    for _ in range(_SHORT):
        at += 1 + 27 * int(lines[at])
    return b"\n".join([b"%d" % _SHORT, *lines[1:at], b""])


def takes() -> Iterator[Take]:
    """Recordings without end, spread evenly over parts and cameras, so that workers share well."""
    for replication in count(1):
        for action in _CLASSES:
            for subject in (1, 3):  # one of NTU-60's training subjects, one of its test subjects
                for camera in (1, 2):  # of which the split by camera does the same
                    yield Take(1, camera, subject, replication, action)


def prepared_set(folder: Path, recordings: int, copies: int) -> Path:
    write_raw(folder / "raw", recordings, copies)
    done = engine.prepare("ntu60", ["xsub"], raw=[folder / "raw"], out=folder, workers=1)
    return done.sets[0].folder
