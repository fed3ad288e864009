"""What people decided, put into shards: reviewed rows say so, all others are as they were.

First all decisions find their rows, without a picture being read; then the shards are written whose rows or decisions
have changed since the last time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ShardError
from pipeline.inspection.defects import read_provenance, sound_record
from pipeline.inspection.detections import label_table
from pipeline.inspection.reading import label_shards
from pipeline.inspection.row_identity import row_fingerprint
from pipeline.review import corrections
from pipeline.review.decisions import Decision, DecisionError, Row, Settled, check_places
from pipeline.store.provenance import FINGERPRINT, code_sha256, with_fingerprint
from pipeline.store.records import Category, DetectionRecord, GroundingRecord
from pipeline.store.resume import alone_in, keep_apart, keep_finished, write_manifest_file
from pipeline.store.row_groups import RowGroups
from pipeline.store.rows import from_row
from pipeline.store.shards import (
    KIND_KEY,
    PROVENANCE_KEY,
    ROWS_SHA256_KEY,
    VERSION_KEY,
    ShardWriter,
    categories_to_metadata,
    holds_detections,
    read_categories,
    read_metadata,
    rows_sha256,
)
from pipeline.store.storage import Place, exists

_SEEN = ("key", "height", "width", "source", "caption", "phrases", "reject_reason")
_KEYS_NAMED = 1000
"""Of rows that changed since they were reviewed, in the manifest."""


@dataclass
class _Plan:
    """What becomes of a shard."""

    shard: Place
    decisions: dict[int, Decision] = field(default_factory=dict)
    """By the number of the row."""


@dataclass
class Merged:
    """What came of decisions."""

    rows: int = 0
    reviewed: int = 0
    """Rows that a decision was put into."""
    boxes: Counter[str] = field(default_factory=Counter)
    """What people did to boxes of these rows: accepted, moved, drawn, rejected."""
    absent: int = 0
    """Phrases that are not there, of which training is told."""
    disputed: int = 0
    """Rows of which people said different things: the latest decision counts."""
    changed: list[str] = field(default_factory=list)
    """Keys of rows that have changed since they were reviewed: what was decided of them is left out."""
    unknown: int = 0
    """Decisions about rows that are not in these shards."""
    outside: int = 0
    """Decisions with places outside of their picture or caption, left out."""
    shards_kept: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return (
            vars(self)
            | {"boxes": dict(self.boxes), "changed": self.changed[:_KEYS_NAMED]}
            | {"rows_changed": len(self.changed)}
        )


def merge(
    labels: Place,
    settled: Mapping[Row, Settled],
    out: Place,
    on_shard: Callable[[int], Any] = lambda shards: None,
    defects: Counter[str] | None = None,
) -> Merged:
    """Write shards with decisions in them.

    Args:
        labels: shards of any readable version.
        settled: what stands of all decisions.
        out: folder or URL for as many shards of the same names; what was finished stays.
        on_shard: told of every shard that is done.
        defects: what is broken in the labels is left out, and counted here.

    Raises:
        MissingInputError: there are no labels.
        ShardError: one is broken.
        ConfigError, OwnershipError, StorageError: OUT cannot be written, or is where the labels are.
    """
    keep_apart(out, labels.parent if exists(labels) else labels)
    total, defects = Merged(), Counter() if defects is None else defects
    with alone_in(out):
        shards = list(label_shards(labels))
        plans = _find_rows(shards, settled, total)
        categories = _vocabularies(plans) if holds_detections(shards[0]) else {}
        code = code_sha256([__name__])
        wanted = {out / plan.shard.name: _provenance(plan, categories.get(plan.shard), code) for plan in plans}
        kept = keep_finished("merge", [out], wanted, lambda found: [True] * len(found))
        total.shards_kept = len(kept)
        for plan in plans:
            place = out / plan.shard.name
            if place not in kept:
                _write(plan, place, wanted[place], categories.get(plan.shard), defects)
            on_shard(1)
        write_manifest_file(out, {"merged": total.to_dict()})
    return total


def _find_rows(shards: Iterable[Place], settled: Mapping[Row, Settled], total: Merged) -> list[_Plan]:
    """Find the rows that decisions speak of, and count what becomes of them."""
    keys = pa.array(sorted({key for key, _ in settled}), pa.string())
    seen: set[str] = set()
    plans = []
    for shard in shards:
        plan = _Plan(shard)
        table = label_table(shard, _SEEN)
        total.rows += len(table)
        numbers = pa.array(range(len(table)))
        is_meant = pc.is_in(table["key"], value_set=keys)
        for number, row in zip(
            numbers.filter(is_meant.combine_chunks()).to_pylist(), table.filter(is_meant).to_pylist(), strict=True
        ):
            record = sound_record({**row, "image": None}, Counter())
            seen.add(record.key)
            found = settled.get((record.key, row_fingerprint(record)))
            if found is None:
                total.changed.append(record.key)
                continue
            try:
                check_places(found.decision, (record.width, record.height), len(record.caption))
            except DecisionError:
                total.outside += 1
                continue
            plan.decisions[number] = found.decision
            _count(total, record, found)
        plans.append(plan)
    total.unknown = sum(key not in seen for key, _ in settled)
    return plans


def _count(total: Merged, record: GroundingRecord, found: Settled) -> None:
    total.reviewed += 1
    total.disputed += found.is_disputed
    total.absent += sum(phrase.verdict == "absent" for phrase in found.decision.phrases)
    total.boxes += corrections.compare_boxes(record, found.decision)


def _vocabularies(plans: Sequence[_Plan]) -> dict[Place, list[Category]]:
    """Return the vocabulary of every shard, with the names that people added, which have the same ids in all."""
    known = {plan.shard: read_categories(plan.shard) for plan in plans}
    added = corrections.added_categories(
        [category for categories in known.values() for category in categories],
        [decision for plan in plans for decision in plan.decisions.values()],
    )
    found = {}
    for shard, categories in known.items():
        names = {category.name for category in categories}
        found[shard] = [*categories, *(category for category in added if category.name not in names)]
    return found


def _provenance(plan: _Plan, categories: Sequence[Category] | None, code: str) -> dict[str, Any]:
    decided = [(number, decision.model_dump_json()) for number, decision in sorted(plan.decisions.items())]
    merged = {
        "labels": rows_sha256(plan.shard),
        "decisions": hashlib.sha256(json.dumps(decided).encode()).hexdigest(),
        "reviewers": sorted({decision.reviewer for decision in plan.decisions.values()}),
        "names": [category.name for category in categories or ()],
        "code": code,
    }
    before = {name: value for name, value in read_provenance(plan.shard).items() if name != FINGERPRINT}
    return with_fingerprint({**before, "merged": merged})


def _write(
    plan: _Plan,
    place: Place,
    provenance: Mapping[str, Any],
    categories: Sequence[Category] | None,
    defects: Counter[str],
) -> None:
    record_type: type = GroundingRecord if categories is None else DetectionRecord
    left_out = (VERSION_KEY, KIND_KEY, ROWS_SHA256_KEY)
    metadata = {key: value for key, value in read_metadata(plan.shard).items() if key not in left_out}
    metadata |= {PROVENANCE_KEY: json.dumps(provenance)} | (categories_to_metadata(categories) if categories else {})
    names = {category.name: category.id for category in reversed(categories or ())}
    groups = RowGroups([plan.shard], corrections.COLUMNS[record_type], is_repeated=False)
    with ShardWriter(place, record_type, metadata) as shard:
        for group in range(len(groups)):
            first = int(groups.first_rows[group])
            for number, row in enumerate(groups.read(group).to_pylist(), first):
                decision = plan.decisions.get(number)
                try:
                    if categories is None:
                        record = sound_record(row, defects)
                        shard.append(record if decision is None else corrections.correct(record, decision))
                    else:
                        found = from_row(DetectionRecord, row)
                        shard.append(found if decision is None else corrections.correct_objects(found, decision, names))
                except (TypeError, KeyError) as error:
                    raise ShardError(f"{plan.shard}: row {number} is broken ({error}); write the shard anew") from error
