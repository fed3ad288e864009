"""Files of lines cut into byte ranges, so that every task reads its own lines and nobody the whole file."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

from fsspec.core import url_to_fs

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import CAPTION_DAMAGED, CAPTION_NOT_UTF8, Part, RawRow
from pipeline.store.filesystem import open_file
from pipeline.store.urls import redact

WHOLE = (0, -1)
"""The range of a file that can only be read from its beginning."""
PROBED_LINES = 50
"""Lines from the beginning that a reader may look at to learn about a file."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins like that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LONGEST_MARK = 4
"""Bytes."""
_PIECE = re.compile(r"[^\r]*\r\n?|[^\r]+")
MAX_CELL_CHARS = 1 << 24
"""Longer cells of a CSV are a quotation mark that nobody closed."""
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_FOREIGN = re.compile(r"[^\x00-\x7f]{3}")


def split_mark(data: bytes) -> tuple[str, bytes]:
    """Return the encoding that a byte order mark at the beginning names, UTF-8 without one, and what follows it."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, data[len(mark) :]
    return "utf-8", data


def decode_text(data: bytes) -> tuple[str, str | None]:
    """Return a whole text without its byte order mark, as ``decode_line``, in the encoding that its mark says."""
    encoding, text = split_mark(data)
    return decode_line(text, encoding)


def decode_line(data: bytes, encoding: str = "utf-8") -> tuple[str, str | None]:
    """Return text, and what ``Converted`` says of it where it is not in the encoding that it should have.

    What is not UTF-8 may be nearly so: with characters beyond 16 bits in two halves of three bytes each, as Java and
    MySQL write them (CESU-8); or damaged, with no fewer whole characters than broken ones besides ASCII. Otherwise it
    is Windows-1252: like Latin-1 wherever that has a printable character, and with quotation marks where it has none.
    Where that makes long runs of letters that are not ASCII, it was some other encoding, and counts as damaged.
    """
    try:
        return data.decode(encoding), None
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
    if encoding == "utf-8":
        with suppress(UnicodeDecodeError):
            halves = data.replace(b"\xc0\x80", b"\0").decode("utf-8", "surrogatepass")
            text = halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            return text, CAPTION_DAMAGED if _BROKEN in text else CAPTION_NOT_UTF8
        num_broken = text.count(_BROKEN)
        if sum(not character.isascii() for character in text) < 2 * num_broken:
            text = data.decode("cp1252", "replace")
            return text, CAPTION_DAMAGED if _BROKEN in text or _FOREIGN.search(text) else CAPTION_NOT_UTF8
    return text, CAPTION_DAMAGED if _BROKEN in text else CAPTION_NOT_UTF8


def line_ranges(url: str, bytes_per_part: int) -> Iterator[tuple[int, int]]:
    """Yield byte ranges that cover a file; of a compressed one a single range, ``WHOLE``.

    Args:
        url: of a file that exists.
        bytes_per_part: length of a range.
    """
    if is_compressed(url):
        yield WHOLE
        return
    filesystem, path = url_to_fs(url)
    size = filesystem.size(path)
    for start in range(0, size, bytes_per_part):
        yield start, min(start + bytes_per_part, size)


def read_lines(url: str, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin in a byte range, each with the place where it begins and without its line end.

    A line belongs to the range in which its first byte lies, so ranges that cover a file give every line once. A byte
    order mark is left out.

    Raises:
        MissingInputError: by its mark the file is UTF-16 or UTF-32, whose lines cannot be found by their bytes.
    """
    with open_file(url, compression="infer" if is_compressed(url) else None) as file:
        place = 0
        if start > 0:
            file.seek(start - 1)
            place = start - 1 + len(file.readline())  # the rest of a line that began before, or only its end
        while stop < 0 or place < stop:
            line = file.readline()
            if not line:
                return
            encoding, text = split_mark(line) if place == 0 else ("utf-8", line)
            if encoding != "utf-8":
                raise MissingInputError(f"{redact(url)}: {encoding.upper()}; expected UTF-8: save it as such")
            yield place, text.rstrip(b"\r\n")
            place += len(line)


def json_parts(
    url: str, identity: str, rows: Callable[[str, int, int], Iterator[RawRow]], rows_per_part: int
) -> Iterator[Part]:
    """Cut a file of JSON lines into parts of about so many rows, of which ``rows`` reads one by its byte range."""
    for start, stop in line_ranges(url, bytes_per_part(url, rows_per_part)):
        name = f"{redact(url)}, bytes {start} to {stop}"
        yield Part(name, f"{identity} {start}-{stop}", partial(rows, url, start, stop))


def json_lines(url: str, start: int, stop: int) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Yield what messages call a line, its value and what was done to its text; of those that are not blank.

    The value is None where it is no JSON.
    """
    label = redact(url)
    for place, line in read_lines(url, start, stop):
        if line.strip():
            text, note = decode_line(line)
            yield f"{label}, byte {place}", parse_json(text), (note,) if note else ()


def parse_json(text: str) -> Any:
    """Return a JSON value; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@contextmanager
def open_text(url: str, notes: set[str] | None = None) -> Iterator[Iterator[str]]:
    """Open a file, plain or compressed, for its lines with their ends, without its byte order mark.

    It is UTF-8 where no mark says another encoding; lines that are not are read as ``decode_line`` does.

    Args:
        url: of the file.
        notes: gets what was done to the lines.
    """
    with open_file(url, compression="infer") as stream:
        encoding, first = split_mark(stream.readline())
        blocks = chain([first], stream)
        yield _lines(blocks, notes) if encoding == "utf-8" else _split(codecs.iterdecode(blocks, encoding, "replace"))


def _lines(blocks: Iterator[bytes], notes: set[str] | None) -> Iterator[str]:
    for block in blocks:
        text, note = decode_line(block)
        if notes is not None and note is not None:
            notes.add(note)
        yield text


@contextmanager
def open_csv(url: str, notes: set[str] | None = None) -> Iterator[Iterator[str]]:
    """Open a file as ``open_text``, for the readers of ``csv``: carriage returns end lines.

    Raises:
        MissingInputError: inside of the ``with``, ``csv`` could not read the lines.
    """
    csv.field_size_limit(MAX_CELL_CHARS)
    with open_text(url, notes) as lines:
        try:
            yield (piece[0] for line in lines for piece in _PIECE.finditer(line))
        except csv.Error as error:
            raise MissingInputError(f"{redact(url)}: not readable as CSV: {error}; mend the file's quotes") from error


def _split(blocks: Iterator[str]) -> Iterator[str]:
    """Cut text that comes in blocks into lines with their ends."""
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def is_compressed(url: str) -> bool:
    """Tell by its name whether a file is compressed."""
    return url.endswith((".gz", ".bz2", ".xz", ".zst"))


def bytes_per_part(url: str, rows_per_part: int) -> int:
    """Return how many bytes hold about so many lines, judging by the first lines."""
    lengths = []
    for _, line in read_lines(url, *WHOLE):
        lengths.append(len(line) + 1)
        if len(lengths) == PROBED_LINES:
            break
    return max(1, rows_per_part * sum(lengths) // max(len(lengths), 1))
