"""Parts of raw data sets, written as shards, and the rows that come again in them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ShardError
from pipeline.prepare.held_out import HeldOut, Sighting
from pipeline.prepare.raw import Converted, DroppedBox, Part, Reject
from pipeline.prepare.validation import Rules, to_records
from pipeline.store.image_roots import OUTSIDE
from pipeline.store.provenance import file_sha256
from pipeline.store.records import CaptionRecord, DetectionRecord, GroundingRecord, Record
from pipeline.store.shards import (
    PROVENANCE_KEY,
    ShardWriter,
    keep_rows,
    read_metadata,
    read_table,
    shard_errors,
    shard_name,
)
from pipeline.store.storage import Place, fetched, remove

EXAMPLES_SHOWN = 3
"""Names of rejected rows that a message gives per reason."""
PSEUDO_LABELS = "pseudo_labels"
"""Counted under ``converted``: rows in which a machine drew boxes, as their scores say."""
RECEIPT_KEY = "glip.prepare"
"""In the metadata of a part's last shard: what became of its rows. It appears with the shard, so a part is finished
exactly when its receipt is there."""
DUPLICATES_KEY = "glip.duplicates"
"""In a shard's metadata: how many of its rows were taken away because earlier rows have their keys."""
EARLIER_KEY = "glip.earlier"
"""Beside ``DUPLICATES_KEY``: what the parts with those earlier rows depend on. Where they become others, the rows that
were taken away may be missing."""

ROOTS_KEY = "glip.image_roots"
"""In a shard's metadata: stands for where pictures were allowed to be. Where that changed, a part of which some were
refused for their place is read again."""


@dataclass
class PartResult:
    """What became of the raw rows of a part."""

    rows: int = 0
    boxes: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    dropped_boxes: Counter[str] = field(default_factory=Counter)
    converted: Counter[str] = field(default_factory=Counter)
    """Rows that are used, but not as they stand in the data."""
    licenses: Counter[str] = field(default_factory=Counter)
    """Rows by the licence of their picture, where the data set names one; with those that are dropped later."""
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
        self.converted.update(other.converted)
        self.licenses.update(other.licenses)
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
        counted = {"converted": Counter(values.pop("converted", {})), "licenses": Counter(values.pop("licenses", {}))}
        return cls(**values | counted, rejects=rejects, dropped_boxes=dropped, sightings=sightings)


@dataclass(frozen=True)
class PartTask:
    """One part to write."""

    folder: Place | None
    """Of the shards; None only looks at the pictures."""
    number: int
    part: Part
    record_type: type
    rules: Rules
    metadata: Mapping[str, str]
    rows_per_shard: int
    shard_bytes: int
    keeps_sightings: bool
    there: Sequence[Place] = ()
    """Its shards of an earlier run."""
    earlier: str = ""
    """Hash over what the parts before this one in the folder depend on."""


@dataclass(frozen=True)
class ShardFigures:
    """What the manifest says of a shard, and hashes of its keys: the driver compares millions by eight bytes a row."""

    name: str
    rows: int
    bytes: int
    sha256: str
    duplicates: int
    key_hashes: NDArray[np.uint64]


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
    for path in task.there:
        remove(path)  # of another part, or of half of this one
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
    try:
        ends = [read_metadata(path) for path in task.there]
    except ShardError:
        return None
    metadata = ends[-1] if ends else {}
    if any(DUPLICATES_KEY in end and end.get(EARLIER_KEY) != task.earlier for end in ends):
        return None
    if RECEIPT_KEY not in metadata or metadata.get(PROVENANCE_KEY) != task.metadata[PROVENANCE_KEY]:
        return None
    result = PartResult.from_json(metadata[RECEIPT_KEY])
    if result.rejects[OUTSIDE] and metadata.get(ROOTS_KEY) != task.metadata.get(ROOTS_KEY):
        return None
    return result if result.files == [path.name for path in task.there] else None


def look_at_shard(place: Place) -> ShardFigures:
    """Count a finished shard's rows and hash its keys and its bytes."""
    with shard_errors(place), fetched(place) as path:
        return _look_at(path)


def _look_at(path: Path) -> ShardFigures:
    keys = read_table(path, ["key"])["key"].to_pylist()
    hashes = np.array([_hash(key) for key in keys], np.uint64)
    duplicates = int(read_metadata(path).get(DUPLICATES_KEY, "0"))
    return ShardFigures(path.name, len(keys), path.stat().st_size, file_sha256(path), duplicates, hashes)


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


def drop_rows(path: Place, rows: list[int], earlier: str) -> ShardFigures:
    """Write a finished shard again without some of its rows, and say in it how many, and after which ``earlier``."""
    figures = look_at_shard(path)
    away = set(rows)
    metadata = {DUPLICATES_KEY: str(figures.duplicates + len(away)), EARLIER_KEY: earlier}
    keep_rows(path, [i for i in range(figures.rows) if i not in away], metadata)
    return look_at_shard(path)


def _count(rows: Iterator[Record | Reject | DroppedBox | Converted], result: PartResult) -> Iterator[Record]:
    for row in rows:
        if isinstance(row, Reject):
            result.reject(row.name, row.reason)
        elif isinstance(row, DroppedBox):
            result.dropped_boxes[row.reason] += 1
        elif isinstance(row, Converted):
            result.converted[row.what] += 1
        else:
            result.rows += 1
            license_ = getattr(row, "license", None)
            result.licenses.update([license_] if license_ else [])
            if isinstance(row, DetectionRecord):
                result.boxes += len(row.objects)
            elif isinstance(row, GroundingRecord):
                result.boxes += sum(len(phrase.boxes) for phrase in row.phrases)
                result.converted.update([PSEUDO_LABELS] if row.is_pseudo_label else [])
            yield row


def count_boxes(path: Place, record_type: type) -> int:
    """Count the boxes of a shard, without its pictures."""
    if record_type is CaptionRecord:
        return 0
    if record_type is DetectionRecord:
        return len(pc.list_flatten(read_table(path, ["objects"])["objects"]))
    phrases = pc.list_flatten(read_table(path, ["phrases"])["phrases"])
    return len(pc.list_flatten(pc.struct_field(phrases, "boxes")))


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
