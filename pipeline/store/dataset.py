"""Shards as one table that is read lazily, for queries over all of them: by Arrow, DuckDB, pandas or Polars."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs

from pipeline.errors import ShardError
from pipeline.store.read_errors import READ_ERRORS, describe
from pipeline.store.shards import list_shards, read_end
from pipeline.store.storage import Place, exists, side_by_side


def open_dataset(place: Place) -> pyarrow.dataset.Dataset:
    """Return the shards of a folder, or one that is named itself, as a dataset; no row is read yet.

    Raises:
        MissingInputError: there are no shards.
        ShardError: one is broken, or unpacks to far more than it is.
    """
    shards = [place] if exists(place) else list_shards(place)
    side_by_side(read_end, shards)
    filesystem, paths = arrow_filesystem(shards)
    try:
        return pyarrow.dataset.dataset(paths, format=_checked_parquet(), filesystem=filesystem)
    except (pa.ArrowException, *READ_ERRORS) as error:
        raise ShardError(f"{shards[0]}: not a readable shard ({describe(error, str(place))})") from error


@contextmanager
def connect(is_locked: bool = True, /, **tables: Any) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory DuckDB that sees datasets as tables, for the length of a ``with`` block.

    Args:
        is_locked: it sees nothing else: no files, no other databases, no extensions, no variables of the program.
        tables: by name.

    Raises:
        ShardError: inside of the block, a shard turned out to be broken.
    """
    with tempfile.TemporaryDirectory(prefix="glip-duckdb-") as spill, duckdb.connect(":memory:") as connection:
        connection.execute("SET temp_directory = ?", [spill])  # and not the folder that the user stands in
        for name, table in tables.items():
            connection.register(name, table)
        if is_locked:
            connection.execute("SET python_enable_replacements = false; SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        try:
            yield connection
        except duckdb.Error as error:
            raise ShardError(f"the shards cannot be read ({error}); write the broken one anew") from error


def _checked_parquet() -> pyarrow.dataset.ParquetFileFormat:
    """Return the format that compares every page with its checksum."""
    options = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    return pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=options)


def arrow_filesystem(shards: list[Any]) -> tuple[pyarrow.fs.FileSystem, list[str]]:
    """Return Arrow's file system for shards of one folder, and their paths in it."""
    first = shards[0]
    if isinstance(first, Path):
        return pyarrow.fs.LocalFileSystem(), [str(path) for path in shards]
    paths = [path.path for path in shards]
    if first.protocol in ("s3", "s3a"):
        # Arrow's own: s3fs called from Arrow's threads can abort the interpreter at its end.
        return pyarrow.fs.S3FileSystem(**_s3_settings(first)), paths
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(first.fs)), paths


def _s3_settings(place: Any) -> dict[str, Any]:
    """Say to Arrow where the store is; s3fs finds the address itself in these places, Arrow in none of them."""
    options = place.fs.client_kwargs
    endpoint = options.get("endpoint_url") or place.fs.endpoint_url
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"endpoint_override": endpoint} if endpoint else {}
