"""``prepare`` over Ray: every part of a raw data set is one task, which writes one shard or several."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from pipeline.cli import progress, write_json
from pipeline.errors import PipelineError, RejectLimitError, ShardError
from pipeline.prepare.held_out import HeldOut, Sighting
from pipeline.prepare.raw import DroppedBox, Part, RawTable, Reject
from pipeline.prepare.settings import PrepareConfig
from pipeline.prepare.sources import Role, Source, open_sources
from pipeline.prepare.validation import MIN_BOX_SIDE, Rules, to_records
from pipeline.store.provenance import FINGERPRINT, code_sha256, file_sha256, fingerprint
from pipeline.store.records import SCHEMA_VERSION, CaptionRecord, DetectionRecord, GroundingRecord, Record
from pipeline.store.shards import (
    KIND,
    PROVENANCE_KEY,
    REPEAT_KEY,
    ShardWriter,
    categories_to_metadata,
    keep_rows,
    read_metadata,
    read_table,
    shard_name,
)

logger = logging.getLogger(__name__)

EXAMPLES_SHOWN = 3
"""Names of rejected rows that a message gives per reason."""
FOLDERS = ("human/detection", "human/grounding", "web", "dev", "test")
"""Made even when no source fills them: later stages depend on them by name."""
MANIFEST_FILE = "manifest.json"
RECEIPT_KEY = "glip.prepare"
"""In the metadata of a part's last shard: what became of its rows. It appears with the shard, so a part is finished
exactly when its receipt is there."""
DUPLICATES_KEY = "glip.duplicates"
"""In a shard's metadata: how many of its rows were taken away because earlier rows have their keys."""
_KINDS = {CaptionRecord: "", DetectionRecord: "detection", GroundingRecord: "grounding"}
_SHOWN_IN_TRAINING = ("human", "web")
_JUDGED_BY = ("dev", "test", "held_out")


@dataclass
class PartResult:
    """What became of the raw rows of a part."""

    rows: int = 0
    boxes: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    dropped_boxes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason to the names of the first rows rejected for it."""
    files: list[str] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    """Of the pictures, in data that models are judged by."""

    def reject(self, name: str, reason: str) -> None:
        """Count a rejected row."""
        self.rejects[reason] += 1
        if len(self.examples.setdefault(reason, [])) < EXAMPLES_SHOWN:
            self.examples[reason].append(name)

    def add(self, other: PartResult) -> None:
        """Add the figures of another part."""
        self.rows, self.boxes = self.rows + other.rows, self.boxes + other.boxes
        self.rejects.update(other.rejects)
        self.dropped_boxes.update(other.dropped_boxes)
        for reason, names in other.examples.items():
            known = self.examples.setdefault(reason, [])
            known += names[: EXAMPLES_SHOWN - len(known)]
        self.files += other.files
        self.sightings += other.sightings

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps({**vars(self), "sightings": [asdict(seen) for seen in self.sightings]}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> PartResult:
        """Read what ``to_json`` wrote."""
        values = json.loads(text)
        sightings = [Sighting(**seen) for seen in values.pop("sightings")]
        rejects, dropped = Counter(values.pop("rejects")), Counter(values.pop("dropped_boxes"))
        return cls(**values, rejects=rejects, dropped_boxes=dropped, sightings=sightings)


@dataclass(frozen=True)
class PartTask:
    """One part to write."""

    folder: Path | None
    """Of the shards; None only looks at the pictures."""
    number: int
    part: Part
    record_type: type
    rules: Rules
    metadata: Mapping[str, str]
    rows_per_shard: int
    shard_bytes: int
    keeps_sightings: bool


@dataclass(frozen=True)
class _ShardFigures:
    """What the manifest says of a shard, and hashes of its keys: eight bytes a row compare millions on the driver."""

    name: str
    rows: int
    bytes: int
    sha256: str
    duplicates: int
    key_hashes: NDArray[np.uint64]


def prepare(config: PrepareConfig, seed: int, out: Path) -> dict[str, Any]:
    """Write the records of all roles below ``out``; Ray must be running.

    Data that models are judged by comes first, so that none of its pictures gets into training. Parts that an earlier
    run finished, with the same files, settings and code, are kept. A row whose key an earlier row of its folder has is
    rejected as ``duplicate_key``.

    Returns:
        Metrics: rows, boxes, rejects and dropped boxes by reason, of every folder.

    Raises:
        ConfigError: a source's settings are wrong.
        MissingInputError: a raw file is not there.
        RejectLimitError: a folder has a larger share of rejects than ``max_reject_share``.
    """
    sources = {role: open_sources(role, config, seed) for role in get_args(Role)}
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True, exist_ok=True)
    code = code_sha256(Path(__file__).parent.rglob("*.py"))
    sightings: list[Sighting] = []
    held_out = None
    metrics: dict[str, Any] = {}
    num_kept = 0
    totals = [t.num_rows for group in sources.values() for source in group for t in source.tables]
    # Of some formats nobody knows the number of rows before they are read: the bar counts without an end then.
    with progress(None if None in totals else sum(filter(None, totals)), "prepare", "rows") as bar:
        for role in (*_JUDGED_BY, *_SHOWN_IN_TRAINING):
            if role == _SHOWN_IN_TRAINING[0] and sightings:
                held_out = HeldOut(sightings)
            tables: dict[str, list[tuple[Source, RawTable]]] = {}
            for source in sources[role]:
                for table in source.tables:
                    kind = _KINDS[table.record_type] if role != "web" else ""
                    tables.setdefault(f"{role}/{table.folder or kind}".rstrip("/"), []).append((source, table))
            for folder, group in tables.items():
                shards = _Folder(folder, None if role == "held_out" else out, config, code, held_out)
                result = shards.run(group, bar)
                num_kept += shards.num_kept
                sightings += result.sightings
                if role != "held_out":
                    metrics[folder] = _metrics(result)
            _remove_leftovers(out / role, {out / folder for folder in tables})
    if num_kept:
        logger.info("prepare: %d parts were finished already", num_kept)
    return metrics


def write_part(task: PartTask, held_out: HeldOut | None) -> PartResult:
    """Read a part, check its rows and write its shards; the last of them carries the receipt."""
    result = PartResult()
    rules = replace(task.rules, held_out=held_out)
    sightings = result.sightings if task.keeps_sightings else None
    records = _count(to_records(task.part.rows(), rules, sightings), result)
    if task.folder is None:
        for _ in records:
            pass
        return result
    pending = next(records, None)
    while True:
        path = task.folder / shard_name(task.number, len(result.files))
        with ShardWriter(path, task.record_type, task.metadata) as shard:
            while pending is not None and shard.rows < task.rows_per_shard and shard.bytes < task.shard_bytes:
                shard.append(pending)
                pending = next(records, None)
            result.files.append(path.name)
            if pending is None:
                shard.metadata[RECEIPT_KEY] = result.to_json()
        if pending is None:
            return result


def finished(task: PartTask) -> PartResult | None:
    """Return what an earlier run made of a part, if all of its shards are there and depend on the same things."""
    assert task.folder is not None
    first = task.folder / shard_name(task.number)
    last = max(task.folder.glob(f"{first.stem}_*.parquet"), default=first)
    try:
        metadata = read_metadata(last)
    except ShardError:
        return None
    if RECEIPT_KEY not in metadata or metadata.get(PROVENANCE_KEY) != task.metadata[PROVENANCE_KEY]:
        return None
    result = PartResult.from_json(metadata[RECEIPT_KEY])
    return result if all((task.folder / name).is_file() for name in result.files) else None


def look_at_shard(path: Path) -> _ShardFigures:
    """Count a finished shard's rows and hash its keys and its bytes."""
    keys = read_table(path, ["key"])["key"].to_pylist()
    hashes = np.array([_hash(key) for key in keys], np.uint64)
    duplicates = int(read_metadata(path).get(DUPLICATES_KEY, "0"))
    return _ShardFigures(path.name, len(keys), path.stat().st_size, file_sha256(path), duplicates, hashes)


def find_duplicates(key_hashes: list[NDArray[np.uint64]]) -> dict[int, list[int]]:
    """Find the rows whose keys earlier rows have.

    Args:
        key_hashes: per shard its rows' hashes, in order.

    Returns:
        Shard number to row numbers, for the shards that have any.
    """
    if not key_hashes:
        return {}
    whole = np.concatenate(key_hashes)
    is_again = np.ones(len(whole), dtype=bool)
    is_again[np.unique(whole, return_index=True)[1]] = False
    ends = np.cumsum([len(hashes) for hashes in key_hashes])
    found: dict[int, list[int]] = {}
    for row in np.flatnonzero(is_again):
        number = int(np.searchsorted(ends, row, side="right"))
        found.setdefault(number, []).append(int(row - ends[number] + len(key_hashes[number])))
    return found


def drop_rows(path: Path, rows: list[int]) -> _ShardFigures:
    """Write a finished shard again without some of its rows, and say in it how many they were."""
    figures = look_at_shard(path)
    away = set(rows)
    metadata = {DUPLICATES_KEY: str(figures.duplicates + len(away))}
    keep_rows(path, [i for i in range(figures.rows) if i not in away], metadata)
    return look_at_shard(path)


class _Folder:
    """The shards of one folder, from planning to the manifest."""

    def __init__(self, name: str, out: Path | None, config: PrepareConfig, code: str, held_out: HeldOut | None) -> None:
        self._name, self._path = name, None if out is None else out / name
        self._config, self._code, self._held_out = config, code, held_out
        self._record_type: type = DetectionRecord
        self.num_kept = 0
        """Parts that an earlier run had finished."""

    def run(self, tables: list[tuple[Source, RawTable]], bar: Any) -> PartResult:
        """Write all parts that are not finished; return what became of all rows.

        Raises:
            RejectLimitError: too large a share was rejected.
        """
        self._record_type = tables[0][1].record_type
        num_rows = [table.num_rows for _, table in tables]
        known = None if None in num_rows else sum(filter(None, num_rows))
        results: dict[int, PartResult] = {}
        whole = PartResult()
        for number, result, num_raw in self._results(tables):
            results[number] = result
            whole.add(result)
            bar.update(num_raw if num_raw is not None else result.rows + result.rejects.total())
            if known:  # no need to read on when nothing that follows can mend it
                self._check_limit(whole, known)
        ordered = PartResult()
        for number in sorted(results):
            ordered.add(results[number])
        if self._path is not None:
            self._finish(ordered, tables)
        self._check_limit(ordered, ordered.rows + ordered.rejects.total())
        return ordered

    def _results(self, tables: list[tuple[Source, RawTable]]) -> Iterator[tuple[int, PartResult, int | None]]:
        """Yield number, result and raw rows of every part, as they finish; few of them are on their way at a time."""
        write = ray.remote(num_cpus=1)(write_part)
        held_out = ray.put(self._held_out)
        most = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        pending: dict[Any, PartTask] = {}
        for task in self._plan(tables):
            earlier = finished(task) if task.folder is not None else None
            if earlier is not None:
                self.num_kept += 1
                yield task.number, earlier, task.part.num_rows
                continue
            if self._path is not None:
                for path in self._path.glob(f"part-{task.number:05d}*.parquet"):
                    path.unlink()  # of another part, or of half of this one
            pending[write.remote(task, held_out)] = task
            while len(pending) >= most:
                yield from _next_results(pending)
        while pending:
            yield from _next_results(pending)

    def _plan(self, tables: list[tuple[Source, RawTable]]) -> Iterator[PartTask]:
        number = 0
        config, judged = self._config, self._name.split("/")[0] in _JUDGED_BY
        for source, table in tables:
            rules = Rules(
                source=source.name,
                pictures=config.pictures,
                max_pixels=config.max_image_pixels,
                categories=frozenset(category.id for category in table.categories),
                min_box_side=0.0 if judged else MIN_BOX_SIDE,
            )
            metadata = categories_to_metadata(table.categories) if table.record_type is DetectionRecord else {}
            for part in table.parts(config.rows_per_shard):
                depends_on = {
                    "part": part.identity,
                    "repeat": source.repeat,
                    "rules": [rules.source, rules.pictures, rules.max_pixels, metadata],
                    "shards": [config.rows_per_shard, config.shard_mb, SCHEMA_VERSION, KIND[table.record_type]],
                    "held_out": self._held_out.digest() if self._held_out else None,
                    "code": self._code,
                }
                provenance = {
                    "source": source.name,
                    "settings": source.description,
                    "part": part.name,
                    FINGERPRINT: fingerprint(depends_on),
                }
                yield PartTask(
                    folder=self._path,
                    number=number,
                    part=part,
                    record_type=table.record_type,
                    rules=rules,
                    metadata={
                        **metadata,
                        REPEAT_KEY: str(source.repeat),
                        PROVENANCE_KEY: json.dumps(provenance, ensure_ascii=False),
                    },
                    rows_per_shard=config.rows_per_shard,
                    shard_bytes=config.shard_mb * 10**6,
                    keeps_sightings=judged,
                )
                number += 1

    def _finish(self, result: PartResult, tables: list[tuple[Source, RawTable]]) -> None:
        """Remove shards of earlier runs and rows that come again, and write the manifest."""
        assert self._path is not None
        for path in self._path.glob("part-*.parquet"):
            if path.name not in set(result.files):
                path.unlink()
        look, drop = ray.remote(num_cpus=1)(look_at_shard), ray.remote(num_cpus=1)(drop_rows)
        paths = [self._path / name for name in result.files]
        figures: list[_ShardFigures] = ray.get([look.remote(path) for path in paths])
        again = find_duplicates([shard.key_hashes for shard in figures])
        for number, shard in zip(
            again, ray.get([drop.remote(paths[n], rows) for n, rows in again.items()]), strict=True
        ):
            figures[number] = shard
        if sum(shard.duplicates for shard in figures):
            result.rejects["duplicate_key"] += sum(shard.duplicates for shard in figures)
            result.rows = sum(shard.rows for shard in figures)
            result.boxes = sum(count_boxes(path, self._record_type) for path in paths)
        write_json(
            self._path / MANIFEST_FILE,
            {
                "schema_version": SCHEMA_VERSION,
                "kind": KIND[self._record_type],
                "sources": {source.name: source.description for source, _ in tables},
                "rows": result.rows,
                "boxes": result.boxes,
                "bytes": sum(shard.bytes for shard in figures),
                "shards": [
                    {"name": shard.name, "rows": shard.rows, "bytes": shard.bytes, "sha256": shard.sha256}
                    for shard in figures
                ],
            },
        )

    def _check_limit(self, result: PartResult, total: int) -> None:
        rejected = result.rejects.total() - result.rejects["held_out"]
        if rejected > self._config.max_reject_share * total:
            raise RejectLimitError(_reject_summary(self._name, total, result, self._config.max_reject_share))


def _next_results(pending: dict[Any, PartTask]) -> Iterator[tuple[int, PartResult, int | None]]:
    done, _ = ray.wait(list(pending))
    for ref in done:
        task = pending.pop(ref)
        try:
            result: PartResult = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from None
            raise
        yield task.number, result, task.part.num_rows


def _count(rows: Iterator[Record | Reject | DroppedBox], result: PartResult) -> Iterator[Record]:
    for row in rows:
        if isinstance(row, Reject):
            result.reject(row.name, row.reason)
        elif isinstance(row, DroppedBox):
            result.dropped_boxes[row.reason] += 1
        else:
            result.rows += 1
            if isinstance(row, DetectionRecord):
                result.boxes += len(row.objects)
            elif isinstance(row, GroundingRecord):
                result.boxes += sum(len(phrase.boxes) for phrase in row.phrases)
            yield row


def count_boxes(path: Path, record_type: type) -> int:
    """Count the boxes of a shard, without its pictures."""
    if record_type is CaptionRecord:
        return 0
    if record_type is DetectionRecord:
        return len(pc.list_flatten(read_table(path, ["objects"])["objects"]))
    phrases = pc.list_flatten(read_table(path, ["phrases"])["phrases"])
    return len(pc.list_flatten(pc.struct_field(phrases, "boxes")))


def _remove_leftovers(role: Path, written: set[Path]) -> None:
    """Remove what an earlier run wrote for sources that are no more; folders that later stages name stay."""
    kept = {*written, *(role.parent / folder for folder in FOLDERS)}
    for path in sorted(role.rglob("*"), reverse=True):  # what is inside of a folder before the folder
        if path.is_file() and path.parent not in written:
            path.unlink()
        elif path.is_dir() and path not in kept:
            path.rmdir()


def _metrics(result: PartResult) -> dict[str, Any]:
    return {
        "rows": result.rows,
        "boxes": result.boxes,
        "rejects": dict(result.rejects),
        "dropped_boxes": dict(result.dropped_boxes),
    }


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _reject_summary(folder: str, total: int, result: PartResult, limit: float) -> str:
    rejects = {reason: count for reason, count in result.rejects.items() if reason != "held_out"}
    lines = [
        f"  {reason}: {count}"
        + (f", for example {', '.join(result.examples[reason])}" if reason in result.examples else "")
        for reason, count in sorted(rejects.items())
    ]
    return (
        f"{folder}: {sum(rejects.values())} of {total} rows rejected, more than prepare.max_reject_share = {limit}:\n"
        + "\n".join(lines)
        + "\nmend the data or raise the limit, then run: dvc repro prepare"
    )
