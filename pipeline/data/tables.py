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
class DroppedBox:
    """A box that cannot be used; its picture stays."""

    name: str
    """What the raw data calls the picture."""
    reason: str
    """One of ``records.BOX_DROP_REASONS``."""


RowReader = Callable[[], Iterator[Record | Reject | DroppedBox]]


@dataclass(frozen=True)
class RecordTable:
    """One folder of shards to be written, and how to read its raw rows."""

    folder: str
    """Below the role's folder: ``detection``, ``grounding``, ``referring``, or nothing."""
    record_type: type
    num_rows: int
    metadata: Mapping[str, str]
    """Key-value metadata of every shard."""
    shard: Callable[[int, int], RowReader]
    """Returns what reads raw rows ``start`` to ``stop``. That is sent to where the shard is written: it must survive
    pickling, and carry what those rows need and not the whole data set."""
