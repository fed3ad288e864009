"""Rows of Parquet files, one part per row group; captions that are no UTF-8 are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import MissingInputError
from pipeline.prepare.raw import Part, RawGrounding, RawPair, RawTable, Reject, Url
from pipeline.prepare.readers.columns import first_value
from pipeline.prepare.readers.lines import decode_text
from pipeline.store.filesystem import file_identity, list_files, open_file
from pipeline.store.read_errors import describe
from pipeline.store.records import CaptionRecord
from pipeline.store.shards import refuse_bombs
from pipeline.store.urls import redact

Values = Mapping[str, Any]
MakeRow = Callable[[str, int, Values, Any], Iterator[RawPair | RawGrounding | Reject]]
"""Makes raw rows of a table's name, a row's number, its values and its caption."""
BATCH_ROWS = 64
"""Rows of a Parquet file that are unpacked at a time."""


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
