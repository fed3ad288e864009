"""Shards read a row group at a time: an index of where rows stand, from the files' ends, and a few groups in memory."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.store.dataset import arrow_filesystem
from pipeline.store.shards import (
    KIND_KEY,
    ROWS_SHA256_KEY,
    check_columns,
    read_end,
    repeat_of,
    rows_sha256,
    shard_errors,
)
from pipeline.store.storage import Place, patiently, side_by_side

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_OPEN_SHARDS = 16
"""Files kept open at most; each lane of training reads one or two at a time."""


@dataclass(frozen=True)
class _End:
    """What the end of a shard tells."""

    group_rows: tuple[int, ...]
    metadata: Mapping[str, str]
    digest: str


class RowGroups:
    """The row groups of shards, repeated as the shards say, in the order of the shards.

    Args:
        shards: of one folder.
        columns: to read.
        is_repeated: False takes every row once, whatever the shards say.

    Raises:
        ShardError: a shard is missing or broken, or lacks a column.

    Attributes:
        rows: per group, its number of rows.
        shard_of: per group, the number of its shard; a repeat counts as a shard of its own.
        first_rows: per group, the number of its first row.
        first_alike: per group, the first one with the same rows: another one for a repeat.
    """

    def __init__(self, shards: Sequence[Place], columns: Sequence[str], is_repeated: bool = True) -> None:
        self.shards, self._columns = list(shards), tuple(columns)
        self._filesystem, self._paths = arrow_filesystem(self.shards)
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        ends = side_by_side(self._read_end, self.shards)
        repeats = [
            repeat_of(end.metadata, shard) if is_repeated else 1 for end, shard in zip(ends, self.shards, strict=True)
        ]
        repeated = [(i, ends[i]) for i, repeat in enumerate(repeats) for _ in range(repeat)]
        self.rows: NDArray[np.int64] = np.array([n for _, end in repeated for n in end.group_rows], dtype=np.int64)
        self.shard_of = np.repeat(np.arange(len(repeated)), [len(end.group_rows) for _, end in repeated])
        self._file_of = np.repeat([i for i, _ in repeated], [len(end.group_rows) for _, end in repeated])
        self._group_in_file: NDArray[np.int64] = np.array(
            [group for _, end in repeated for group in range(len(end.group_rows))], dtype=np.int64
        )
        self._count()
        self.digest = hashlib.sha256(
            "\n".join(f"{end.digest} {repeat}" for end, repeat in zip(ends, repeats, strict=True)).encode()
        ).hexdigest()
        """Of all rows."""

    def _count(self) -> None:
        """Say where rows begin and which groups are alike."""
        self.first_rows = np.cumsum(self.rows) - self.rows
        seen: dict[tuple[int, int], int] = {}
        places = zip(self._file_of.tolist(), self._group_in_file.tolist(), strict=True)
        self.first_alike = [seen.setdefault(place, group) for group, place in enumerate(places)]

    def __len__(self) -> int:
        """Count the groups."""
        return len(self.rows)

    def only(self, wanted: NDArray[np.bool_]) -> RowGroups:
        """Return some of the groups, whose rows then follow one another; the digest stays that of all."""
        some = copy.copy(self)
        some._open = OrderedDict()
        for name in ("rows", "shard_of", "_file_of", "_group_in_file"):
            setattr(some, name, getattr(self, name)[wanted])
        some._count()
        return some

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files to this process."""
        return {**self.__dict__, "_open": OrderedDict()}

    def locate(self, row: int) -> tuple[int, int]:
        """Return the group of a row and its place there."""
        group = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return group, row - int(self.first_rows[group])

    def shard(self, group: int) -> Place:
        """Return the shard of a group."""
        return self.shards[int(self._file_of[group])]

    def read(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a group, of some of the columns if they are named; ShardError where it is broken."""
        number, place = int(self._file_of[group]), self.shard(group)
        wanted = self._columns if columns is None else columns
        with shard_errors(place):
            return patiently(lambda: self._read(number, int(self._group_in_file[group]), wanted), place)

    def _read(self, number: int, group: int, columns: Sequence[str]) -> pa.Table:
        if number not in self._open:
            # Every page carries a checksum, as in shards.read_table.
            self._open[number] = pq.ParquetFile(
                self._filesystem.open_input_file(self._paths[number]), page_checksum_verification=True
            )
        file = self._open[number]
        self._open.move_to_end(number)
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)[1].close(force=True)
        names = file.schema_arrow.names
        try:
            table = file.read_row_group(group, [name for name in columns if name in names], use_threads=False)
        except Exception:
            with suppress(OSError):  # a connection that broke is opened anew when it is asked again
                self._open.pop(number).close(force=True)
            raise
        table.validate(full=True)
        return table

    def _read_end(self, shard: Place) -> _End:
        footer, metadata = read_end(shard)
        with shard_errors(shard):
            schema = footer.schema.to_arrow_schema()
        check_columns(shard, metadata.get(KIND_KEY), schema, self._columns)
        group_rows = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        digest = metadata.get(ROWS_SHA256_KEY) or rows_sha256(shard)
        return _End(group_rows, metadata, digest)


class Recent(Generic[K, V]):
    """A cache of ``make(key)``. When it is full, the least recently used value is dropped.

    Args:
        make: computes a value that is not in the cache.
        size: most values in the cache.
    """

    def __init__(self, make: Callable[[K], V], size: int) -> None:
        self._make, self.size = make, size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of values in the cache."""
        return len(self._kept)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: a copy in another process starts with an empty cache."""
        return {**self.__dict__, "_kept": OrderedDict()}

    def __getitem__(self, key: K) -> V:
        """Return the value of a key."""
        if key not in self._kept:
            while len(self._kept) >= self.size:
                self._kept.popitem(last=False)
            self._kept[key] = self._make(key)
        self._kept.move_to_end(key)
        return self._kept[key]
