from __future__ import annotations

import time

import numpy as np
import pytest
import raw

from skelpipe.prepare.ntu import NAME, parse, parse_name
from skelpipe.prepare.recording import RejectedError


def frames(count: int = 3) -> list[list[raw.Body]]:
    rng = np.random.default_rng(1)
    return [[(raw.PERSON + body, raw.joints(rng)) for body in range(2)] for _ in range(count)]


def test_reads_what_was_written() -> None:
    given = frames()
    read = parse(raw.skeleton(given))
    assert read.frames == 3
    assert read.frame_R.tolist() == [0, 0, 1, 1, 2, 2]
    assert read.id_R.tolist() == [raw.PERSON, raw.PERSON + 1] * 3
    np.testing.assert_array_equal(read.xyz_RJC, [xyz for bodies in given for _, xyz in bodies])


@pytest.mark.parametrize(
    "data",
    [
        raw.skeleton(frames(), end="\r\n"),
        raw.skeleton(frames(), tail="\n\n  \n"),
        raw.skeleton(frames()).rstrip(b"\n"),
        raw.skeleton(frames(), other="NaN"),
        raw.skeleton(frames(), other="-1.#IND"),
        raw.skeleton(frames()).replace(b" ", b"  "),
        raw.skeleton(frames()).replace(b" ", b"\t"),
        raw.skeleton(frames()).replace(b" 2\n", b" 2 \n"),
        raw.skeleton(frames()).replace(b" 2\n", b" 2\r\r\n"),
    ],
)
def test_reads_what_is_odd_but_legal(data: bytes) -> None:
    plain, odd = parse(raw.skeleton(frames())), parse(data)
    np.testing.assert_array_equal(plain.xyz_RJC, odd.xyz_RJC)
    assert plain.id_R.tolist() == odd.id_R.tolist()


def test_reads_empty_frames_many_bodies_and_the_largest_id() -> None:
    rng = np.random.default_rng(2)
    many = [(2**63 - 1 - body, raw.joints(rng)) for body in range(9)]
    read = parse(raw.skeleton([[], many, []]))
    assert read.frames == 3
    assert read.frame_R.tolist() == [1] * 9
    assert read.id_R[0] == 2**63 - 1
    assert len(np.unique(read.id_R)) == 9
    assert parse(b"0\n").xyz_RJC.shape == (0, 25, 3)
    assert parse(b"2\n0\n0\n").frames == 2


GOOD = raw.skeleton(frames())
LINES = GOOD.split(b"\n")


def changed(line: int, text: bytes) -> bytes:
    return b"\n".join([*LINES[:line], text, *LINES[line + 1 :]])


@pytest.mark.parametrize(
    ("data", "kind", "line"),
    [
        (b"", "truncated file", ""),
        (b"\n\n", "truncated file", ""),
        (b"\n".join(LINES[:50]), "truncated file", "line 50"),
        (GOOD[:2000], "truncated file", ""),
        (changed(0, b"-3"), "wrong frame count", "line 1"),
        (changed(0, b"999999999999"), "truncated file", ""),
        (changed(0, b"9" * 5000), "wrong frame count", "line 1"),
        (changed(0, b"3.0"), "wrong frame count", "line 1"),
        (changed(1, b"1000000000"), "wrong body header", ""),
        (changed(3, b"24"), "wrong joint count", "line 4"),
        (changed(3, b"1000000000000"), "wrong joint count", "line 4"),
        (changed(2, b"12 0 1"), "wrong body header", "line 3"),
        (changed(2, LINES[2].replace(b"7205", b"99997205")), "wrong body header", "line 3"),
        (changed(5, b"a" + LINES[5]), "no number in x, y, z", "line 6"),
        (changed(5, b"NaN 0 1 0 0 0 0 0 0 0 0 2"), "no number in x, y, z", "line 6"),
        (changed(5, b"0 inf 1 0 0 0 0 0 0 0 0 2"), "no number in x, y, z", "line 6"),
        (changed(5, b"0 0 1e999 0 0 0 0 0 0 0 0 2"), "no number in x, y, z", "line 6"),
        (changed(5, b"0 0 1_0 0 0 0 0 0 0 0 0 2"), "no number in x, y, z", "line 6"),
        (changed(5, b"0,5 0 1 0 0 0 0 0 0 0 0 2"), "no number in x, y, z", "line 6"),
        (changed(5, b"0 0 1"), "wrong joint row", "line 6"),
        (changed(5, b""), "wrong joint row", "line 6"),
        (GOOD + b"more\n", "text after the last frame", ""),
        (GOOD.replace(b"2\n", b"\xc3\xa9\n", 1), "not a text file", ""),
        (b"PK\x03\x04\x00\x00", "wrong frame count", ""),
    ],
)
def test_rejects_what_is_damaged(data: bytes, kind: str, line: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(data)
    assert caught.value.kind == kind
    assert line in caught.value.reason


def test_mutated_files_raise_only_our_error_and_soon() -> None:
    rng = np.random.default_rng(3)
    pieces = [b"", b"\n", b" ", b"-", b"9" * 30, b"nan", b"\r", b"\x00", b"1e400", b"\xff", b"25"]
    slowest = 0.0
    rejected = 0
    for _ in range(3000):
        data = bytearray(GOOD)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(data) + 1))
            match rng.integers(4):
                case 0:
                    data[start : start + 1] = bytes([rng.integers(256)])
                case 1:
                    data[start : start + int(rng.integers(200))] = b""
                case 2:
                    data[start:start] = pieces[rng.integers(len(pieces))]
                case 3:
                    data[start:start] = data[: int(rng.integers(500))]
        began = time.process_time()
        try:
            read = parse(bytes(data))
        except RejectedError:
            rejected += 1
        else:
            assert np.isfinite(read.xyz_RJC).all()
            assert read.xyz_RJC.shape == (len(read.id_R), 25, 3)
        slowest = max(slowest, time.process_time() - began)
    assert rejected > 500
    assert slowest < 0.5


def test_names_are_read_by_width() -> None:
    assert NAME.fullmatch("S018C003P106R002A120.skeleton")
    assert not NAME.fullmatch("._S018C003P106R002A120.skeleton")
    name = parse_name("S018C003P106R002A120")
    assert (name.setup, name.camera, name.subject, name.replication, name.action) == (
        18, 3, 106, 2, 120,
    )  # fmt: skip
