"""What a reader promises ``prepare``: tables of records that are read range by range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.data.records import Record


@dataclass(frozen=True)
class Reject:
    """A raw row that cannot be used."""

    name: str
    """What the raw data calls the row."""
    reason: str
    """One of ``records.ROW_REJECT_REASONS``."""


@dataclass(frozen=True)
class RecordTable:
    """One folder of shards to be written, and how to read its raw rows."""

    folder: str
    """Below the role's folder: ``detection``, ``grounding``, ``referring``, or nothing."""
    record_type: type
    num_rows: int
    metadata: Mapping[str, str]
    """Key-value metadata of every shard."""
    read: Callable[[int, int], Iterator[Record | Reject]]
    """Yields the records and rejects of raw rows ``start`` to ``stop``; must survive pickling."""
