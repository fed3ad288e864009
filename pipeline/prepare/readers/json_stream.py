"""JSON files that are larger than memory, read entry by entry.

Entries are decoded by Python's own decoder, so whatever its encoder writes can be read, ``NaN`` and ``Infinity`` too:
a number that is none costs an entry and not the file.
"""

from __future__ import annotations

import codecs
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from pipeline.errors import MissingInputError
from pipeline.prepare.readers.lines import LONGEST_MARK, split_mark
from pipeline.store.filesystem import open_file
from pipeline.store.read_errors import READ_ERRORS
from pipeline.store.urls import redact

BLOCK_BYTES = 1 << 20
MAX_ENTRY_CHARS = 1 << 28
"""Text without an end is refused at this length, before it fills the memory."""
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n]*")
_BROKEN: tuple[type[Exception], ...] = (*READ_ERRORS, EOFError, zlib.error, lzma.LZMAError)
_TAIL_CHARS = 16
"""A decoder that fails this near to the end of a text may only have met a number, a word or an escape cut in two."""


class JsonStream:
    """A JSON file, plain or compressed, of which one entry at a time is in memory.

    Where the lists of an object begin is remembered: read in the order in which they stand, they take one pass.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._begins: dict[str, int] = {}
        self._no_lists: set[str] = set()
        """Names of what is neither a list nor null."""
        self._seen = 0
        """Bytes up to the end of the last value that stands before anything unknown."""

    def entries(self, name: str | None = None) -> Iterator[Mapping[str, Any]]:
        """Yield the entries of a list; those that are no objects come as empty ones.

        Args:
            name: of a list in the file's object, which need not be there; None when the file is a list itself.

        Raises:
            MissingInputError: the file is not there, or what was read of it is no such JSON.
        """
        start = 0 if name is None else self._begins.get(name, self._seen)
        with _opened(self._url, start) as text:
            found = text.items() if name is None or name in self._begins else self._search(name, text)
            for entry in found:
                yield entry if isinstance(entry, dict) else {}
            if name in self._no_lists:
                raise ValueError(f"{name!r} holds no list")

    def check_rest(self) -> None:
        """See that behind what was read the file goes on as JSON, and that no list comes again.

        Raises:
            MissingInputError: it does not, or one does.
        """
        with _opened(self._url, self._seen) as text:
            for _ in self._search("", text):
                pass

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Yield name and value of what the file's object holds; errors as ``entries``."""
        with _opened(self._url, 0) as text:
            while (key := text.key()) is not None:
                yield key, text.value()

    def _search(self, name: str, text: _Text) -> Iterator[Any]:
        while (key := text.key()) is not None:
            if text.peek() == "[":
                if self._begins.setdefault(key, text.place()) != text.place():
                    raise ValueError(f"a second list {key!r}")
                items = text.items()
                if key == name:
                    yield from items
                for _ in items:
                    pass
            elif text.value() is not None:
                self._no_lists.add(key)
            self._seen = max(self._seen, text.place())
            if key == name:
                return


@contextmanager
def _opened(url: str, start: int) -> Iterator[_Text]:
    with open_file(url, compression="infer") as stream:
        text = None
        try:
            text = _Text(stream, start)
            yield text
        except _BROKEN as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else " ".join(str(error).split())[:200]
            if isinstance(error, UnicodeError):
                detail += "; expected UTF-8, or UTF-16 or UTF-32 with a byte order mark"
            place = f" near byte {text.place()}" if text is not None else ""
            raise MissingInputError(
                f"{redact(url)}: not readable as JSON{place}: {detail}; fetch the file again"
            ) from error


class _Text:
    """JSON from some place of a file on, of which a window is held."""

    def __init__(self, stream: IO[bytes], start: int) -> None:
        head = stream.read(LONGEST_MARK)
        self._encoding, first = split_mark(head)
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._stream, self._num_read = stream, start or len(head)
        self._window, self._at = "" if start else self._decoder.decode(first), 0
        self._is_inside, self._is_over = start > 0, False
        if start:
            _go_to(stream, start, len(head))

    def place(self) -> int:
        """Return how many bytes lie before what comes next."""
        undecoded = self._decoder.getstate()[0]
        return self._num_read - len(undecoded) - len(self._window[self._at :].encode(self._encoding))

    def peek(self) -> str:
        """Return the character that comes next but blanks; nothing at the end."""
        while True:
            self._at = _BLANKS.match(self._window, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._read(BLOCK_BYTES):
                return ""

    def key(self) -> str | None:
        """Step over the name of the next value of the object; None at its end."""
        if not self._is_inside:
            self._step("{")
        elif self.peek() != "}":
            self._step(",")
        if self.peek() == "}":
            return None
        self._is_inside = True
        key = self.value()
        self._step(":")
        return str(key)

    def items(self) -> Iterator[Any]:
        """Step over a list, one entry at a time."""
        self._step("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._step(",]") == "]":
                return

    def value(self) -> Any:
        """Step over a value."""
        self.peek()
        size = BLOCK_BYTES
        while True:
            try:
                value, end = _DECODER.raw_decode(self._window, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self._window) - _TAIL_CHARS
                if not is_cut or self._is_over:
                    raise
            else:
                may_go_on = end == len(self._window) or (
                    isinstance(value, int | float) and end > len(self._window) - _TAIL_CHARS
                )
                if not may_go_on or self._is_over:
                    self._at = end
                    return value
            if len(self._window) > MAX_ENTRY_CHARS:
                raise ValueError(f"an entry of more than {MAX_ENTRY_CHARS} characters")
            self._read(size)
            size *= 2  # what is decoded again and again doubles, so that the whole stays linear

    def _step(self, expected: str) -> str:
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"found {found or 'the end of the file'}, expected {' or '.join(expected)}")
        self._at += 1
        return found

    def _read(self, size: int) -> bool:
        block = self._stream.read(size)
        self._num_read += len(block)
        self._window = self._window[self._at :] + self._decoder.decode(block, final=not block)
        self._at, self._is_over = 0, not block
        return bool(block)


def _go_to(stream: IO[bytes], start: int, num_read: int) -> None:
    try:
        stream.seek(start)
    except (io.UnsupportedOperation, ValueError):  # some servers give no ranges
        start -= num_read
        while start > 0 and (block := stream.read(min(start, BLOCK_BYTES))):
            start -= len(block)
