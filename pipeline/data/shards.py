"""Parquet shards of records: written whole or not at all, read with errors that say what to do."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.records import (
    SCHEMA_VERSION,
    SCHEMAS,
    CaptionRecord,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    PhrasesRecord,
    Record,
    ScoredBox,
)
from pipeline.errors import MissingInputError, ShardError

R = TypeVar("R", CaptionRecord, PhrasesRecord, GroundingRecord, DetectionRecord)

KIND = {CaptionRecord: "caption", PhrasesRecord: "phrases", GroundingRecord: "grounding", DetectionRecord: "detection"}
VERSION_KEY, KIND_KEY = "glip.schema_version", "glip.kind"
CATEGORIES_KEY, PROVENANCE_KEY, REPEAT_KEY = "glip.categories", "glip.provenance", "glip.repeat"
ROW_GROUP_ROWS = 256
ROW_GROUP_BYTES = 32 << 20
"""Rows, and bytes of pictures, that a reader unpacks at once: a row group ends with whichever comes first."""


def shard_name(number: int, split: int = 0) -> str:
    """Return the file name of a shard; ``split`` counts the files of a part that needed several."""
    return f"part-{number:05d}{f'_{split:03d}' if split else ''}.parquet"


def list_shards(folder: str | Path) -> list[Path]:
    """Return the shards of a folder in order; raise MissingInputError when there are none."""
    folder = Path(folder)
    found = sorted(folder.glob("part-*.parquet")) if folder.is_dir() else []
    if not found:
        raise MissingInputError(f"{folder}: no Parquet shards (part-*.parquet); run: dvc repro")
    return found


def write_shard(
    path: Path, records: Iterable[Record], record_type: type, metadata: Mapping[str, str] | None = None
) -> None:
    """Write records to one file, aside first and then renamed, so that readers never see a part of it.

    Args:
        path: file to write; its folder is created.
        records: may be empty.
        record_type: decides the schema.
        metadata: further key-value pairs of the file; schema version and kind are added here.
    """
    with ShardWriter(path, record_type, metadata) as shard:
        for record in records:
            shard.append(record)


class ShardWriter:
    """A shard that is written row group by row group, and appears when the ``with`` block ends without an exception.

    Args:
        path: file to write; its folder is created.
        record_type: decides the schema.
        metadata: key-value pairs of the file; schema version and kind are added here.

    Attributes:
        metadata: may get further keys until the block ends; those stand in the file's metadata alone, not in its Arrow
            schema.
        rows: so far.
        bytes: of the pictures so far, as they are encoded.
    """

    def __init__(self, path: Path, record_type: type, metadata: Mapping[str, str] | None = None) -> None:
        first = {VERSION_KEY: SCHEMA_VERSION, KIND_KEY: KIND[record_type], **(metadata or {})}
        self.path, self.metadata, self._schema = path, dict(first), SCHEMAS[record_type].with_metadata(first)
        self._aside = path.with_name(f".{path.name}.{os.getpid()}")
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self.rows = self.bytes = 0

    def __enter__(self) -> ShardWriter:
        """Begin the file beside its place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = pq.ParquetWriter(self._aside, self._schema, compression="zstd", write_page_checksum=True)
        return self

    def append(self, record: Record) -> None:
        """Add a row."""
        image = getattr(record, "image", None)
        size = len(image.bytes) if image is not None and image.bytes is not None else 0
        self._group.append(_to_row(record))
        self.rows, self.bytes, self._group_bytes = self.rows + 1, self.bytes + size, self._group_bytes + size
        if len(self._group) == ROW_GROUP_ROWS or self._group_bytes >= ROW_GROUP_BYTES:
            self._write_group()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Put the file in its place, or remove it after an exception."""
        try:
            with self._file:
                if kind is None:
                    self._write_group()
                    first = _decode_metadata(self._schema.metadata)
                    self._file.add_key_value_metadata({k: v for k, v in self.metadata.items() if k not in first})
            if kind is None:
                os.replace(self._aside, self.path)
        finally:
            self._aside.unlink(missing_ok=True)

    def _write_group(self) -> None:
        if self._group:
            self._file.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._group, self._group_bytes = [], 0


def keep_rows(path: Path, rows: Sequence[int], metadata: Mapping[str, str]) -> None:
    """Write a shard again with some of its rows, in their order, and further metadata.

    Raises:
        ShardError: the file is missing or broken.
    """
    table = read_table(path).take(pa.array(rows, pa.int64()))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        table = table.replace_schema_metadata({**read_metadata(path), **metadata})
        pq.write_table(table, aside, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard, or some of its columns.

    Raises:
        ShardError: the file is missing or broken, lacks a column, or has one that is not as its kind of records has it.
    """
    with _shard_errors(path):
        # Every page carries a checksum: a flipped bit is an error and never a slightly different caption.
        file = pq.ParquetFile(path, page_checksum_verification=True)
        kind = _decode_metadata(file.metadata.metadata).get(KIND_KEY)
        _check_columns(path, kind, file.schema_arrow, columns)
        table = file.read(columns=None if columns is None else list(columns))
        table.validate(full=True)
        return table


def read_shard(path: Path, record_type: type[R]) -> list[R]:
    """Read all records of a shard.

    Raises:
        ShardError: the file is missing or broken, or holds another kind or version of records.
    """
    metadata = read_metadata(path)
    for key, expected in ((KIND_KEY, KIND[record_type]), (VERSION_KEY, SCHEMA_VERSION)):
        if metadata.get(key) != expected:
            raise ShardError(f"{path}: {key} is {metadata.get(key)!r}, expected {expected!r}; write the shard anew")
    table = read_table(path, SCHEMAS[record_type].names)
    return [from_row(record_type, row) for row in table.to_pylist()]


def read_metadata(path: Path) -> dict[str, str]:
    """Return the key-value metadata of a shard; ShardError when it is missing or broken."""
    with _shard_errors(path):
        return _decode_metadata(pq.read_metadata(path).metadata)


def categories_to_metadata(categories: Iterable[Category]) -> dict[str, str]:
    """Return the metadata that carries a detection vocabulary."""
    return {CATEGORIES_KEY: json.dumps([dataclasses.asdict(category) for category in categories], ensure_ascii=False)}


def read_categories(path: Path) -> list[Category]:
    """Return the vocabulary of a detection shard; ShardError when it carries none."""
    raw = read_metadata(path).get(CATEGORIES_KEY)
    if raw is None:
        raise ShardError(f"{path}: no vocabulary ({CATEGORIES_KEY}) in its metadata; is it a detection shard?")
    try:
        return [Category(**entry) for entry in json.loads(raw)]
    except (json.JSONDecodeError, TypeError) as error:
        raise ShardError(f"{path}: {CATEGORIES_KEY} is no vocabulary ({error}); write the shard anew") from error


def read_repeat(path: Path) -> int:
    """Return how often the rows of a shard come in one pass of training; 1 where nobody said."""
    return int(read_metadata(path).get(REPEAT_KEY, "1"))


def from_row(record_type: type[R], row: Mapping[str, Any]) -> R:
    """Rebuild a record from one row as ``pyarrow.Table.to_pylist`` gives it."""
    values = dict(row)
    if "image" in values:
        values["image"] = ImageRef(**values["image"])
    if "phrases" in values:
        values["phrases"] = tuple(_phrase_from_row(phrase) for phrase in values["phrases"] or ())
    if "objects" in values:
        values["objects"] = tuple(
            DetectedObject(category_id=item["category_id"], xyxy=_xyxy(item), is_crowd=bool(item["is_crowd"]))
            for item in values["objects"] or ()
        )
    return record_type(**values)


@contextmanager
def _shard_errors(path: Path) -> Iterator[None]:
    """Turn what Arrow raises about a file into ShardErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise ShardError(f"{path}: no such shard; run: dvc repro") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise ShardError(f"{path}: not a readable Parquet file ({detail}); delete it and run: dvc repro") from error


def _check_columns(path: Path, kind: str | None, found: pa.Schema, columns: Sequence[str] | None) -> None:
    promised = next((SCHEMAS[record_type] for record_type, name in KIND.items() if name == kind), pa.schema([]))
    for column in found.names if columns is None else columns:
        if column not in found.names:
            raise ShardError(f"{path}: no column {column!r} (found: {', '.join(found.names)}); write the shard anew")
        if column in promised.names and not found.field(column).type.equals(promised.field(column).type):
            raise ShardError(
                f"{path}: column {column!r} is {found.field(column).type}, expected {promised.field(column).type}; "
                "write the shard anew"
            )


def _decode_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (metadata or {}).items() if key != b"ARROW:schema"}


def _phrase_from_row(row: Mapping[str, Any]) -> Phrase:
    return Phrase(
        text=row["text"],
        char_spans=tuple((span["start"], span["end"]) for span in row["char_spans"] or ()),
        boxes=tuple(ScoredBox(xyxy=_xyxy(box), score=box["score"]) for box in row["boxes"] or ()),
        reject_reason=row["reject_reason"],
        is_plural=row["is_plural"],
        split=row["split"],
    )


def _xyxy(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    return row["x1"], row["y1"], row["x2"], row["y2"]


def _to_row(record: Record) -> dict[str, Any]:
    row = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    if "image" in row:
        row["image"] = {"bytes": row["image"].bytes, "path": row["image"].path}
    if "phrases" in row:
        row["phrases"] = [_phrase_to_row(phrase) for phrase in row["phrases"]]
    if "objects" in row:
        row["objects"] = [
            {"category_id": item.category_id, **_sides(item.xyxy), "is_crowd": item.is_crowd} for item in row["objects"]
        ]
    return row


def _phrase_to_row(phrase: Phrase) -> dict[str, Any]:
    return {
        "text": phrase.text,
        "char_spans": [{"start": start, "end": end} for start, end in phrase.char_spans],
        "boxes": [{**_sides(box.xyxy), "score": box.score} for box in phrase.boxes],
        "reject_reason": phrase.reject_reason,
        "is_plural": phrase.is_plural,
        "split": phrase.split,
    }


def _sides(xyxy: tuple[float, float, float, float]) -> dict[str, float]:
    return dict(zip(("x1", "y1", "x2", "y2"), xyxy, strict=True))
