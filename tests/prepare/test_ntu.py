from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import raw

from skelpipe.prepare import ntu
from skelpipe.prepare.ntu import NAME, parse, parse_name
from skelpipe.prepare.recording import Recording, RejectedError


def frames(count: int = 3) -> list[list[raw.Body]]:
    rng = np.random.default_rng(1)
    return [[(raw.PERSON + body, raw.joints(rng)) for body in range(2)] for _ in range(count)]


def ids(recording: Recording) -> list[int]:
    assert recording.id_R is not None
    numbers: list[int] = recording.id_R.tolist()
    return numbers


def test_reads_what_was_written() -> None:
    given = frames()
    read = parse(raw.skeleton(given))
    assert read.frames == 3
    assert read.frame_R.tolist() == [0, 0, 1, 1, 2, 2]
    assert ids(read) == [raw.PERSON, raw.PERSON + 1] * 3
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
    assert ids(plain) == ids(odd)


def test_reads_empty_frames_many_bodies_and_the_largest_id() -> None:
    rng = np.random.default_rng(2)
    many = [(2**63 - 1 - body, raw.joints(rng)) for body in range(9)]
    read = parse(raw.skeleton([[], many, []]))
    assert read.frames == 3
    assert read.frame_R.tolist() == [1] * 9
    assert ids(read)[0] == 2**63 - 1
    assert len(set(ids(read))) == 9
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
        (b"2000000\n" + b"0\n" * 2_000_000, "too many lines", ""),
        (b"\n" * (17 << 20) + b"x", "too many lines", ""),
    ],
)
def test_rejects_what_is_damaged(data: bytes, kind: str, line: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(data)
    assert caught.value.kind == kind
    assert line in caught.value.reason
    assert peak_bytes(data) < 64 << 20


FORMATS: dict[str, Callable[[float], str]] = {
    "fixed": lambda x: f"{x:.6f}",
    "as the sensor's software writes": lambda x: f"{x:.7g}",
    "short": lambda x: f"{x:.1f}",
    "16 digits": lambda x: f"{x:.16g}",
    "17 digits": lambda x: f"{x:.17g}",
    "long": lambda x: f"{x:.30f}",
    "repr": repr,
    "exponent": lambda x: f"{x:.9e}",
    "large exponent": lambda x: f"{x:.3E}",
    "tiny": lambda x: f"{x:.5f}e-{int(abs(x) * 1000) % 340}",
    "plus": lambda x: f"{x:+.4f}",
    "no digit before the point": lambda x: f"{x % 1:.5f}".lstrip("0"),
    "no digit after the point": lambda x: f"{x:.0f}.",
    "integer": lambda x: f"{x:.0f}",
    "leading zeros": lambda x: f"{x:012.4f}",
    "zero": lambda x: "-0.0" if x < 0 else "0",
}


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("gap", [" ", "  ", "\t"], ids=["space", "spaces", "tab"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_number_is_what_python_makes_of_it(name: str, gap: str, end: str) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(20, 75)) * 10.0 ** rng.integers(-3, 4, (20, 75))
    tokens = [[FORMATS[name](value) for value in row] for row in values.tolist()]
    lines = ["20"]
    for row in tokens:
        lines += ["1", gap.join([str(raw.PERSON), *["0"] * 9]), "25"]
        lines += [gap.join([*row[at : at + 3], *["0"] * 9]) for at in range(0, 75, 3)]
    read = parse(end.join([*lines, ""]).encode())
    expected = np.array([[float(token) for token in row] for row in tokens])
    assert read.xyz_RJC.tobytes() == expected.tobytes()  # tells -0.0 from 0.0


@pytest.mark.parametrize(
    "data",
    [
        raw.skeleton(frames()),
        raw.skeleton(frames(), end="\r\n"),
        raw.skeleton(frames(), tail="\n \n"),
        raw.skeleton(frames(), other="-1.#IND").rstrip(),
        raw.skeleton([[], *frames(), []]),
        b"0\n",
    ],
)
def test_usual_files_take_the_fast_way(data: bytes) -> None:
    fast, slow = ntu._by_columns(data), ntu._by_line(data)
    assert fast is not None
    assert fast.frames == slow.frames
    for name in ("frame_R", "id_R", "xyz_RJC"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
        assert getattr(fast, name).dtype == getattr(slow, name).dtype


def plain_reading(data: bytes) -> tuple[object, ...] | None:
    """What a file says, read by plain loops; None where it is damaged."""
    if not data.isascii():
        return None
    lines = iter(data.rstrip().split(b"\n"))

    def natural() -> int:
        (field,) = next(lines).split()
        if not re.fullmatch(rb"[0-9]{1,18}", field):
            raise ValueError
        return int(field)

    def metres(field: bytes) -> float:
        if b"_" in field or not abs(float(field)) <= 1e6:
            raise ValueError
        return float(field)

    frame_R, id_R, xyz_RJC = [], [], []
    try:
        frames = natural()
        for frame in range(frames):
            for _ in range(natural()):
                number, *others = next(lines).split()
                if len(others) != 9 or b"_" in number or number.startswith(b"+"):
                    return None
                id_R.append(int(number))
                frame_R.append(frame)
                if len(number.lstrip(b"-")) > 19 or abs(id_R[-1]) >= 2**63 or natural() != 25:
                    return None
                rows = [next(lines).split() for _ in range(25)]
                if any(len(row) != 12 for row in rows):
                    return None
                xyz_RJC.append([[metres(field) for field in row[:3]] for row in rows])
    except (ValueError, StopIteration):
        return None
    return None if any(lines) else (frames, frame_R, id_R, np.array(xyz_RJC).tobytes())


def seeds() -> list[bytes]:
    rng = np.random.default_rng(3)

    def bodies(*numbers: int) -> list[raw.Body]:
        return [(raw.PERSON + number, raw.joints(rng)) for number in numbers]

    return [
        raw.skeleton(frames()),
        raw.skeleton(frames(), end="\r\n", other="NaN"),
        raw.skeleton([[], bodies(0), [], bodies(0, 1, 2, 3)], tail="\n \n"),
        raw.skeleton([bodies(5, 5), bodies(5)], other="-1.25e-3"),
        raw.skeleton([[], [], []]),
        raw.skeleton([bodies(0)]).replace(b" ", b"  "),
    ]


PIECES = [
    b"", b"\n", b"\r", b"\r\n", b" ", b"\t", b"\x0b", b"\x00", b"\x7f", b"\xff", "é".encode(),
    b"-", b"+", b".", b"_", b"e5", b"0", b"3", b"25", b"9" * 30, b"9" * 18, b"1000000000000",
    b"nan", b"NaN", b"inf", b"1e400", b"1e-400", b"0x1p3", b"1" * 400, b"0" * 5000,
]  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    text = data
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(text) + 1))
        piece = PIECES[rng.integers(len(PIECES))]
        separator = (b" ", b"\n")[rng.integers(2)]
        parts = text.split(separator)
        part = int(rng.integers(len(parts)))
        match rng.integers(8):
            case 0:
                text = text[:start] + bytes([rng.integers(256)]) + text[start + 1 :]
            case 1:
                flipped = bytes(byte ^ 1 << int(rng.integers(7)) for byte in text[start:][:1])
                text = text[:start] + flipped + text[start + 1 :]
            case 2:
                text = text[:start] + text[start + int(rng.integers(200)) :]
            case 3:
                text = text[:start] + piece + text[start:]
            case 4:
                text = text[:start]
            case 5:
                text = separator.join([*parts[:part], piece, *parts[part + 1 :]])
            case 6:
                text = separator.join([*parts[:part], *parts[part + 1 :]])
            case 7:
                other = parts[rng.integers(len(parts))]
                text = separator.join([*parts[:part], other, *parts[part:]])
    return text


def reading(data: bytes) -> tuple[object, ...] | None:
    try:
        read = parse(data)
    except RejectedError:
        return None
    return read.frames, read.frame_R.tolist(), ids(read), read.xyz_RJC.tobytes()


def cpu_seconds(data: bytes) -> float:
    began = time.process_time()
    reading(data)
    return time.process_time() - began


def peak_bytes(data: bytes) -> int:
    tracemalloc.start()
    reading(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def mutations(inputs: int) -> Iterator[bytes]:
    rng = np.random.default_rng(5)
    given, long = seeds(), raw.plain(rng, 300)
    for number in range(inputs):
        yield mutated(long if number % 100 == 0 else given[number % len(given)], rng)


def test_mutated_files_are_read_as_plain_loops_do_or_rejected() -> None:
    read = 0
    for data in mutations(3000):
        expected = plain_reading(data)
        assert reading(data) == expected, data[:2000]
        read += expected is not None
    assert 200 < read < 1500


@pytest.mark.slow
def test_no_mutated_file_takes_long_or_much() -> None:
    rejected, seconds, peak = 0, 0.0, 0
    for number, data in enumerate(mutations(100_000)):
        rejected += reading(data) is None
        took = cpu_seconds(data)
        if took > seconds:  # measured again: a machine has pauses of its own
            seconds = max(seconds, min(took, cpu_seconds(data), cpu_seconds(data)))
        if number % 50 == 0:
            peak = max(peak, peak_bytes(data))
    print(f"{rejected:,} rejected; at most {1e3 * seconds:.1f} ms and {peak / 2**20:.1f} MB")
    assert 50_000 < rejected < 100_000
    assert seconds < 1  # nothing explodes; how fast it is, the benchmarks tell
    assert peak < 64 << 20


def test_names_are_read_by_width() -> None:
    assert NAME.fullmatch("S018C003P106R002A120.skeleton")
    assert not NAME.fullmatch("._S018C003P106R002A120.skeleton")
    name = parse_name("S018C003P106R002A120")
    assert (name.setup, name.camera, name.subject, name.replication, name.action) == (
        18, 3, 106, 2, 120,
    )  # fmt: skip
