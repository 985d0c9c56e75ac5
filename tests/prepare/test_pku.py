from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from skelpipe.prepare import pku
from skelpipe.prepare.pku import frame_labels, parse, parse_labels, parse_list
from skelpipe.prepare.recording import RejectedError


def some_rows(frames: int = 4) -> list[list[str]]:
    rng = np.random.default_rng(0)
    rows = [[f"{value:.4f}" for value in row] for row in rng.normal(size=(frames, 150)).tolist()]
    rows[-1][75:] = ["0"] * 75
    return rows


def text(rows: Sequence[Sequence[str]], gap: str = " ", end: str = "\n") -> bytes:
    return "".join(gap.join(row) + end for row in rows).encode()


ROWS = some_rows()
GOOD = text(ROWS)


def test_reads_what_was_written() -> None:
    read = parse(GOOD)
    assert (read.frames, read.id_R) == (4, None)
    assert read.frame_R.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = np.array(ROWS, dtype=np.float64).reshape(4, 2, 25, 3)
    np.testing.assert_array_equal(read.xyz_RJC, expected.reshape(8, 25, 3))
    poses_MTJC = read.slots()
    np.testing.assert_array_equal(poses_MTJC, np.swapaxes(expected, 0, 1))
    assert not poses_MTJC[1, 3].any()


@pytest.mark.parametrize(
    "data",
    [
        text(ROWS, "  "),
        text(ROWS, "\t"),
        text(ROWS, " \t   "),
        text(ROWS, end="\r\n"),
        text(ROWS, end=" \n"),
        text(ROWS, end="\r\r\n"),
        b" " + GOOD.replace(b"\n", b"\n\t "),
        GOOD + b"\n\n  \r\n\t\n",
        GOOD.rstrip(),
        GOOD.rstrip() + b"   ",
    ],
)
def test_reads_what_is_odd_but_legal(data: bytes) -> None:
    np.testing.assert_array_equal(parse(data).xyz_RJC, parse(GOOD).xyz_RJC)


def changed(frame: int, field: int, value: str) -> bytes:
    rows = [list(row) for row in ROWS]
    rows[frame][field] = value
    return text(rows)


@pytest.mark.parametrize("value", ["1", "+1.5", "-0", ".5", "2.", "1e-3", "7.25E+2", "1" + "0" * 5])
def test_reads_every_way_to_write_a_number(value: str) -> None:
    read = parse(changed(2, 149, value)).xyz_RJC[5, 24, 2]
    assert read.tobytes() == np.float64(value).tobytes()


@pytest.mark.parametrize(
    ("data", "kind", "line"),
    [
        (b"", "empty file", ""),
        (b" \n\r\n\t", "empty file", ""),
        (b"1 2 3\n", "wrong number of fields", "line 1, found 3"),
        (GOOD[:-30], "wrong number of fields", "line 4"),
        (GOOD + b"1 2\n", "wrong number of fields", "line 5, found 2"),
        (GOOD.replace(b"\n", b"\n\n", 1), "wrong number of fields", "line 2, found 0"),
        (b"\n" + GOOD, "wrong number of fields", "line 1, found 0"),
        (changed(1, 3, "1 2"), "wrong number of fields", "line 2, found 151"),
        (GOOD.replace(b" ", b","), "wrong number of fields", "line 1, found 1"),
        (GOOD.replace(b"\n", b"\r"), "wrong number of fields", "line 1, found 600"),
        (changed(2, 0, "NaN"), "no number in x, y, z", "line 3, found 'NaN'"),
        (changed(0, 149, "inf"), "no number in x, y, z", "line 1, found 'inf'"),
        (changed(3, 80, "-Infinity"), "no number in x, y, z", "line 4"),
        (changed(3, 80, "1e400"), "no number in x, y, z", "line 4"),
        (changed(1, 9, "1e7"), "no number in x, y, z", "line 2, found '1e7'"),
        (changed(1, 9, "1_0"), "no number in x, y, z", "line 2"),
        (changed(1, 9, "0x1p3"), "no number in x, y, z", "line 2"),
        (changed(1, 9, "none"), "no number in x, y, z", "line 2, found 'none'"),
        (changed(1, 9, "--1"), "no number in x, y, z", "line 2"),
        (changed(1, 9, "9" * 9000), "no number in x, y, z", "line 2, found '999"),
        (changed(1, 9, "\0"), "not a text file", ""),
        (GOOD.replace(b"0", b"\xc3\xa9", 1), "not a text file", ""),
        (b"PK\x03\x04", "not a text file", ""),
    ],
)
def test_rejects_what_is_damaged(data: bytes, kind: str, line: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(data)
    assert caught.value.kind == kind
    assert line in caught.value.reason
    assert len(caught.value.reason) < 200


@pytest.mark.parametrize("chunk", [1, 1000, 2500, 5000])
def test_long_files_are_read_in_pieces(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(9)
    expected = parse(text(rows)).xyz_RJC
    monkeypatch.setattr(pku, "_CHUNK", chunk)
    np.testing.assert_array_equal(parse(text(rows)).xyz_RJC, expected)
    np.testing.assert_array_equal(parse(text(rows, end="\r\n").rstrip()).xyz_RJC, expected)
    rows[7][4] = "x"
    with pytest.raises(RejectedError, match="line 8, found 'x'"):
        parse(text(rows))
    rows[7][4:6] = []
    with pytest.raises(RejectedError, match="line 8, found 148"):
        parse(text(rows))


def test_a_line_without_end_is_not_read() -> None:
    endless = GOOD * 100 + b"1 " * (1 << 19)
    with pytest.raises(RejectedError, match="too long a line: line 401, expected"):
        parse(endless)
    with pytest.raises(RejectedError, match="wrong number of fields: line 5, found 10000"):
        parse(GOOD + b"1 " * 10000)


def test_labels() -> None:
    rows = ((5, 0, 56, 2), (20, 85, 141, 1), (99, 9, -3, 2))
    for data in (
        b"5,0,56,2\n20,85,141,1\n99,9,-3,2\n",
        b"5, 0,  56 ,\t2\r\n\r\n 20,85,141,1 \n99,9,-3,2",
        b"\n\n5,0,56,2\n \t\n20,85,141,1\n\n99,9,-3,2\n\n",
    ):
        assert parse_labels(data) == rows
    assert parse_labels(b"") == parse_labels(b" \r\n") == ()


@pytest.mark.parametrize(
    "row",
    [
        "5,0,56", "5,0,56,2,", "5,0,56,2,1", "5 0 56 2", "5,0,,2", "5,0.0,56,2", "bow,0,56,2",
        "5,0,56,+2", "5,0,56,1e1", "5,0,1234567890,2", "5,- 1,56,2", "é,0,56,2", "5;0;56;2",
    ],
)  # fmt: skip
def test_label_rows_of_another_form(row: str) -> None:
    with pytest.raises(RejectedError, match="wrong label row: line 3, found") as caught:
        parse_labels(f"1,2,3,2\n\n{row}\n7,8,9,2\n".encode())
    assert "expected action, start, end, confidence" in caught.value.reason


LIST = b"Training videos:\n0002-M, 0003-L, 0003-R,\nValidataion videos:\n0291-M, 0292-M, 0293-M,\n"
PARTS = (("0002-M", "0003-L", "0003-R"), ("0291-M", "0292-M", "0293-M"))


@pytest.mark.parametrize(
    "data",
    [
        LIST,
        LIST.replace(b",\n", b"\n"),
        LIST.replace(b"\n", b"\r\n"),
        LIST.replace(b", ", b","),
        LIST.replace(b", ", b" "),
        LIST.replace(b", ", b",\n"),
        LIST.replace(b"\n", b" \n\n"),
        LIST.rstrip(),
        LIST.replace(b"Training videos:", b"train").replace(b"Validataion", b"Testing"),
    ],
)
def test_lists(data: bytes) -> None:
    assert parse_list(data) == PARTS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated list"),
        (b"Training videos:\n0002-M\n", "truncated list"),
        (b"Training videos:\n0002-M\nValidataion videos:\n", "truncated list"),
        (b"0002-M\nValidataion videos:\n0003-M\n", "no list of recordings: line 1, found '0002-M'"),
        (b"Training videos:\nValidataion videos:\n0002-M\n", "no list of recordings: line 2"),
        (b"Validation:\n0002-M\nTraining:\n0003-M\n", "line 3, found 'Training:'"),
        (LIST + b"Others:\n0004-M", "no list of recordings: line 5"),
        (LIST.replace(b"0003-R", b"0003-X"), "line 2, found '0003-X', expected a name"),
        (LIST.replace(b"0292-M", b"0291-M"), "a recording that is listed twice: line 4"),
        (LIST.replace(b"0292-M", b"0003-L"), "a recording that is listed twice: line 4"),
        (LIST.replace(b"0292-M", b"\xff"), "no list of recordings: line 4"),
    ],
)
def test_lists_of_another_form(data: bytes, message: str) -> None:
    with pytest.raises(RejectedError) as caught:
        parse_list(data)
    assert message in caught.value.reason


ACTIONS = ((7, 2, 5, 2), (9, 4, 8, 2), (51, 12, 10, 2), (3, 14, 99, 1), (4, -2, 1, 2), (6, 3, 3, 2))


@pytest.mark.parametrize(
    ("reversed", "expected"),
    [
        ("swapped", [4, 0, 7, 7, 9, 9, 9, 9, 0, 0, 51, 51, 0, 0, 3, 3]),
        ("as_published", [4, 0, 7, 7, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 3, 3]),
    ],
)
def test_frame_labels(reversed: str, expected: list[int]) -> None:
    labels_T = frame_labels(ACTIONS, 16, reversed)
    assert labels_T.dtype == np.uint8
    assert labels_T.tolist() == expected


def test_frame_labels_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        frames = int(rng.integers(1, 60))
        actions = [
            (int(rng.integers(1, 52)), *rng.integers(-10, 80, 2).tolist(), 2)
            for _ in range(rng.integers(8))
        ]
        for reversed in ("swapped", "as_published"):
            expected = [0] * frames
            for action, start, end, _ in actions:
                if reversed == "swapped" and start > end:
                    start, end = end, start
                for frame in range(start, end):
                    if 0 <= frame < frames:
                        expected[frame] = action
            assert frame_labels(actions, frames, reversed).tolist() == expected


# Each file as plain loops read it; None where it is damaged.


def plain_skeleton(data: bytes) -> object:
    if any(byte > 127 or (byte < 32 and byte not in b"\t\n\v\f\r") for byte in data):
        return None
    rows = []
    for line in data.rstrip().split(b"\n"):
        row = []
        for field in line.split():
            if not re.fullmatch(rb"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", field):
                return None
            row.append(float(field))
        if len(row) != 150 or any(abs(value) > 1e6 for value in row):
            return None
        rows.append(row)
    return np.array(rows).tobytes()


def plain_labels(data: bytes) -> object:
    actions = []
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        row = []
        for field in line.strip().split(b","):
            digits = field.strip(b" \t").removeprefix(b"-")
            if not digits or len(digits) > 9 or not all(byte in b"0123456789" for byte in digits):
                return None
            row.append(int(field))
        if len(row) != 4:
            return None
        actions.append(tuple(row))
    return tuple(actions)


def plain_list(data: bytes) -> object:
    def is_name(word: str) -> bool:
        if not word.isascii() or word[-2:] not in ("-L", "-M", "-R"):
            return False
        rest = word[:-2]
        part2 = len(rest) == 6 and (rest[0], rest[3]) == ("A", "N")
        digits = rest[1:3] + rest[4:] if part2 else rest
        return len(digits) == 4 and digits.isdigit()

    kinds = []  # heading or name, in order
    lines = data.decode("latin-1").replace("\x85", "?").replace("\xa0", "?").split("\n")
    for line in lines:
        words = line.replace(",", " ").split()
        if not words:
            continue
        if not is_name(words[0]):
            kinds.append(("train" if "train" in line.lower() else "heading", ""))
        elif all(map(is_name, words)):
            kinds += [("name", word) for word in words]
        else:
            return None
    shape = "".join("n" if kind == "name" else "h" for kind, _ in kinds)
    if not re.fullmatch("hn+hn+", shape) or kinds[shape.rindex("h")][0] == "train":
        return None
    names = [name for kind, name in kinds if kind == "name"]
    first = shape.rindex("h") - 1
    return None if len(set(names)) < len(names) else (tuple(names[:first]), tuple(names[first:]))


def read_skeleton(data: bytes) -> object:
    return parse(data).xyz_RJC.tobytes()


READERS: dict[str, tuple[Callable[[bytes], object], Callable[[bytes], object], list[bytes]]] = {
    "skeletons": (
        read_skeleton,
        plain_skeleton,
        [text([[f"{i % 7 - 3}.5"] * 150 for i in range(3)]), text([["0"] * 150], "\t", "\r\n")],
    ),
    "labels": (
        parse_labels,
        plain_labels,
        [b"5,0,56,2\n20,85,141,2\n7,158,214,1\n", b" 5, 0, 56, 2\r\n\r\n41,9,3,2"],
    ),
    "list": (
        parse_list,
        plain_list,
        [LIST, LIST.replace(b"0002", b"A01N02").replace(b"\n", b"\r\n"), LIST.replace(b", ", b" ")],
    ),
}

PIECES = [
    b"", b" ", b"\t", b"\n", b"\r\n", b",", b"-", b"+", b".", b"0", b"1e5", b"nan", b"inf", b"-1",
    b"1e999", b"999999999999", b"\0", b"\x0b", b"\xff", b"Training videos:", b"0002-M", b"A26N13-R",
    b"0" * 4000, b" " * 4000, b"\n" * 4000, b"1 " * 4000, b"1," * 4000,
]  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(data) + 1))
        piece = PIECES[rng.integers(len(PIECES))]
        separator = (b" ", b"\n", b",")[rng.integers(3)]
        parts = data.split(separator)
        part = int(rng.integers(len(parts)))
        match rng.integers(7):
            case 0:
                data = data[:start] + bytes([rng.integers(256)]) + data[start + 1 :]
            case 1:
                data = data[:start] + data[start + int(rng.integers(200)) :]
            case 2:
                data = data[:start] + piece + data[start:]
            case 3:
                data = data[:start]
            case 4:
                data = separator.join([*parts[:part], piece, *parts[part + 1 :]])
            case 5:
                data = separator.join([*parts[:part], *parts[part + 1 :]])
            case 6:
                other = parts[rng.integers(len(parts))]
                data = separator.join([*parts[:part], other, *parts[part:]])
    return data


def mutations(name: str, inputs: int) -> Iterator[bytes]:
    rng = np.random.default_rng([2, *name.encode()])
    seeds = READERS[name][2]
    for number in range(inputs):
        seed = seeds[number % len(seeds)]
        yield mutated(seed * 100 if number % 200 == 0 else seed, rng)


def reading(name: str, data: bytes) -> object:
    try:
        return READERS[name][0](data)
    except RejectedError:
        return None


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_as_plain_loops_do_or_rejected(name: str) -> None:
    read = 0
    for data in mutations(name, 1500):
        expected = READERS[name][1](data)
        assert reading(name, data) == expected, data[:2000]
        read += expected is not None
    assert 100 < read < 1400


def cpu_seconds(name: str, data: bytes) -> float:
    began = time.process_time()
    reading(name, data)
    return time.process_time() - began


def peak_bytes(name: str, data: bytes) -> int:
    tracemalloc.start()
    reading(name, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_no_mutated_file_takes_long_or_much() -> None:
    for name in READERS:
        rejected, seconds, peak = 0, 0.0, 0
        for number, data in enumerate(mutations(name, 34_000)):
            rejected += reading(name, data) is None
            took = cpu_seconds(name, data)
            if took > seconds:  # measured again: a machine has pauses of its own
                again = (cpu_seconds(name, data), cpu_seconds(name, data))
                seconds = max(seconds, min(took, *again))
            if number % 50 == 0:
                peak = max(peak, peak_bytes(name, data))
        print(
            f"{name}: {rejected:,} of 34,000 rejected; at most {1e3 * seconds:.1f} ms and "
            f"{peak / 2**20:.1f} MB"
        )
        assert 10_000 < rejected < 34_000
        assert seconds < 1  # nothing explodes; how fast it is, the benchmarks tell
        assert peak < 64 << 20
