"""JSON files of any size, read entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import IO, Any

import ijson

from pipeline.data.filesystem import open_file, redact
from pipeline.errors import MissingInputError

MAX_DEPTH = 500
"""Brackets inside one another. The parser keeps a path for each: a file of brackets alone would take all memory."""
READ_BYTES = 1 << 14


def stream_json(url: str, path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a list inside of a JSON file, one at a time; those that are no objects come as empty ones.

    Args:
        url: of the file, plain or compressed.
        path: where the list's entries are, such as ``images.item``, or ``item`` when the file is a list.

    Raises:
        MissingInputError: the file is not there, or is no JSON.
    """
    with open_file(url, compression="infer") as stream:
        try:
            for row in ijson.items(_Shallow(stream), path, use_float=True, buf_size=READ_BYTES):
                yield row if isinstance(row, dict) else {}
        except (ijson.JSONError, UnicodeDecodeError, EOFError, OSError) as error:
            detail = " ".join(str(error).split())[:200]
            raise MissingInputError(f"{redact(url)}: not readable as JSON: {detail}; fetch the file again") from error


class _Shallow:
    """A file that ends with an error where brackets are nested without end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._depth = file, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        opened, closed = data.count(b"[") + data.count(b"{"), data.count(b"]") + data.count(b"}")
        self._depth = max(0, self._depth + opened - closed)  # brackets in strings are few, and may be on either side
        if self._depth > MAX_DEPTH:
            raise ijson.JSONError(f"more than {MAX_DEPTH} brackets inside one another")
        return data
