"""Lists of captions and picture URLs: TSV or CSV whose columns are found by what is in them, or Parquet."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import CAPTION_UNQUOTED, Part, RawImage, RawPair, RawTable, Reject, SourceContext, Url
from pipeline.prepare.readers.columns import CAPTION_COLUMNS, LICENSE_COLUMNS, URL_COLUMNS, first_value
from pipeline.prepare.readers.lines import PROBED_LINES, open_csv
from pipeline.prepare.readers.parquet_rows import Values, parquet_table
from pipeline.store.filesystem import file_identity, list_files
from pipeline.store.records import CaptionRecord
from pipeline.store.urls import redact

_COLUMN_NAME = re.compile(r"[^./\\]+")
"""What a column of URLs may be called; an address without its scheme is no name."""
_QUOTED = re.compile(r'"(?:[^"]*"")+[^"]*"')
"""A cell of a TSV whose program quotes as in CSV, because the text has quotes: all inside are doubled."""
_NO_VALUES = ("nan", "none", "null", "nil", "na", "\\n")
"""What programs write into a cell without a value: no name of a column."""


def read_url_list(
    context: SourceContext,
    *,
    tables: Url,
    images: Url | None = None,
    file_name: str = "{row:09d}.jpg",
    caption: str | None = None,
    url: str | None = None,
    needs_captions: bool = True,
    license: str | None = None,
) -> list[RawTable]:
    """Lists of captions and picture URLs: CC3M, CC12M, SBU, LAION; TSV, CSV or Parquet.

    The delimiter is the one that makes sense of the first rows. A first row without a URL is a header where the next
    has one; then the captions are in the column called so, or in the only other one. Without a header the URLs are in
    the column that looks like URLs (CC3M: the second, CC12M: the first). Where several columns may be meant, or the
    first row may be no header, the list is refused until the options name them. Rows of too few or too many cells are
    rejects.

    Options:
        tables: the list, a glob, or numbers.
        images: folder of the downloaded pictures; left out, every picture is fetched from its URL.
        file_name: of a picture below ``images``: ``{row}`` is the row's number in its file, ``{md5}`` and ``{sha256}``
            are hashes of its URL, ``{url_name}`` what the URL's path ends with.
        caption: column of the captions; left out, ``caption`` or ``text``. In a list without a header its number
            from 1, likewise that of ``url``.
        url: column of the URLs; left out, ``url``.
        needs_captions: false lets a Parquet file be without a column of captions.
        license: column of the pictures' licences; left out, ``license`` where there is one.
    """

    def row(table: str, number: int, values: Values, text: Any) -> Iterator[RawPair | Reject]:
        address = first_value(values, urls)
        if isinstance(address, str):
            image = replace(downloaded(number, address, images, file_name), license=first_value(values, licenses))
            yield RawPair(name=address, image=image, caption=text)
        else:
            yield Reject(f"row {number}", "row_malformed")

    files, urls = list_files(tables), (url,) if url else URL_COLUMNS
    captions, licenses = (caption,) if caption else CAPTION_COLUMNS, (license,) if license else LICENSE_COLUMNS
    if all(file.endswith(".parquet") for file in files):
        return [parquet_table(tables, urls, captions if needs_captions else (), row, optional=licenses)]

    def parts(rows_per_part: int) -> Iterator[Part]:
        for file in files:
            layout = _Layout.of(file, url, caption, licenses)
            identity = f"{file_identity(file)} {images} {file_name} {caption} {url} {license}"
            # Rows are numbered through, and a quoted field may hold line ends: one task reads one file.
            yield Part(redact(file), identity, partial(_read_list, file, layout, images, file_name))

    return [RawTable(CaptionRecord, parts)]


def downloaded(number: int, address: str, images: str | None, file_name: str) -> RawImage:
    """Return where the picture of a list's row is, see ``read_url_list``."""
    if images is None:
        # Only what is meant for everybody to fetch: a list must not make us read local files or buckets.
        return RawImage(url=address if address.startswith(("http://", "https://")) else None)
    data = address.encode("utf-8", "surrogatepass")
    name = file_name.format(
        row=number,
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        url_name=_name_in(address),
    )
    return RawImage(folder=images, url=name)


def _name_in(address: str) -> str:
    """Return what a URL's path ends with; nothing where it is no URL, such as ``http://[/a.jpg``."""
    try:
        return PurePosixPath(unquote(urlsplit(address).path)).name
    except ValueError:
        return ""


class _Layout(NamedTuple):
    """Where a TSV or CSV has its captions and URLs."""

    delimiter: str
    has_header: bool
    url: int
    caption: int
    width: int
    """Columns."""
    license: int | None = None

    @classmethod
    def of(cls, file: str, url: str | None, caption: str | None, licenses: Sequence[str]) -> _Layout:
        """Learn it from the first rows, with the delimiter that makes sense of them.

        Raises:
            MissingInputError: there is no column of URLs or none for captions, or several that may be meant.
        """
        delimiters = (",", ";", "\t") if ".csv" in file.rpartition("/")[2] else ("\t", ",", ";")
        seen = []
        for delimiter in delimiters:
            with _open_rows(file, delimiter) as rows:
                first, *others = [
                    [cell.strip() for cell in row] for row in islice(filter(any, rows), PROBED_LINES)
                ] or [[]]
            seen.append(first)
            layout = cls._learn(_Probe(file, delimiter, first, next(filter(None, others), [])), url, caption)
            if layout is not None:
                at = _named(first, licenses) if layout.has_header else _numbered(licenses[0], first)
                return layout._replace(license=at)
        raise MissingInputError(
            f"{redact(file)}: no column of URLs beside one of captions (first row: {seen[0][:5]}); "
            "name them by the options url and caption"
        )

    @classmethod
    def _learn(cls, probe: _Probe, url: str | None, caption: str | None) -> _Layout | None:
        """Return None where the rows have no URLs, or none of the columns that the options name."""
        first, second = probe.first, probe.second
        addresses = _urls_in(first)
        has_header = not addresses
        if has_header:
            addresses = _urls_in(second)
            at = _named(first, (url,) if url else URL_COLUMNS)
            if at is None and url is None and len(addresses) == 1:
                at = addresses[0]
                if at >= len(first) or not _COLUMN_NAME.fullmatch(first[at]) or first[at].lower() in _NO_VALUES:
                    raise probe.doubt(f"row 1 may be a header or a row whose URL is broken: {first[:5]}")
        else:
            at = _numbered(url, first) if url else addresses[0]
        if at is None and has_header and len(addresses) > 1:
            raise probe.doubt(f"several columns of URLs: {[first[i] for i in addresses if i < len(first)]}")
        if at is None:
            return None
        others = [i for i in range(len(first)) if i not in addresses and i != at]
        text = _named(first, (caption,) if caption else CAPTION_COLUMNS) if has_header else _numbered(caption, first)
        if text is None and caption is None and len(others) == 1:
            text = others[0]
        if text is None and not others and caption is None:
            return None
        if text is None:
            raise probe.doubt(f"which column has the captions? found {first[:9]}")
        return cls(probe.delimiter, has_header, at, text, len(first))


class _Probe(NamedTuple):
    """The first rows of a list."""

    file: str
    delimiter: str
    first: list[str]
    second: list[str]

    def doubt(self, what: str) -> MissingInputError:
        """Return the error that says what is not certain."""
        return MissingInputError(
            f"{redact(self.file)}: {what}; name the columns by the options url and caption, in a list without a header "
            "by their numbers from 1"
        )


def _urls_in(cells: Sequence[str]) -> list[int]:
    return [i for i, cell in enumerate(cells) if cell.lower().startswith(("http://", "https://"))]


def _named(columns: Sequence[str], names: Sequence[str]) -> int | None:
    """Return the place of the first name that a column has, whatever the case where none is spelt alike."""
    for given, wanted in ((list(columns), names), ([c.lower() for c in columns], [n.lower() for n in names])):
        for name in wanted:
            if name in given:
                return given.index(name)
    return None


def _numbered(number: str | None, columns: Sequence[str]) -> int | None:
    """Return the place of a column by its number from 1."""
    is_number = number is not None and number.isdecimal() and 1 <= int(number) <= len(columns)
    return int(number or 0) - 1 if is_number else None


def _read_list(file: str, layout: _Layout, images: str | None, file_name: str) -> Iterator[RawPair | Reject]:
    notes: set[str] = set()
    with _open_rows(file, layout.delimiter, notes) as rows:
        if layout.has_header:
            next(filter(any, rows), None)  # behind blank lines
        notes.clear()
        for number, cells in enumerate(rows):
            # With more cells than columns a delimiter stood in one of them, and who knows in which.
            if len(cells) <= max(layout.url, layout.caption) or any(map(str.strip, cells[layout.width :])):
                yield Reject(f"{redact(file)}, row {number}", "row_malformed")
                notes.clear()
                continue
            address, caption = cells[layout.url].strip(), cells[layout.caption]
            if layout.delimiter == "\t" and _QUOTED.fullmatch(caption):
                caption = caption[1:-1].replace('""', '"')
                notes.add(CAPTION_UNQUOTED)
            image = downloaded(number, address, images, file_name)
            if layout.license is not None and layout.license < len(cells):
                image = replace(image, license=cells[layout.license])
            yield RawPair(name=address, image=image, caption=caption, converted=tuple(sorted(notes)))
            notes.clear()


@contextmanager
def _open_rows(file: str, delimiter: str, notes: set[str] | None = None) -> Iterator[Iterator[list[str]]]:
    """Open a TSV, where quotes are plain characters, or a CSV, where they are not."""
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with open_csv(file, notes) as lines:
        yield csv.reader(lines, delimiter=delimiter, quoting=quoting)
