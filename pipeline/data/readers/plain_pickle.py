"""Pickles of plain values, read without running what is in them.

A pickle is a program. Python's own reader runs it: it calls whatever the file names, and even one that may call nothing
allocates what a single opcode asks for, and overflows its stack over keys nested deeply. Here a small machine knows the
opcodes that make lists, tuples, dicts, text and numbers, and refuses the file at the first other one. It makes no
sets, no bytes and no keys but text.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any

from pipeline.data.filesystem import open_file, redact
from pipeline.errors import MissingInputError

MAX_FILE_BYTES = 128 << 20
MAX_CONTAINERS = 2_000_000
"""An empty list takes one byte of a file and sixty of memory. RefCOCO has half a million lists and dicts."""
MAX_DEPTH = 32
"""Containers inside one another."""
MAX_EXPANDED = 1 << 29
"""Values and characters, those that stand in several places counted in each: what a reader of them may meet."""
MAX_DIGITS = 100
NEWEST_PROTOCOL = 5
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[\\'\"nrt])")  # those of Python 2's repr
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
CONTAINERS = frozenset({list, tuple, dict})

MARK, STOP, APPEND, SETITEM, BININT2, GET, BINGET, LONG_BINGET, PUT, LONG_BINPUT = b"(.asMghjpr"


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
        value = _Machine(data).run()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        if isinstance(error, PickleRefusedError):
            raise
        raise PickleRefusedError(f"broken or cut off ({' '.join(str(error).split())[:100]})") from error
    _check_size(value)
    return value


class _Machine:
    """A stack, a memo and a place in the file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0
        self._steps: list[Callable[[], None] | None] = [None] * 256
        for opcode, step in self._known().items():
            self._steps[ord(opcode)] = step

    def run(self) -> Any:
        """Run to the end of the program and return what it leaves.

        What makes up most of RefCOCO's files, in protocol 0 as in 2, is done here: calls would take twice as long.
        """
        data, stack, marks, memo, steps = self._data, self._stack, self._marks, self._memo, self._steps
        push, pop, find_line = stack.append, stack.pop, data.index
        at = 0
        while True:
            opcode = data[at]
            at += 1
            if opcode == BINGET:
                push(memo[data[at]])
                at += 1
            elif opcode == LONG_BINGET:
                push(memo[int.from_bytes(data[at : at + 4], "little")])
                at += 4
            elif opcode == LONG_BINPUT:
                self._remember(int.from_bytes(data[at : at + 4], "little"))
                at += 4
            elif opcode == GET:
                end = find_line(b"\n", at, at + MAX_DIGITS)
                push(memo[int(data[at:end])])
                at = end + 1
            elif opcode == PUT:
                end = find_line(b"\n", at, at + MAX_DIGITS)
                self._remember(int(data[at:end]))
                at = end + 1
            elif opcode == SETITEM:
                value, key = pop(), pop()
                if type(stack[-1]) is dict and type(key) is str:
                    stack[-1][key] = value
                else:
                    self._set([key, value])
            elif opcode == APPEND:
                value = pop()
                if type(stack[-1]) is list:
                    stack[-1].append(value)
                else:
                    self._append([value])
            elif opcode == MARK:
                marks.append(len(stack))
            elif opcode == BININT2:
                push(data[at] | data[at + 1] << 8)
                at += 2
            elif opcode == STOP:
                return pop()
            else:
                self._at = at
                step = steps[opcode]
                if step is None:
                    raise PickleRefusedError(
                        f"opcode {_name(opcode)}, which plain values do not need, at byte {at - 1}"
                    )
                step()
                at = self._at

    def _known(self) -> dict[str, Callable[[], None]]:
        return {
            "\x80": self._protocol,
            "\x95": self._frame,
            "N": lambda: self._push(None),
            "\x88": lambda: self._push(True),
            "\x89": lambda: self._push(False),
            "I": self._text_int,
            "L": self._text_int,
            "J": lambda: self._push(int.from_bytes(self._take(4), "little", signed=True)),
            "K": lambda: self._push(self._take(1)[0]),
            "\x8a": lambda: self._push(int.from_bytes(self._counted(1), "little", signed=True)),
            "F": lambda: self._push(float(self._line())),
            "G": lambda: self._push(struct.unpack(">d", self._take(8))[0]),
            "S": self._quoted,
            "T": lambda: self._push(_decode(self._counted(4))),
            "U": lambda: self._push(_decode(self._counted(1))),
            "V": lambda: self._push(self._line().decode("raw-unicode-escape")),
            "X": lambda: self._push(self._counted(4).decode("utf-8", "surrogatepass")),
            "\x8c": lambda: self._push(self._counted(1).decode("utf-8", "surrogatepass")),
            "\x8d": lambda: self._push(self._counted(8).decode("utf-8", "surrogatepass")),
            "]": lambda: self._push_container([]),
            "}": lambda: self._push_container({}),
            ")": lambda: self._push_container(()),
            "l": lambda: self._push_container(self._above_mark()),
            "t": lambda: self._push_container(tuple(self._above_mark())),
            "d": self._dict,
            "\x85": lambda: self._tuple(1),
            "\x86": lambda: self._tuple(2),
            "\x87": lambda: self._tuple(3),
            "e": lambda: self._append(self._above_mark()),
            "u": lambda: self._set(self._above_mark()),
            "q": lambda: self._remember(self._take(1)[0]),
            "\x94": lambda: self._remember(len(self._memo)),
        }

    # Arguments that follow an opcode in the file.

    def _take(self, size: int) -> bytes:
        start = self._at
        self._at = end = start + size
        if end > len(self._data):
            raise PickleRefusedError("cut off")
        return self._data[start:end]

    def _counted(self, width: int) -> bytes:
        return self._take(int.from_bytes(self._take(width), "little"))

    def _line(self) -> bytes:
        start = self._at
        end = self._data.index(b"\n", start)
        self._at = end + 1
        return self._data[start:end]

    def _number(self) -> bytes:
        line = self._line()
        if len(line) > MAX_DIGITS:
            raise PickleRefusedError(f"a number of {len(line)} digits")
        return line

    # Opcodes that take more than a line.

    def _protocol(self) -> None:
        version = self._take(1)[0]
        if version > NEWEST_PROTOCOL:
            raise PickleRefusedError(f"pickle protocol {version}; this reader knows those up to {NEWEST_PROTOCOL}")

    def _frame(self) -> None:
        self._take(8)  # how much to read ahead

    def _text_int(self) -> None:
        line = self._number()
        # Protocol 0 has no other way to write booleans.
        self._push(line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L")))

    def _quoted(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
            raise PickleRefusedError(f"text without quotes before byte {self._at}")
        text = line[1:-1]
        self._push(_decode(_ESCAPE.sub(_unescape, text) if b"\\" in text else text))

    # The stack, and values that are made of others.

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise PickleRefusedError("too few values on the stack")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _above_mark(self) -> list[Any]:
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def _push_container(self, value: Any) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise PickleRefusedError(f"more than {MAX_CONTAINERS} lists and dicts")
        self._stack.append(value)

    def _tuple(self, size: int) -> None:
        self._push_container(tuple(self._last(size)))

    def _dict(self) -> None:
        values = self._above_mark()
        self._push_container({})
        self._set(values)

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise PickleRefusedError(f"values appended to {type(target).__name__}")
        target.extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise PickleRefusedError(f"items set in {type(target).__name__}")
        keys = values[::2]
        for key in keys:
            # Numbers can be chosen to collide, and tuples take the C stack with them: text can do neither.
            if type(key) is not str:
                raise PickleRefusedError(f"a key that is {type(key).__name__}, not text")
        target.update(zip(keys, values[1::2], strict=True))

    def _remember(self, index: int) -> None:
        # Picklers count up from 0 or 1.
        if not 0 <= index <= len(self._data):
            raise PickleRefusedError(f"value number {index} in a file of {len(self._data)} bytes")
        self._memo[index] = self._stack[-1]


def _unescape(found: re.Match[bytes]) -> bytes:
    code = found[1]
    return bytes([int(code[1:], 16)]) if code[:1] == b"x" else _ESCAPED.get(code, code)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _check_size(value: Any) -> None:
    """Refuse what is nested too deeply, holds itself, or is larger to walk through than the file lets one think.

    A list of ten references to a list of ten references, nine times over, takes a hundred bytes and is a billion
    values: each container is therefore measured once, from the inside out.
    """
    if type(value) in CONTAINERS:
        _measure(value, 1, {})


def _measure(container: Any, depth: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values and characters a container holds, and how many containers inside one another."""
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


def _name(opcode: int) -> str:
    known = pickletools.code2op.get(chr(opcode))  # type: ignore[attr-defined]  # missing in typeshed
    return known.name if known else f"number {opcode}"
