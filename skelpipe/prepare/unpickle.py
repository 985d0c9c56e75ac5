"""Pickles of arrays and plain containers, read without running anything that they ask for.

A pickle is a programme. Python's own reader imports and calls whatever it names; this one follows
the programme on a stack of its own, where there is nothing to be called but the few things that
arrays are made of, and none of these is the real one. Long runs of bytes stay where they are in the
file, so that a file of gigabytes takes a few hundred bytes an array.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from skelpipe.errors import UserError

_LONG = 100  # bytes; what is longer stays in the file
_LINE = 1 << 20  # bytes of a line at most, in pickles of protocol 0


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that stay in the file.

    Attributes:
        offset: The first of them.
        size: How many.
        text: Whether each byte stands there as a character of UTF-8, which is how Python 3 writes
            protocols 0 to 2.
    """

    offset: int
    size: int
    text: bool = False


@dataclass(slots=True)
class Array:
    """An array that a pickle holds.

    Attributes:
        dtype: Numbers of one kind, such as "<f4".
        shape: Its shape; what `data` holds fits it, except that nobody has counted a text yet.
        axes: Where they are not kept in order: of each axis, which one it is in the file.
        data: Its bytes, or where they lie.
    """

    dtype: str = "|u1"
    shape: tuple[int, ...] = (0,)
    axes: tuple[int, ...] = ()
    data: Span | bytes = b""

    def from_bytes(self, data: bytes) -> npt.NDArray[Any]:
        """The array, out of the bytes of its span.

        Raises:
            ValueError: They do not fit it.
        """
        if isinstance(self.data, Span) and self.data.text:
            data = data.decode("utf-8", "surrogatepass").encode("latin-1")
        values: npt.NDArray[Any] = np.frombuffer(data, self.dtype)
        if not self.axes:
            return values.reshape(self.shape)
        sizes = dict(zip(self.axes, self.shape, strict=True))
        return values.reshape([sizes[axis] for axis in range(len(sizes))]).transpose(self.axes)


class _ForbiddenError(Exception):
    """A pickle asks for what is neither an array nor a plain container."""


def load(file: Path) -> object:
    """The content of a pickle: containers, strings and numbers as they are, arrays as `Array`.

    Admitted are dict, list, tuple, str, bytes, int, float, bool, None, and NumPy's arrays and
    scalars of numbers, in every protocol, written by Python 2 or 3 and NumPy 1 or 2. A string or
    bytes of more than 100 bytes is a `Span`.

    Memory: what is not a long string takes up to some 100 bytes for each byte of a pickle that is
    made to take it, so a file that nobody vouches for is to be read in a child with limits.

    Raises:
        UserError: It names anything else, is damaged, takes too much memory, or cannot be read.
    """
    place = 0
    try:
        with file.open("rb") as opened:
            source, machine = _Source(opened), _Machine()
            for opcode, value, at in pickletools.genops(source):  # type: ignore[arg-type]
                place = at or 0
                if opcode.name in _STRINGS:
                    value = _string(opcode.name, value, place, source.tell())
                machine.step(opcode.name, value)
            return machine.result()
    except OSError as error:
        raise UserError("the pickle cannot be read", file=file, found=error) from error
    except _ForbiddenError as error:
        raise UserError(
            "this pickle holds more than arrays and plain containers",
            file=file,
            place=f"byte {place:,}",
            found=error,
            expected="arrays of numbers, dict, list, tuple, str, bytes, int, float",
            remedy="nothing of it was run. A pickle can hold any programme: have those who made it "
            "save arrays and plain containers alone",
        ) from error
    except MemoryError as error:
        raise UserError(
            "this pickle takes more memory than there is",
            file=file,
            place=f"byte {place:,}",
            remedy="fetch it again: none of these files needs so much",
        ) from error
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise UserError(
            "this pickle is damaged, or none",
            file=file,
            place=f"after byte {place:,}",
            found=error,
            remedy="fetch it again and compare its size with its authors'",
        ) from error


class _Source:
    """A file for `pickletools`, which takes sizes from it: no more is read than there is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        file.seek(0)
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        return self._file.read(size if size < 256 else min(size, self._size - self.tell()))

    def readline(self) -> bytes:
        return self._file.readline(_LINE)


class _Machine:
    """The stack, its marks and the memory that a pickle's programme works on."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}

    def result(self) -> object:
        if self._below or len(self._stack) != 1:
            raise ValueError("something is left over at its end")
        return self._stack[0]

    def step(self, name: str, value: Any) -> None:
        """Follow one instruction."""
        stack = self._stack
        if name in _VALUES or name in _STRINGS:
            stack.append(value)
        elif name in _MAKE:
            stack.append(_MAKE[name]())
        elif name in _PUT:
            self._memo[len(self._memo) if name == "MEMOIZE" else value] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[value])
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in ("TUPLE", "LIST"):
            items = self._above_mark()
            self._stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._above_mark()
            _target(self._stack, list).extend(items)
        elif name == "DICT":
            items = self._above_mark()
            self._stack.append(_pairs(items))
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._above_mark()
            _target(self._stack, dict).update(_pairs(items))
        elif name == "POP":
            self._stack = self._below.pop() if not stack else stack[:-1]
        elif name == "POP_MARK":
            self._above_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            stack.append(_admitted(*value.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_admitted(module, attribute))
        elif name == "REDUCE":
            arguments = stack.pop()
            made = stack.pop()
            if not isinstance(made, _Maker) or not isinstance(arguments, tuple):
                raise ValueError(f"a call of a {type(made).__name__}")
            stack.append(made.make(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name not in _NOTHING:
            raise _ForbiddenError(f"the instruction {name}")

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items


@dataclass(frozen=True, slots=True)
class _Maker:
    """What stands on the stack for a function or a type."""

    make: Callable[..., object]


@dataclass(slots=True)
class _Dtype:
    code: str
    order: Literal["<", ">", "|", "="] = "<"

    def __str__(self) -> str:
        return np.dtype(self.code).newbyteorder(self.order).str


def _string(name: str, value: Any, start: int, end: int) -> str | bytes | Span:
    """What stands for a string whose instruction goes from start on to before end."""
    header = _STRINGS[name]
    if header and len(value) > _LONG:
        return Span(start + header, end - start - header, text="UNICODE" in name)
    return bytes(value) if isinstance(value, bytearray) else value


def _target(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise ValueError(f"a {type(stack[-1]).__name__} where a {kind.__name__} should be")
    return stack[-1]


def _pairs(items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    if any(not isinstance(key, str | bytes | int | float | None) for key in keys):
        raise _ForbiddenError("a dict with keys that are neither strings nor numbers")
    return dict(zip(keys, items[1::2], strict=True))


def _admitted(module: object, attribute: object) -> _Maker:
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise _ForbiddenError("a name that is no text")
    # NumPy 2 has moved its modules; a pickle of protocol 2 or less has Python 2's names.
    place = re.sub(r"\Anumpy\._core\.", "numpy.core.", module)
    maker = _ADMITTED.get((place, attribute))
    if maker is None:
        raise _ForbiddenError(f"{module[:60]}.{attribute[:60]}")
    return maker


def _make_bytes(text: object = "", encoding: str = "latin1") -> bytes | Span:
    if isinstance(text, Span) and text.text and encoding == "latin1":
        return text
    if isinstance(text, str) and encoding == "latin1":
        return text.encode("latin-1")
    raise ValueError("bytes that are kept in an unknown way")


def _make_dtype(code: str, *_: object) -> _Dtype:
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
        raise _ForbiddenError(f"an array of dtype {code!r:.40}")
    return _Dtype(code)


def _make_array(*_: object) -> Array:
    return Array()


def _make_array_at_once(
    data: Span | bytes,
    dtype: _Dtype,
    shape: tuple[int, ...],
    order: str,
    axes: tuple[int, ...] | None = None,
) -> Array:
    array = Array()
    _build(array, (1, shape, dtype, order == "F", data))
    if order == "K" and axes is not None:
        if sorted(axes) != list(range(len(array.shape))):
            raise ValueError("axes that are none")
        array.axes = tuple(axes)
        array.shape = tuple(array.shape[axis] for axis in axes)
    return array


def _make_scalar(dtype: _Dtype, data: bytes | str) -> object:
    raw = data if isinstance(data, bytes) else data.encode("latin-1")
    (value,) = np.frombuffer(raw, str(dtype)).tolist()
    return value


def _build(made: object, state: Any) -> None:
    """Fill what was just made, as `__setstate__` of a dtype and of an array do."""
    if not isinstance(state, tuple):
        raise _ForbiddenError(f"a state for a {type(made).__name__}")
    if isinstance(made, _Dtype):
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise _ForbiddenError("a dtype of several fields")
        made.order = order
    elif isinstance(made, Array):
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array whose shape is no row of numbers")
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without dtype")
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin-1")
        if not isinstance(data, Span | bytes):
            raise _ForbiddenError("an array of objects")
        size = data.size if isinstance(data, Span) else len(data)
        needed = math.prod(shape) * int(dtype.code[1:])
        most = 2 * needed if isinstance(data, Span) and data.text else needed
        if not needed <= size <= most:
            raise ValueError(f"{size} bytes for an array of shape {shape}, which has {needed}")
        made.dtype, made.shape, made.data = str(dtype), shape, data
        made.axes = tuple(reversed(range(len(shape)))) if fortran else ()
    else:
        raise _ForbiddenError(f"a state for a {type(made).__name__}")


def _not_called(*_: object) -> object:
    raise _ForbiddenError("a call of numpy.ndarray")


_ADMITTED = {
    ("_codecs", "encode"): _Maker(_make_bytes),
    ("__builtin__", "bytes"): _Maker(_make_bytes),  # empty ones, in protocols 0 to 2
    ("builtins", "bytes"): _Maker(_make_bytes),
    ("numpy", "dtype"): _Maker(_make_dtype),
    ("numpy", "ndarray"): _Maker(_not_called),
    ("numpy.core.multiarray", "_reconstruct"): _Maker(_make_array),
    ("numpy.core.multiarray", "scalar"): _Maker(_make_scalar),
    ("numpy.core.numeric", "_frombuffer"): _Maker(_make_array_at_once),  # protocol 5
}
_STRINGS = {  # instruction -> bytes before the string itself; 0 where it is written in another way
    "STRING": 0,
    "UNICODE": 0,
    "SHORT_BINSTRING": 2,
    "BINSTRING": 5,
    "SHORT_BINUNICODE": 2,
    "BINUNICODE": 5,
    "BINUNICODE8": 9,
    "SHORT_BINBYTES": 2,
    "BINBYTES": 5,
    "BINBYTES8": 9,
    "BYTEARRAY8": 9,
}
_VALUES = frozenset(
    ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
)
_MAKE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_NOTHING = frozenset(("PROTO", "FRAME", "STOP"))
