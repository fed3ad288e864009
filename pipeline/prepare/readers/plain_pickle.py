"""Pickles of plain values, read without running what is in them.

A pickle is a program. Python's reader in C calls whatever the program names; even one that may call nothing takes the
memory that a single opcode asks for, and overflows its stack over keys nested deeply. Python's reader in Python has a
table from opcode to what it does: here the table ends with lists, tuples, dicts, text and numbers, and a file is
refused at the first other opcode. It makes no sets, no bytes and no keys but text.
"""

from __future__ import annotations

import codecs
import io
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable
from typing import Any

from pipeline.errors import MissingInputError
from pipeline.store.filesystem import open_file
from pipeline.store.urls import redact

MAX_FILE_BYTES = 128 << 20
MAX_CONTAINERS = 2_000_000
"""An empty list takes one byte of a file and sixty of memory. RefCOCO has half a million lists and dicts."""
MAX_DEPTH = 32
"""Containers inside one another."""
MAX_EXPANDED = 1 << 29
"""Values and characters, those that stand in several places counted in each: what a reader of them may meet."""
CONTAINERS = frozenset({list, tuple, dict})

_PROTOCOL = (pickle.PROTO, pickle.FRAME, pickle.STOP)
_VALUES = (
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.FLOAT, pickle.BINFLOAT),
    *(pickle.INT, pickle.LONG, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1),
    *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
)
_MEMO = (
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
)
_APPENDING = (pickle.APPEND, pickle.APPENDS)
_NEW_CONTAINERS = (
    *(pickle.MARK, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_TUPLE, pickle.LIST, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
)
_BROKEN = (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError, struct.error)
"""What the reader raises over a program that makes no sense."""
_AS_LATIN_1 = "glip-latin-1"
codecs.register_error(_AS_LATIN_1, lambda error: (error.object[error.start : error.end].decode("latin-1"), error.end))  # type: ignore[attr-defined]  # errors of decoding alone


class PickleRefusedError(ValueError):
    """A pickle that is broken, too large, or more than plain values."""


def load_plain_pickle(url: str, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Read a pickle of plain values.

    Raises:
        MissingInputError: there is no such file, or it is no such pickle; nothing of it has run.
    """
    with open_file(url) as stream:
        data = stream.read(max_bytes + 1)
    try:
        if len(data) > max_bytes:
            raise PickleRefusedError(f"larger than {max_bytes} bytes")
        return parse_plain_pickle(data)
    except PickleRefusedError as error:
        raise MissingInputError(
            f"{redact(url)}: expected a pickle of lists, dicts, text and numbers; found: {error}; fetch the file again "
            "from where the data set is published"
        ) from error


def parse_plain_pickle(data: bytes) -> Any:
    """Return the value of a pickle of any protocol.

    Python 2's byte strings become text: UTF-8, or Latin-1 where they are no UTF-8.

    Returns:
        Lists, tuples and dicts with text as keys; in them text, whole numbers, floats, booleans and None. Parts of it
        may be shared, but it holds no cycle, and whoever walks through it meets no more than ``MAX_EXPANDED`` values.

    Raises:
        PickleRefusedError: it is broken, too large, or more than plain values.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about escapes that Python 2 did not write
            value = _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors=_AS_LATIN_1).load()
    except PickleRefusedError:
        raise
    except _BROKEN as error:
        raise PickleRefusedError(f"broken or cut off ({' '.join(str(error).split())[:100]})") from error
    if type(value) in CONTAINERS:
        _measure(value, 1, {})
    return value


class _Steps(dict[int, Callable[[Any], None]]):
    """What each opcode does."""

    def __missing__(self, opcode: int) -> Callable[[Any], None]:
        known = pickletools.code2op.get(chr(opcode))  # type: ignore[attr-defined]  # missing in typeshed
        name = known.name if known else f"number {opcode}"
        raise PickleRefusedError(f"opcode {name}, which plain values do not need")


class _PlainUnpickler(pickle._Unpickler):
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    _num_containers = 0

    def _count(self) -> None:
        self._num_containers += 1
        if self._num_containers > MAX_CONTAINERS:
            raise PickleRefusedError(f"more than {MAX_CONTAINERS} lists and dicts")

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self._count()
        self.append({})
        self._set(items)

    def _set_items(self) -> None:
        self._set(self.pop_mark())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise PickleRefusedError(f"items set in {type(target).__name__}")
        for key in items[::2]:
            # Numbers can be chosen to collide, and tuples take the C stack with them: text can do neither.
            if type(key) is not str:
                raise PickleRefusedError(f"a key that is {type(key).__name__}, not text")
        target.update(zip(items[::2], items[1::2], strict=True))

    dispatch = _Steps()


def _counting(step: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(reader: _PlainUnpickler) -> None:
        reader._count()
        step(reader)

    return counted


_python = pickle._Unpickler.dispatch
_PlainUnpickler.dispatch |= {code[0]: _python[code[0]] for code in (*_PROTOCOL, *_VALUES, *_MEMO, *_APPENDING)}
_PlainUnpickler.dispatch |= {code[0]: _counting(_python[code[0]]) for code in _NEW_CONTAINERS}
_PlainUnpickler.dispatch |= {
    pickle.DICT[0]: _PlainUnpickler._make_dict,
    pickle.SETITEM[0]: _PlainUnpickler._set_item,
    pickle.SETITEMS[0]: _PlainUnpickler._set_items,
}


def _measure(container: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values and characters a container holds, and how many containers inside one another.

    A list of ten references to a list of ten references, nine times over, takes a hundred bytes and is a billion
    values: each container is therefore measured once, from the inside out.

    Raises:
        PickleRefusedError: it is nested too deeply, holds itself, or is larger to walk through than allowed.
    """
    if depth > MAX_DEPTH:  # a value that holds itself ends here too
        raise PickleRefusedError(f"more than {MAX_DEPTH} lists and dicts inside one another")
    size, height = len(container) + 1, 0
    if type(container) is dict:
        size += sum(map(len, container))
    for child in container.values() if type(container) is dict else container:
        kind = type(child)
        if kind is str:
            size += len(child)
        elif kind in CONTAINERS:
            inner = known.get(id(child)) or _measure(child, depth + 1, known)
            size += inner[0]
            height = max(height, inner[1])
    if size > MAX_EXPANDED:
        raise PickleRefusedError(f"more than {MAX_EXPANDED} values and characters")
    if depth + height > MAX_DEPTH:
        raise PickleRefusedError(f"more than {MAX_DEPTH} lists and dicts inside one another")
    known[id(container)] = found = (size, height + 1)
    return found
