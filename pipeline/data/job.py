"""``prepare`` over Ray: every shard is one task."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import ray

from pipeline.cli import progress
from pipeline.config import PrepareConfig
from pipeline.data.records import DetectionRecord, GroundingRecord, Record
from pipeline.data.shards import shard_name, write_shard
from pipeline.data.sources import Role, read_source
from pipeline.data.tables import RecordTable, Reject
from pipeline.errors import RejectLimitError

logger = logging.getLogger(__name__)

EXAMPLES_SHOWN = 3
"""Names of rejected rows that a message gives per reason."""


@dataclass(frozen=True)
class _Task:
    """One shard to write: raw rows ``start`` to ``stop`` of a table."""

    path: Path
    table: RecordTable
    start: int
    stop: int


def prepare(config: PrepareConfig, seed: int, out: Path) -> dict[str, Any]:
    """Write the records of all roles below ``out``; Ray must be running.

    Returns:
        Metrics: rows, boxes and rejects by reason of every folder.

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
    metrics = {}
    total = sum(table.num_rows for group in tables.values() for table in group)
    with progress(total, "prepare", "rows") as bar:
        for folder, group in tables.items():
            tasks = list(_plan(out / folder, group, config.rows_per_shard))
            metrics[folder] = _run(folder, tasks, config.max_reject_share, bar)
    return metrics


def _plan(folder: Path, tables: list[RecordTable], rows_per_shard: int) -> Iterator[_Task]:
    number = 0
    for table in tables:
        for start in range(0, table.num_rows, rows_per_shard):
            stop = min(start + rows_per_shard, table.num_rows)
            yield _Task(folder / shard_name(number), table, start, stop)
            number += 1


def _run(folder: str, tasks: list[_Task], max_reject_share: float, bar: Any) -> dict[str, Any]:
    write = ray.remote(num_cpus=1)(write_records)
    sizes = {write.remote(task): task.stop - task.start for task in tasks}
    pending = list(sizes)
    counts: Counter[str] = Counter()
    rejects: dict[str, list[str]] = {}
    while pending:
        done, pending = ray.wait(pending)
        shard_counts, shard_rejects = ray.get(done[0])
        counts.update(shard_counts)
        for reason, names in shard_rejects.items():
            rejects.setdefault(reason, []).extend(names)
        bar.update(sizes[done[0]])
    num_rejects = sum(map(len, rejects.values()))
    if num_rejects > max_reject_share * (counts["rows"] + num_rejects):
        raise RejectLimitError(_reject_summary(folder, counts["rows"] + num_rejects, rejects, max_reject_share))
    return {**counts, "rejects": {reason: len(names) for reason, names in sorted(rejects.items())}}


def write_records(task: _Task) -> tuple[dict[str, int], Mapping[str, list[str]]]:
    """Write one shard; return its counts and the names of rejected rows by reason."""
    records: list[Record] = []
    rejects: dict[str, list[str]] = {}
    for row in task.table.read(task.start, task.stop):
        if isinstance(row, Reject):
            rejects.setdefault(row.reason, []).append(row.name)
        else:
            records.append(row)
    write_shard(task.path, records, task.table.record_type, task.table.metadata)
    return {"rows": len(records), "boxes": sum(map(_count_boxes, records))}, rejects


def _count_boxes(record: Record) -> int:
    if isinstance(record, DetectionRecord):
        return len(record.objects)
    return sum(len(phrase.boxes) for phrase in record.phrases) if isinstance(record, GroundingRecord) else 0


def _reject_summary(folder: str, total: int, rejects: Mapping[str, list[str]], limit: float) -> str:
    lines = [
        f"  {reason}: {len(names)}, for example {', '.join(names[:EXAMPLES_SHOWN])}"
        for reason, names in sorted(rejects.items())
    ]
    count = sum(map(len, rejects.values()))
    return (
        f"{folder}: {count} of {total} rows rejected, more than prepare.max_reject_share = {limit}:\n"
        + "\n".join(lines)
        + "\nmend the data or raise the limit, then run: dvc repro prepare"
    )
