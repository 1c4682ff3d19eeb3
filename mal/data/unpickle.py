"""Pickles of plain arrays and lists, read without running anything that they name and without trusting their lengths.

Only numbers, text, bytes, lists, tuples, dicts and numpy arrays of numbers are known; whatever else a file holds, or
says of more bytes than it has, raises ValueError.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NAMES = frozenset(
    {
        *(("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")),
        *(("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")),
        *(("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")),
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
    }
)
# What pickletools and what is below raise for a file that is cut or damaged.
DAMAGED = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, EOFError, RecursionError)


class _Name(NamedTuple):
    """A name of NAMES, by its last part."""

    name: str


class _Empty:
    """An array that has its content still to come."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None


class _Type:
    """A dtype under construction."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)


_MARK = object()


def unpickle(content: bytes) -> Any:
    """The object that a pickle holds; strings of Python 2 are bytes. Raises ValueError."""
    try:
        return _finished(_Machine().run(content))
    except DAMAGED as error:
        raise ValueError(str(error) or type(error).__name__) from None


class _Machine:
    """The stack machine of pickles, with those of its operations that plain data need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "STOP":
                return self.stack.pop()
            self._do(operation.name, argument)
        raise ValueError("it has no end")

    def _do(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("BINSTRING", "SHORT_BINSTRING", "STRING"):
            self.stack.append(argument.encode("latin1"))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it has the operation {name}, which has no place in a file of images")

    def _name(self, argument: str | None) -> None:
        if argument is None:
            name, module = self.stack.pop(), self.stack.pop()
        else:
            module, _, name = argument.partition(" ")
        if (module, name) not in NAMES:
            raise ValueError(f"it names {module}.{name}, which has no place in a file of images")
        self.stack.append(_Name(name))

    def _marked(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("it has a list without a beginning")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def tuple_of(self, count: int | None) -> None:
        found = self._marked() if count is None else [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(tuple(found))

    def append(self, found: list[Any]) -> None:
        _typed(self.stack[-1], list).extend(found)

    def set_items(self, found: list[Any]) -> None:
        items = iter(found)
        _typed(self.stack[-1], dict).update(zip(items, items, strict=True))

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_CALLS[_typed(name, _Name).name](*_typed(arguments, tuple)))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Type):
            order = state[1].decode() if isinstance(state[1], bytes) else state[1]
            if state[2] is not None or state[3] is not None:
                raise ValueError("it has an array of something else than numbers")
            target.dtype = target.dtype.newbyteorder(_typed(order, str))
        else:
            _, shape, kind, fortran, content = state
            _typed(target, _Empty).array = _array(content, kind, shape, "F" if fortran else "C")


_PUSHED = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_ACTIONS: dict[str, Callable[[_Machine], Any]] = {
    "TUPLE": lambda m: m.tuple_of(None),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "LIST": lambda m: m.stack.append(m._marked()),
    "DICT": lambda m: m.stack.append(dict(zip(*[iter(m._marked())] * 2, strict=True))),
    "APPEND": lambda m: m.append([m.stack.pop()]),
    "APPENDS": lambda m: m.append(m._marked()),
    "SETITEM": lambda m: m.set_items([m.stack.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda m: m.set_items(m._marked()),
    "POP": lambda m: m.stack.pop(),
    "REDUCE": lambda m: m.reduce(),
    "BUILD": lambda m: m.build(),
}


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"it has a {type(value).__name__.lstrip('_')} where a {kind.__name__.lstrip('_')} belongs")
    return value


def _array(content: Any, kind: Any, shape: Any, order: str = "C") -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else content
    dtype = _typed(kind, _Type).dtype
    if dtype.hasobject or not isinstance(content, bytes | bytearray):
        raise ValueError("it has an array of something else than numbers")
    return np.frombuffer(content, dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _dtype(code: Any, *_: Any) -> _Type:
    text = code.decode() if isinstance(code, bytes) else _typed(code, str)
    if text.lstrip("<>|=")[:1] not in ("u", "i", "f", "b"):
        raise ValueError("it has an array of something else than numbers")
    return _Type(text)


_CALLS: dict[str, Callable[..., Any]] = {
    "_reconstruct": lambda *_: _Empty(),
    "_frombuffer": lambda content, kind, shape, order: _array(content, kind, shape, order),
    "scalar": lambda kind, content: _array(content, kind, ())[()],
    "dtype": _dtype,
    "encode": lambda text, coding: _typed(text, str).encode("latin1"),
}


def _finished(value: Any) -> Any:
    """The value with its arrays in their places."""
    if isinstance(value, _Empty):
        if value.array is None:
            raise ValueError("it has an array without content")
        return value.array
    if isinstance(value, dict):
        return {key: _finished(each) for key, each in value.items()}
    if isinstance(value, list | tuple) and not all(isinstance(each, int | str | bytes) for each in value):
        return type(value)(_finished(each) for each in value)
    if isinstance(value, _Name | _Type):
        raise ValueError("it has something else than data")
    return value
