"""Parquet shards of records: written whole or not at all, read with errors that say what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import MissingInputError, ShardError, StorageError
from pipeline.store.atomic import replacing, storage_errors
from pipeline.store.provenance import FINGERPRINT, file_sha256
from pipeline.store.read_errors import READ_ERRORS, describe
from pipeline.store.records import (
    ADDED_COLUMNS,
    EXTRAS,
    OLDER_TYPES,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    CaptionRecord,
    Category,
    DetectionRecord,
    GroundingRecord,
    PhrasesRecord,
    Record,
    extras_of,
    schema_of,
    without_extras,
)
from pipeline.store.rows import R, from_row, to_row
from pipeline.store.storage import Place, list_files, patiently, read_source

P = TypeVar("P", bound=Place)

KIND = {CaptionRecord: "caption", PhrasesRecord: "phrases", GroundingRecord: "grounding", DetectionRecord: "detection"}
VERSION_KEY, KIND_KEY = "glip.schema_version", "glip.kind"
CATEGORIES_KEY, PROVENANCE_KEY, REPEAT_KEY = "glip.categories", "glip.provenance", "glip.repeat"
ROWS_SHA256_KEY = "glip.rows_sha256"
"""A hash over all rows, in every file's metadata: whether two shards hold the same is seen from their ends alone."""
MOST_REPEATS = 10_000
"""Of a shard in one pass of training; more is no data set's wish."""
ROW_GROUP_ROWS = 256
ROW_GROUP_BYTES = 32 << 20
"""Rows, and bytes of pictures, that a reader unpacks at once: a row group ends with whichever comes first."""
_BOMB_BYTES, _BOMB_RATIO = 256 << 20, 100
"""Columns that unpack to more than so many times what they are are harmless up to so many bytes."""


def shard_name(number: int, split: int = 0) -> str:
    """Return the file name of a shard; ``split`` counts the files of a part that needed several."""
    return f"part-{number:05d}{f'_{split:03d}' if split else ''}.parquet"


def list_shards(folder: P) -> list[P]:
    """Return the shards of a folder in order; raise MissingInputError when there are none."""
    found = list_files(folder, "part-*.parquet")
    if not found:
        raise MissingInputError(f"{folder}: no Parquet shards (part-*.parquet); run: dvc repro")
    return found


def write_shard(
    path: Place,
    records: Iterable[Record],
    record_type: type,
    metadata: Mapping[str, str] | None = None,
    extras: Collection[str] = (),
) -> None:
    """Write records to one file, aside first and then renamed, so that readers never see a part of it.

    Args:
        path: file to write; its folder is created.
        records: may be empty.
        record_type: decides the schema.
        metadata: further key-value pairs of the file; schema version and kind are added here.
        extras: which of ``records.EXTRAS`` the rows have.

    Raises:
        StorageError: there is no room, no right to write, or the store does not answer.
    """
    with ShardWriter(path, record_type, metadata, extras) as shard:
        for record in records:
            shard.append(record)


class ShardWriter:
    """A shard that is written row group by row group, and appears when the ``with`` block ends without an exception.

    StorageError where it cannot be written.

    Args:
        path: file to write; its folder is created.
        record_type: decides the schema.
        metadata: key-value pairs of the file; schema version and kind are added here.
        extras: which of ``records.EXTRAS`` the rows have.

    Attributes:
        aside: on local disk, what is written until then.
        metadata: may get further keys until the block ends; those stand in the file's metadata alone, not in its Arrow
            schema.
        rows: so far.
        bytes: of the pictures so far, as they are encoded.
        file_bytes, file_sha256: size and hash of the whole file, when the block has ended.
    """

    def __init__(
        self, path: Place, record_type: type, metadata: Mapping[str, str] | None = None, extras: Collection[str] = ()
    ) -> None:
        first = {VERSION_KEY: SCHEMA_VERSION, KIND_KEY: KIND[record_type], **(metadata or {})}
        self.path, self.metadata, self._schema = path, dict(first), schema_of(record_type, extras).with_metadata(first)
        self._digest = hashlib.sha256()
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self.rows = self.bytes = 0

    def __enter__(self) -> ShardWriter:
        """Begin the file beside its place."""
        self._replacing = replacing(self.path)
        with storage_errors(self.path):
            self.aside = self._replacing.__enter__()
            self._file = pq.ParquetWriter(self.aside, self._schema, compression="zstd", write_page_checksum=True)
        return self

    def append(self, record: Record) -> None:
        """Add a row."""
        image = getattr(record, "image", None)
        size = len(image.bytes) if image is not None and image.bytes is not None else 0
        self._group.append(to_row(record))
        self.rows, self.bytes, self._group_bytes = self.rows + 1, self.bytes + size, self._group_bytes + size
        if len(self._group) == ROW_GROUP_ROWS or self._group_bytes >= ROW_GROUP_BYTES:
            self._write_group()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Put the file in its place, or remove it after an exception."""
        if kind is not None:
            with suppress(OSError):  # what ended the block is what is told
                self._file.close()
            self._replacing.__exit__(kind, error, trace)
            return
        with storage_errors(self.path), ExitStack() as stack:
            stack.push(self._replacing)
            with self._file:
                self._write_group()
                first = _decode_metadata(self._schema.metadata)
                metadata = {**self.metadata, ROWS_SHA256_KEY: self._digest.hexdigest()}
                self._file.add_key_value_metadata({k: v for k, v in metadata.items() if k not in first})
            self.file_bytes, self.file_sha256 = self.aside.stat().st_size, file_sha256(self.aside)

    def _write_group(self) -> None:
        if self._group:
            table = pa.Table.from_pylist(self._group, schema=self._schema)
            for batch in table.to_batches():
                self._digest.update(batch.serialize())
            with storage_errors(self.path):
                self._file.write_table(table)
        self._group, self._group_bytes = [], 0


def keep_rows(path: Place, rows: Sequence[int], metadata: Mapping[str, str]) -> None:
    """Write a shard again with some of its rows, in their order, and further metadata.

    Raises:
        ShardError: the file is missing or broken.
    """
    before = {key: value for key, value in read_metadata(path).items() if key not in (ROWS_SHA256_KEY, VERSION_KEY)}
    record_type = next(known for known, kind in KIND.items() if kind == before.get(KIND_KEY))
    records = read_shard(path, record_type)
    extras = extras_of(read_end(path)[0].schema.to_arrow_schema())
    write_shard(path, (records[row] for row in rows), record_type, {**before, **metadata}, extras)


def read_table(path: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard, or some of its columns; one from before ``records.ADDED_COLUMNS`` comes without them.

    Raises:
        ShardError: the file is missing or broken, lacks a column, or has one that is not as its kind of records has it.
    """
    with shard_errors(path):
        # Every page carries a checksum: a flipped bit is an error and never a slightly different caption.
        file = pq.ParquetFile(read_source(path), page_checksum_verification=True)
        kind = _decode_metadata(file.metadata.metadata).get(KIND_KEY)
        check_columns(path, kind, file.schema_arrow, columns)
        refuse_bombs(file.metadata)
        names = file.schema_arrow.names
        table = file.read(columns=None if columns is None else [column for column in columns if column in names])
        table.validate(full=True)
        return table


def read_shard(path: Place, record_type: type[R]) -> list[R]:
    """Read all records of a shard.

    Raises:
        ShardError: the file is missing or broken, or holds another kind or version of records.
    """
    metadata = read_metadata(path)
    kind, version = metadata.get(KIND_KEY), metadata.get(VERSION_KEY)
    if kind != KIND[record_type]:
        raise ShardError(
            f"{path}: holds {kind or 'no'} records, expected {KIND[record_type]} records; name a folder of those"
        )
    if version not in READABLE_VERSIONS:
        expected = " or ".join(map(repr, READABLE_VERSIONS))
        raise ShardError(f"{path}: {VERSION_KEY} is {version!r}, expected {expected}; write the shard anew")
    table = read_table(path, schema_of(record_type, EXTRAS).names)
    return [from_row(record_type, row) for row in table.to_pylist()]


def read_annotations(path: Place, record_type: type[R]) -> list[R]:
    """Read all records of a shard without their pictures, which are most of it; ShardError as ``read_shard``."""
    table = read_table(path, [name for name in schema_of(record_type, EXTRAS).names if name != "image"])
    return [from_row(record_type, {**row, "image": {}}) for row in table.to_pylist()]


def read_end(path: Place) -> tuple[pq.FileMetaData, dict[str, str]]:
    """Return what stands at the end of a shard, and its key-value metadata; ShardError when it is missing or broken."""

    def read() -> pq.FileMetaData:
        with path.open("rb") as file:
            return pq.read_metadata(file)

    with shard_errors(path):
        end = patiently(read, path)
        refuse_bombs(end)
        return end, _decode_metadata(end.metadata)


def read_metadata(path: Place) -> dict[str, str]:
    """Return the key-value metadata of a shard; as ``read_end``."""
    return read_end(path)[1]


def holds_detections(path: Place) -> bool:
    """Tell whether a shard holds detection records; as ``read_end``."""
    return read_metadata(path).get(KIND_KEY) == KIND[DetectionRecord]


def read_fingerprint(path: Place) -> str | None:
    """Return the fingerprint in a shard's provenance; None where it has none.

    Raises:
        ShardError: the shard is missing or broken.
    """
    try:
        provenance = json.loads(read_metadata(path).get(PROVENANCE_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise ShardError(f"{path}: {PROVENANCE_KEY} is no JSON ({error}); delete it and run: dvc repro") from error
    return provenance.get(FINGERPRINT) if isinstance(provenance, dict) else None


def rows_sha256(path: Place) -> str:
    """Return a hash over the rows of a shard: the one in its metadata, or that of all its bytes where it has none.

    Raises:
        ShardError: it is missing or broken.
    """
    found = read_metadata(path).get(ROWS_SHA256_KEY)
    with shard_errors(path):
        return found or patiently(lambda: file_sha256(path), path)


def categories_to_metadata(categories: Iterable[Category]) -> dict[str, str]:
    """Return the metadata that carries a detection vocabulary."""
    return {CATEGORIES_KEY: json.dumps([dataclasses.asdict(category) for category in categories], ensure_ascii=False)}


def read_categories(path: Place) -> list[Category]:
    """Return the vocabulary of a detection shard; ShardError when it carries none."""
    raw = read_metadata(path).get(CATEGORIES_KEY)
    if raw is None:
        raise ShardError(f"{path}: no vocabulary ({CATEGORIES_KEY}) in its metadata; is it a detection shard?")
    try:
        return [Category(**entry) for entry in json.loads(raw)]
    except (json.JSONDecodeError, TypeError) as error:
        raise ShardError(f"{path}: {CATEGORIES_KEY} is no vocabulary ({error}); write the shard anew") from error


def read_repeat(path: Place) -> int:
    """Return how often the rows of a shard come in one pass of training, as ``repeat_of`` does."""
    return repeat_of(read_metadata(path), path)


def repeat_of(metadata: Mapping[str, str], path: Place) -> int:
    """Return how often the rows of a shard with this metadata come in one pass of training; 1 where nobody said.

    Raises:
        ShardError: it says nothing like it.
    """
    said = metadata.get(REPEAT_KEY, "1")
    if not (said.isascii() and said.isdecimal() and 1 <= int(said[:9]) <= MOST_REPEATS):
        raise ShardError(
            f"{path}: {REPEAT_KEY} is {said[:40]!r}, expected a whole number from 1 to {MOST_REPEATS:,}; write the "
            "shard anew"
        )
    return int(said)


@contextmanager
def shard_errors(path: Place) -> Iterator[None]:
    """Turn what Arrow raises about a file into ShardErrors, and that it may not be read into StorageErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise ShardError(f"{path}: no such shard; run: dvc repro") from error
    except PermissionError as error:
        raise StorageError(
            f"{path}: may not be read ({describe(error, str(path))}); mend the access, then run the same command again"
        ) from error
    except (pa.ArrowException, *READ_ERRORS) as error:
        raise ShardError(
            f"{path}: not a readable Parquet file ({describe(error, str(path))}); delete it and run: dvc repro"
        ) from error


def check_columns(path: Place, kind: str | None, found: pa.Schema, columns: Sequence[str] | None) -> None:
    """See that a shard has the columns, each of the type that its kind of records has; ShardError otherwise."""
    record_type = next((record_type for record_type, name in KIND.items() if name == kind), None)
    promised = pa.schema([]) if record_type is None else schema_of(record_type, EXTRAS)
    for column in found.names if columns is None else columns:
        if column not in found.names:
            if record_type is not None and column in ADDED_COLUMNS.get(record_type, ()):
                continue
            raise ShardError(f"{path}: no column {column!r} (found: {', '.join(found.names)}); write the shard anew")
        if (times := found.names.count(column)) > 1:
            raise ShardError(f"{path}: {times} columns are called {column!r}; write the shard anew")
        if column not in promised.names:
            continue
        known, expected = (without_extras(each.field(column).type, column) for each in (found, promised))
        if known not in (expected, *OLDER_TYPES.get(column, ())):
            raise ShardError(f"{path}: column {column!r} is {known}, expected {expected}; write the shard anew")


def refuse_bombs(end: pq.FileMetaData) -> None:
    """Raise ArrowInvalid where the end of a Parquet file says that it unpacks to far more than pictures and texts do.

    Nothing is unpacked for it.
    """
    groups = [end.row_group(i) for i in range(end.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    sizes = [(chunk.total_compressed_size, chunk.total_uncompressed_size) for chunk in chunks]
    swollen = sum(unpacked for packed, unpacked in sizes if unpacked > _BOMB_RATIO * packed)
    if swollen > _BOMB_BYTES:
        raise pa.ArrowInvalid(f"columns of {sum(packed for packed, _ in sizes)} bytes would unpack to {swollen}")
    if end.num_rows > max(_BOMB_BYTES, _BOMB_RATIO * sum(packed for packed, _ in sizes)):
        raise pa.ArrowInvalid(f"{end.num_rows} rows cannot be in {sum(packed for packed, _ in sizes)} bytes")


def _decode_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Return key-value metadata as text, without Arrow's own."""
    text = {key: value for key, value in (metadata or {}).items() if key != b"ARROW:schema"}
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in text.items()}
