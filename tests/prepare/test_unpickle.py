from __future__ import annotations

import io
import os
import pickle
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from skelpipe.errors import UserError
from skelpipe.prepare.child import Child
from skelpipe.prepare.unpickle import Array, Span, load

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def loaded(tmp_path: Path, data: bytes) -> Any:
    file = tmp_path / "some.pkl"
    file.write_bytes(data)
    return load(file)


def values(array: Array, file: Path) -> npt.NDArray[Any]:
    if isinstance(array.data, bytes):
        return array.from_bytes(array.data)
    data = file.read_bytes()
    return array.from_bytes(data[array.data.offset : array.data.offset + array.data.size])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_containers_are_as_they_were(protocol: int, tmp_path: Path) -> None:
    shared = ["x", b"y", b""]
    content = {
        "list": [1, -2, 300, 70_000, 2**70, -(2**70), 2.5, None, True, False, []],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "shared": [shared, shared],
        "tést": {1: "ü€", b"b": {}, 0.5: None},
        "many": list(range(3000)),
        "scalars": [np.int64(-5), np.float32(0.5), np.bool_(True), np.uint8(200)],
    }
    read = loaded(tmp_path, pickle.dumps(content, protocol=protocol))
    assert read == content
    assert read["shared"][0] is read["shared"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f8", "<i8", "|u1", "|b1", "<i2"])
def test_arrays_are_as_they_were(protocol: int, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    big = (rng.standard_normal((2, 7, 25, 3)) * 50).astype(dtype)
    moved = np.ascontiguousarray(big.transpose(2, 0, 3, 1)).transpose(1, 3, 0, 2)
    content = [big, np.asfortranarray(big), big[:, :0], big[0, 0, :3, 0], moved, big]
    read = loaded(tmp_path, pickle.dumps(content, protocol=protocol))
    for array, was in zip(read, content, strict=True):
        got = values(array, tmp_path / "some.pkl")
        assert got.dtype == was.dtype
        np.testing.assert_array_equal(got, was)
    assert read[0] is read[5]
    assert isinstance(read[0].data, Span) == (protocol > 0)


def test_what_python_2_and_older_numpy_wrote(tmp_path: Path) -> None:
    # Written by hand as Python 2's cPickle does: strings of bytes, numpy.core, an order of state.
    numbers = np.arange(40, dtype="<f4").tobytes()
    head = (
        b"\x80\x02(U\x04nameq\x00cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02"
        b"K\x00\x85U\x01b\x87Rq\x03(K\x01K\x28\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\xa0"
    )
    name, array = loaded(tmp_path, head + numbers + b"tbt.")
    assert name == "name"
    np.testing.assert_array_equal(
        values(array, tmp_path / "some.pkl"), np.arange(40, dtype=np.float32)
    )


def test_numpy_1_and_2_have_other_names(tmp_path: Path) -> None:
    data = pickle.dumps(np.arange(50), protocol=2)
    for name in (b"numpy.core.", b"numpy._core."):
        new = data.replace(b"numpy._core.", name).replace(b"numpy.core.", name)
        np.testing.assert_array_equal(
            values(loaded(tmp_path, new), tmp_path / "some.pkl"), np.arange(50)
        )


class Evil:
    """Pickles as a call of anything."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def calls(mark: Path) -> dict[str, tuple[Any, ...]]:
    touch = f"touch {mark}"
    python = f"open({str(mark)!r}, 'w')"
    return {
        "os.system": (os.system, (touch,)),
        "eval": (eval, (python,)),
        "exec": (exec, (python,)),
        "open": (open, (str(mark), "w")),
        "Popen": (subprocess.Popen, (["touch", str(mark)],)),
        "getattr": (getattr, ("", "join")),
        "import": (__import__, ("os",)),
        "numpy.load": (np.load, (str(mark), None, True)),
        "numpy.memmap": (np.memmap, (str(mark), "u1", "w+", 0, 8)),
        "numpy.fromfile": (np.fromfile, (str(mark),)),
        "numpy.vectorize": (np.vectorize, (eval,)),
        "numpy.ndarray": (np.ndarray, ((1 << 40,),)),
        "numpy.zeros": (np.zeros, ((1 << 40,),)),
        "bytearray": (bytearray, (1 << 40,)),
        "setstate": (list, (), {"__setstate__": 1}),
        "items": (list, (), None, iter([1])),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", sorted(calls(Path())))
def test_a_pickle_with_code_is_refused_and_not_run(
    name: str, protocol: int, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    data = pickle.dumps({"annotations": [Evil(*calls(mark)[name])]}, protocol=protocol)
    with pytest.raises(UserError, match="more than arrays and plain containers") as caught:
        loaded(tmp_path, data)
    assert "byte " in str(caught.value)
    assert not mark.exists()


TEXT = b"X\x05\x00\x00\x00touch"
BY_HAND = {
    "INST": b"(S'touch mark'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch mark'\no.",
    "NEWOBJ": b"\x80\x02cnumpy\ndtype\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04cnumpy\ndtype\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Psome\n.",
    "BINPERSID": b"\x80\x02K\x01Q.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05C\x01a\x98.",
    "sets": b"\x80\x04\x8f.",
    "frozen sets": b"\x80\x04(\x91.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + TEXT + b"\x85R.",
    "STACK_GLOBAL from the memo": b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93.",
    "STACK_GLOBAL with dots": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "a submodule": b"\x80\x02cnumpy._core._core.multiarray\n_reconstruct\n.",
    "numpy's own runner": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n" + TEXT + b"}\x86R.",
    "numpy's compiler": b"\x80\x02cnumpy.f2py\ncompile\n" + TEXT + b"\x85R.",
    "scalars made otherwise": b"\x80\x02cnumpy.core.multiarray\nfromstring\n.",
    "BUILD of a dict": b"\x80\x02}}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb.",
    "BUILD of a list": b"\x80\x02](K\x01tb.",
    "BUILD of an array by a dict": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R}X\x05\x00\x00\x00dtypeNsb."
    ),
    "a list as a key": b"\x80\x02}]K\x01s.",
    "a tuple as a key": b"\x80\x02})K\x01s.",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_no_other_instruction_is_followed(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than arrays and plain containers"):
        loaded(tmp_path, BY_HAND[name])


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}, print], dtype=object),
        np.zeros(3, dtype=[("a", "f4"), ("b", "O")]),
        np.zeros(3, dtype=[("a", "f4")]),
        np.array(["a name"]),
        np.zeros(3, dtype="M8[s]"),
        np.zeros(3, dtype="c16"),
        np.ma.masked_array([1.0], [True]),
    ],
    ids=lambda array: str(array.dtype),
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_anything_but_numbers_are_refused(
    array: npt.NDArray[Any], protocol: int, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="more than arrays and plain containers"):
        loaded(tmp_path, pickle.dumps([array], protocol=protocol))


def array_with(shape: bytes, data: bytes) -> bytes:
    """A pickle of one float16 array whose state is written by hand."""
    return (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + shape + b"cnumpy\ndtype\n"
        b"X\x02\x00\x00\x00f2K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00<NNNK\x00K\x00K\x00tb\x89" + data
        + b"tb."
    )  # fmt: skip


DAMAGED = {
    "nothing": b"",
    "a text": b"S001C001P001R001A001\n",
    "no end": b"\x80\x04]",
    "nothing on the stack": b"\x80\x02a.",
    "two things left": b"\x80\x02K\x01K\x02.",
    "a mark left": b"\x80\x02(K\x01.",
    "no mark": b"\x80\x02K\x01t.",
    "not in the memo": b"\x80\x02h\x05.",
    "half a pair": b"\x80\x02}(K\x01u.",
    "not callable": b"\x80\x02K\x01)R.",
    "append to a number": b"\x80\x02K\x01K\x02a.",
    "a string beyond the end": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "bytes beyond the end": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00abc.",
    "a number of too many digits": b"I" + b"9" * 100_000 + b"\n.",
    "fewer bytes than its shape": array_with(b"K\x03\x85", b"C\x04abcd"),
    "more bytes than its shape": array_with(b"K\x01\x85", b"C\x04abcd"),
    "a huge shape": array_with(b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", b"C\x04abcd"),
    "a negative shape": array_with(b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86", b"C\x04abcd"),
    "a shape of texts": array_with(b"X\x01\x00\x00\x002\x85", b"C\x04abcd"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_pickle_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="damaged, or none"):
        loaded(tmp_path, DAMAGED[name])
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "nowhere.pkl")


def test_deep_nesting_and_circles_do_no_harm(tmp_path: Path) -> None:
    deep = 300_000
    read = loaded(tmp_path, b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".")
    levels = 0
    while read:
        read, levels = read[0], levels + 1
    assert levels == deep - 1
    circle = loaded(tmp_path, b"\x80\x02]q\x00h\x00a.")
    assert circle[0] is circle
    # Each list holds the one before it ten times: ten times as much with every line.
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"0](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(40)
    )
    assert len(loaded(tmp_path, laughs + b".")) == 10


def test_big_arrays_stay_in_the_file(tmp_path: Path) -> None:
    big = np.zeros(50_000_000, dtype=np.uint8)
    with (tmp_path / "some.pkl").open("wb") as file:
        for _ in range(2):
            pickle.dump([big], file, protocol=4)
    tracemalloc.start()
    (array,) = load(tmp_path / "some.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.data.size == len(big)
    assert peak < 1.2 * len(big)


def test_a_bomb_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "some.pkl"
    file.write_bytes(b"\x80\x02" + b"]" * 600_000)
    with Child(memory=16 << 20) as child, pytest.raises(UserError, match="more memory"):
        child.call(60, load, file)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A pickle with bytes changed, cut out, doubled, or instructions put in."""
    bytes_ = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(bytes_)))
        match int(rng.integers(5)):
            case 0:
                bytes_[at] = int(rng.integers(256))
            case 1:
                del bytes_[at : at + int(rng.integers(1, 20))]
            case 2:
                bytes_[at:at] = bytes_[at : at + int(rng.integers(1, 50))]
            case 3:
                bytes_[at:at] = rng.choice(
                    list(b"(.012FIJKLMNPQRSTUVXabcdeghijloqrstu}]")
                ).tobytes()
            case 4:
                bytes_[at] ^= 1 << int(rng.integers(8))
        if not bytes_:
            return b""
    return bytes(bytes_)


def load_mutated(folder: Path, seed: int, count: int) -> int:
    """Load that many mutated pickles; returns how many were refused. Run in a child."""
    rng = np.random.default_rng(seed)
    frames = [np.ones((1, 3, 25, 3), np.float16) * n for n in range(3)]
    content = {
        "split": {"xsub_train": ["a", "b"], "xsub_val": ["c"]},
        "annotations": [{"frame_dir": "a", "label": 1, "keypoint": k} for k in frames],
    }
    refused = 0
    for number in range(count):
        stream = io.BytesIO()
        pickle.Pickler(stream, protocol=number % 6).dump(content)
        try:
            loaded(folder, mutated(stream.getvalue(), rng))
        except UserError:
            refused += 1
    return refused


@pytest.mark.parametrize(
    "count", [pytest.param(60, id="some"), pytest.param(2000, id="many", marks=pytest.mark.slow)]
)
def test_mutated_pickles_give_our_error_or_a_result(count: int, tmp_path: Path) -> None:
    with Child(memory=256 << 20) as child:
        refused = child.call(120, load_mutated, tmp_path, count, count)
    assert count / 4 < refused <= count
