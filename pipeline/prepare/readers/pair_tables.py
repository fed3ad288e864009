"""Image-text pairs in tables: Parquet with pictures inside, lists of URLs beside downloaded pictures, JSON lines."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import (
    CAPTION_UNQUOTED,
    Part,
    RawGrounding,
    RawImage,
    RawPair,
    RawTable,
    Reject,
    SourceContext,
    Url,
)
from pipeline.prepare.readers.lines import PROBED_LINES, decode_text, json_lines, json_parts, open_csv
from pipeline.store.filesystem import file_identity, list_files, open_file
from pipeline.store.read_errors import describe
from pipeline.store.records import CaptionRecord
from pipeline.store.shards import refuse_bombs
from pipeline.store.urls import redact

Values = Mapping[str, Any]
MakeRow = Callable[[str, int, Values, Any], Iterator[RawPair | RawGrounding | Reject]]
"""Makes raw rows of a table's name, a row's number, its values and its caption."""
LICENSE_COLUMNS = ("license", "LICENSE", "License")
CAPTION_COLUMNS = ("caption", "text", "TEXT")
IMAGE_FIELDS = ("file_name", "image", "path")
URL_COLUMNS = ("url", "URL")
IMAGE_COLUMNS = ("image", "img", "picture", "jpg")
_COLUMN_NAME = re.compile(r"[^./\\]+")
"""What a column of URLs may be called; an address without its scheme is no name."""
_QUOTED = re.compile(r'"(?:[^"]*"")+[^"]*"')
"""A cell of a TSV whose program quotes as in CSV, because the text has quotes: all inside are doubled."""
_NO_VALUES = ("nan", "none", "null", "nil", "na", "\\n")
"""What programs write into a cell without a value: no name of a column."""
MAX_SHARD_DIGITS = 12
"""Longer numbers of img2dataset's shards are not looked for where a table is not called by its own."""
BATCH_ROWS = 64
"""Rows of a Parquet file that are unpacked at a time."""


def read_image_parquet(
    context: SourceContext,
    *,
    tables: Url,
    image: str = "image",
    caption: str | None = None,
    several: Literal["pairs", "first"] = "pairs",
    images: Url | None = None,
    needs_captions: bool = True,
    license: str | None = None,
) -> list[RawTable]:
    """Parquet with the pictures inside, as Hugging Face data sets have them.

    Of a list of pictures the first makes the pair, and every other is a reject; where there are several captions as
    well nothing says which belongs to which, and all are rejects.

    Options:
        tables: one file, a glob, or numbers such as ``{00000..00010}.parquet``.
        image: column of the pictures, a struct of ``bytes`` and ``path``, plain bytes, a path as text, or a list of
            these.
        caption: column of the captions; left out, ``caption`` or ``text``, in every row the first of them that has one.
        several: what a list of captions becomes: ``pairs`` of the picture with each, or the ``first`` alone.
        images: folder of the pictures that have a path and no bytes; left out, they are rejects.
        needs_captions: false lets a table be without a column of captions.
        license: column of the pictures' licences; left out, ``license`` where there is one.
    """
    licenses = (license,) if license else LICENSE_COLUMNS

    def row(table: str, number: int, values: Values, text: Any) -> Iterator[RawPair | Reject]:
        pictures = values[image] if isinstance(values[image], list) else [values[image]]
        captions = (text or [None]) if isinstance(text, list) else [text]
        if several == "first":
            captions = captions[:1]
        found = [_picture(picture, number, images) for picture in pictures or [None]]
        if len(found) > 1 and len(captions) > 1:
            yield from (Reject(f"{name}: several pictures and captions", "row_malformed") for name, _ in found)
            return
        (name, first), *others = found
        first = replace(first, license=first_value(values, licenses))
        yield from (RawPair(name=name, image=first, caption=each) for each in captions)
        yield from (Reject(f"{other}: a second picture of {name}", "row_malformed") for other, _ in others)

    captions = (caption,) if caption else CAPTION_COLUMNS
    return [parquet_table(tables, (image,), captions if needs_captions else (), row, optional=licenses)]


def _picture(value: Any, number: int, images: Url | None) -> tuple[str, RawImage]:
    """Return what messages call a picture of a row, and its bytes or its place."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    else:
        data, path = (None, value) if isinstance(value, str) else (value, None)
    name = str(path or f"row {number}")
    if not isinstance(data, bytes) and isinstance(path, str) and images is not None:
        return name, RawImage(folder=images, url=path)
    return name, RawImage(data=data if isinstance(data, bytes) else b"")


def read_img2dataset_files(context: SourceContext, *, tables: Url, images: Url) -> list[RawTable]:
    """img2dataset's output format ``files``: folders of pictures with a Parquet file beside each.

    Rows that were not downloaded are rejects.

    Options:
        tables: the Parquet files, such as ``cc3m/{00000..00331}.parquet``.
        images: where the folders 00000, 00001 … are.
    """

    def row(table: str, number: int, values: Values, text: Any) -> Iterator[RawPair | Reject]:
        key = str(values["key"])
        if values.get("status", "success") != "success":
            yield Reject(key, "image_missing")
            return
        # Keys start with the number of their shard, as which its table is called, of five digits unless the user chose
        # otherwise; pictures are encoded as jpg likewise.
        stem = table.rpartition("/")[2].removesuffix(".parquet")
        others = sorted(range(1, min(len(key), MAX_SHARD_DIGITS)), key=lambda length: abs(length - 5))
        shards = dict.fromkeys([stem, key[:5]] if key.startswith(stem) else [*(key[:n] for n in others), stem])
        names = [f"{shard}/{key}.{suffix}" for shard in shards for suffix in ("jpg", "png", "webp")]
        picture = {"license": first_value(values, LICENSE_COLUMNS), "choices": tuple(names[1:])}
        yield RawPair(name=key, image=RawImage(folder=images, url=names[0], **picture), caption=text)

    return [parquet_table(tables, ("key",), CAPTION_COLUMNS, row, optional=("status", *LICENSE_COLUMNS))]


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


def read_captions_jsonl(
    context: SourceContext, *, captions: Url, images: Url, image: str | None = None, caption: str | None = None
) -> list[RawTable]:
    """A folder of pictures and a file with one JSON object a line; Hugging Face's ``metadata.jsonl`` is one.

    Options:
        captions: the file, plain or compressed, or a glob.
        images: folder of the pictures.
        image: field with the picture's name; left out, ``file_name``, ``image`` or ``path``.
        caption: field with the caption; left out, ``caption`` or ``text``.
    """
    fields = ((image,) if image else IMAGE_FIELDS, (caption,) if caption else CAPTION_COLUMNS)
    files = list_files(captions)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for url in files:
            identity = f"{file_identity(url)} {images} {fields}"
            yield from json_parts(url, identity, partial(_read_json_lines, images, *fields), rows_per_part)

    return [RawTable(CaptionRecord, parts)]


def _read_json_lines(
    images: str, image_fields: Sequence[str], caption_fields: Sequence[str], url: str, start: int, stop: int
) -> Iterator[RawPair | Reject]:
    for name, values, notes in json_lines(url, start, stop):
        picture = first_value(values, image_fields)
        if not isinstance(picture, str):
            yield Reject(name, "row_malformed")
        else:
            image = RawImage(folder=images, url=picture, license=first_value(values, LICENSE_COLUMNS))
            yield RawPair(name=picture, image=image, caption=first_value(values, caption_fields), converted=notes)


def first_value(values: Any, names: Sequence[str]) -> Any:
    """Return the first of some columns or fields that has a value: a null beside a filled one says nothing."""
    found = (values.get(name) for name in names) if isinstance(values, dict) else iter(())
    return next((value for value in found if value is not None and value != ""), None)


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


def parquet_table(
    pattern: Url,
    columns: Sequence[str],
    captions: Sequence[str],
    row: MakeRow,
    optional: Sequence[str] = (),
    record_type: type = CaptionRecord,
) -> RawTable:
    """Return a table whose parts are the row groups of Parquet files.

    Args:
        pattern: of the files.
        columns: names of a column, of which one must be there, besides one of ``captions``.
        captions: likewise.
        row: makes raw rows of the file, a row's number in it, its values and its caption.
        optional: columns that are read where they are.
        record_type: what the rows become.

    Raises:
        MissingInputError: a file is no Parquet or lacks a column.
    """
    files = list_files(pattern)

    def parts(rows_per_part: int) -> Iterator[Part]:
        for url in files:
            identity = f"{file_identity(url)} {columns} {captions} {optional}"
            with open_parquet(url) as file:
                sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                texts = _columns(url, file, captions)
                wanted = [*_columns(url, file, columns), *texts, *(c for c in optional if c in file.schema_arrow.names)]
            first = 0
            for group, size in enumerate(sizes):
                rows = partial(_read_group, url, group, first, wanted, texts, row)
                yield Part(f"{redact(url)}, row group {group}", f"{identity} {group}", rows, size)
                first += size

    return RawTable(record_type, parts)


def _columns(url: str, file: pq.ParquetFile, names: Sequence[str]) -> list[str]:
    """Return those of some columns that a file has; MissingInputError where it has none."""
    found = file.schema_arrow.names
    if names and not set(names) & set(found):
        raise MissingInputError(
            f"{redact(url)}: no column {' or '.join(map(repr, names))} (found: {', '.join(found)}); "
            "name it by an option"
        )
    return [name for name in names if name in found]


def _read_group(
    url: str,
    group: int,
    first: int,
    columns: Sequence[str],
    texts: Sequence[str],
    row: MakeRow,
) -> Iterator[RawPair | RawGrounding | Reject]:
    number = first
    try:
        with open_parquet(url) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
                for values in _plain_rows(batch):
                    caption, notes = _decoded(first_value(values, texts))
                    for made in row(url, number, values, caption):
                        yield made if isinstance(made, Reject) else replace(made, converted=notes)
                    number += 1
    except (pa.ArrowException, MissingInputError, OSError, ValueError) as error:
        yield Reject(f"{redact(url)}, row {number}: {describe(error, url)}", "row_malformed")


def _plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as plain values; captions that are no UTF-8 as bytes."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        fields = [pa.field(field.name, _as_bytes(field.type)) for field in batch.schema]
        columns = [column.cast(field.type) for column, field in zip(batch.columns, fields, strict=True)]
        rows = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields)).to_pylist()
        kinds = {field.name: field.type for field in batch.schema}
        is_text = {name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)}
        # Names, addresses and keys are text; captions are decoded where they are counted.
        return [
            {name: _as_utf8(value) if name in is_text else value for name, value in values.items()} for values in rows
        ]


def _as_utf8(value: bytes | None) -> Any:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return a type of text as one of bytes, lists of it likewise."""
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    return pa.list_(_as_bytes(kind.value_type)) if pa.types.is_list(kind) else kind


def _decoded(caption: Any) -> tuple[Any, tuple[str, ...]]:
    """Return a caption, or captions, as text, and what was done to it."""
    if isinstance(caption, list):
        pairs = [_decoded(each) for each in caption]
        return [text for text, _ in pairs], tuple(sorted({note for _, notes in pairs for note in notes}))
    text, note = decode_text(caption) if isinstance(caption, bytes) else (caption, None)
    return text, (note,) if note else ()


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of any file system; MissingInputError when it is none.

    This thread alone reads the file: Arrow's threads must not call into Python file systems, which end before them.
    """
    with open_file(url) as stream:
        try:
            file = pq.ParquetFile(stream, pre_buffer=False)
            refuse_bombs(file.metadata)
        except (pa.ArrowException, OSError) as error:
            raise MissingInputError(
                f"{redact(url)}: not a readable Parquet file: {describe(error, url)}; fetch it again"
            ) from error
        yield file
