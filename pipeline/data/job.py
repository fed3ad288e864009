"""``prepare`` over Ray: every shard is one task."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import ray
from numpy.typing import NDArray

from pipeline.cli import progress
from pipeline.config import PrepareConfig
from pipeline.data.records import DetectionRecord, GroundingRecord, Record
from pipeline.data.shards import read_shard, shard_name, write_shard
from pipeline.data.sources import Role, read_source
from pipeline.data.tables import DroppedBox, RecordTable, Reject, RowReader
from pipeline.errors import RejectLimitError

logger = logging.getLogger(__name__)

EXAMPLES_SHOWN = 3
"""Names of rejected rows that a message gives per reason."""
FOLDERS = ("human/detection", "human/grounding", "web", "dev", "test")
"""Made even when no source fills them: later stages depend on them by name."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to write."""

    path: Path
    record_type: type
    metadata: Mapping[str, str]
    read: RowReader
    num_rows: int
    """Raw rows that it reads; rejects among them leave it shorter."""


@dataclass
class ShardResult:
    """What became of the raw rows of a shard."""

    rows: int = 0
    boxes: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason to the names of the first rows rejected for it."""
    dropped_boxes: Counter[str] = field(default_factory=Counter)
    key_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Of the rows written, in their order; eight bytes a row make millions of rows comparable on the driver."""

    def reject(self, name: str, reason: str) -> None:
        """Count a rejected row."""
        self.rejects[reason] += 1
        if len(self.examples.setdefault(reason, [])) < EXAMPLES_SHOWN:
            self.examples[reason].append(name)


def prepare(config: PrepareConfig, seed: int, out: Path) -> dict[str, Any]:
    """Write the records of all roles below ``out``; Ray must be running.

    A row whose key an earlier row of its folder has is rejected as ``duplicate_key``.

    Returns:
        Metrics: rows, boxes, rejects and dropped boxes by reason, of every folder.

    Raises:
        ConfigError: a source's settings are wrong.
        MissingInputError: a raw file is not there.
        RejectLimitError: a folder has a larger share of rejects than ``max_reject_share``.
    """
    tables: dict[str, list[RecordTable]] = {}
    for role in get_args(Role):
        for source in getattr(config, role):
            for table in read_source(source, role, config, seed):
                tables.setdefault(f"{role}/{table.folder}".rstrip("/"), []).append(table)
    for role in get_args(Role):
        shutil.rmtree(out / role, ignore_errors=True)
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)
    metrics = {}
    total = sum(table.num_rows for group in tables.values() for table in group)
    with progress(total, "prepare", "rows") as bar:
        for folder, group in tables.items():
            tasks = list(_plan(out / folder, group, config.rows_per_shard))
            metrics[folder] = _run(folder, tasks, config.max_reject_share, bar)
    return metrics


def write_records(task: ShardTask) -> ShardResult:
    """Write one shard."""
    records: list[Record] = []
    result = ShardResult()
    for row in task.read():
        if isinstance(row, Reject):
            result.reject(row.name, row.reason)
        elif isinstance(row, DroppedBox):
            result.dropped_boxes[row.reason] += 1
        else:
            records.append(row)
    write_shard(task.path, records, task.record_type, task.metadata)
    result.rows, result.boxes = len(records), sum(map(_count_boxes, records))
    result.key_hashes = np.array([_hash(record.key) for record in records], np.uint64)
    return result


def find_duplicates(key_hashes: Sequence[NDArray[np.uint64]]) -> dict[int, list[int]]:
    """Return shard number to the rows in it whose key an earlier row of this or an earlier shard has."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *key_hashes])
    _, first = np.unique(hashes, return_index=True)
    is_again = np.ones(len(hashes), bool)
    is_again[first] = False
    ends = np.cumsum([len(shard) for shard in key_hashes])
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero(is_again):
        number = int(np.searchsorted(ends, row, side="right"))
        found.setdefault(number, []).append(int(row - ends[number] + len(key_hashes[number])))
    return found


def drop_rows(task: ShardTask, rows: Sequence[int]) -> ShardResult:
    """Write a finished shard again without some of its rows; return what was taken away, as rejects."""
    records: Sequence[Record] = read_shard(task.path, task.record_type)
    away = [records[row] for row in rows]
    write_shard(task.path, [r for i, r in enumerate(records) if i not in set(rows)], task.record_type, task.metadata)
    result = ShardResult(rows=len(away), boxes=sum(map(_count_boxes, away)))
    for record in away:
        result.reject(record.key, "duplicate_key")
    return result


def _plan(folder: Path, tables: Sequence[RecordTable], rows_per_shard: int) -> Iterator[ShardTask]:
    number = 0
    for table in tables:
        for start in range(0, table.num_rows, rows_per_shard):
            stop = min(start + rows_per_shard, table.num_rows)
            path = folder / shard_name(number)
            yield ShardTask(path, table.record_type, table.metadata, table.shard(start, stop), stop - start)
            number += 1


def _run(folder: str, tasks: Sequence[ShardTask], max_reject_share: float, bar: Any) -> dict[str, Any]:
    write, drop = ray.remote(num_cpus=1)(write_records), ray.remote(num_cpus=1)(drop_rows)
    refs = [write.remote(task) for task in tasks]
    sizes = dict(zip(refs, (task.num_rows for task in tasks), strict=True))
    pending = refs
    while pending:
        done, pending = ray.wait(pending)
        ray.get(done)  # raises what the task raised
        bar.update(sum(sizes[ref] for ref in done))
    results: list[ShardResult] = ray.get(refs)
    again = find_duplicates([result.key_hashes for result in results])
    removed: list[ShardResult] = ray.get([drop.remote(tasks[number], rows) for number, rows in again.items()])

    whole = ShardResult(
        rows=sum(result.rows for result in results) - sum(result.rows for result in removed),
        boxes=sum(result.boxes for result in results) - sum(result.boxes for result in removed),
    )
    for result in [*results, *removed]:
        whole.rejects.update(result.rejects)
        whole.dropped_boxes.update(result.dropped_boxes)
        for reason, names in result.examples.items():
            whole.examples.setdefault(reason, []).extend(names)
    total = whole.rows + whole.rejects.total()
    if whole.rejects.total() > max_reject_share * total:
        raise RejectLimitError(_reject_summary(folder, total, whole, max_reject_share))
    return {
        "rows": whole.rows,
        "boxes": whole.boxes,
        "rejects": dict(whole.rejects),
        "dropped_boxes": dict(whole.dropped_boxes),
    }


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _count_boxes(record: Record) -> int:
    if isinstance(record, DetectionRecord):
        return len(record.objects)
    return sum(len(phrase.boxes) for phrase in record.phrases) if isinstance(record, GroundingRecord) else 0


def _reject_summary(folder: str, total: int, result: ShardResult, limit: float) -> str:
    lines = [
        f"  {reason}: {count}, for example {', '.join(result.examples[reason][:EXAMPLES_SHOWN])}"
        for reason, count in sorted(result.rejects.items())
    ]
    return (
        f"{folder}: {result.rejects.total()} of {total} rows rejected, more than prepare.max_reject_share = {limit}:\n"
        + "\n".join(lines)
        + "\nmend the data or raise the limit, then run: dvc repro prepare"
    )
