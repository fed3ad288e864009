"""Detection records seen as grounding records, so that all that looks at labels looks at both.

A picture's caption is the list of the names that have boxes in it, and each of them is a phrase.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from glip_model.text_encoder import SEPARATOR
from pipeline.store.records import DETECTION_SCHEMA, EXTRAS, GROUNDING_SCHEMA, GroundingRecord, extras_of, schema_of
from pipeline.store.shards import holds_detections, read_categories, read_end, read_table
from pipeline.store.storage import Place

_MADE = ("caption", "phrases")
"""Columns of grounding records that detection records do not have."""
_SIDES = ("x1", "y1", "x2", "y2")


def label_columns(columns: Sequence[str], is_detection: bool) -> list[str]:
    """Return the columns to read of a shard, for some of those of grounding records."""
    if not is_detection:
        return list(columns)
    kept = [name for name in columns if name not in _MADE]
    return [*kept, "objects"] if len(kept) < len(columns) else kept


def names_in(shard: Place) -> dict[int, str]:
    """Return the vocabulary of a detection shard."""
    return {category.id: category.name for category in read_categories(shard)}


def label_table(shard: Place, columns: Sequence[str]) -> pa.Table:
    """Read columns of grounding records from a shard of either kind; errors as ``read_table``."""
    if not holds_detections(shard):
        return read_table(shard, columns)
    table = read_table(shard, label_columns(columns, True))
    return _as_grounding(table, names_in(shard), columns)


def as_grounding_row(row: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Return a row of detection records as one of grounding records; what is broken in it stays so."""
    plain = {field.name: row.get(field.name) for field in GROUNDING_SCHEMA if field.name not in _MADE}
    objects = row.get("objects")
    if objects is None:
        return plain | {"caption": "", "phrases": None}
    by_name: dict[str | None, list[dict[str, Any] | None]] = {}
    for item in objects:
        name = None if item is None else names.get(item["category_id"])
        by_name.setdefault(name, []).append(None if item is None else _box(item))
    caption = SEPARATOR.join(name for name in by_name if name)
    phrases, start = [], 0
    for name, boxes in by_name.items():
        end = start + len(name or "")
        spans = [{"start": start, "end": end}] if name else []
        phrases.append(
            {"text": name, "char_spans": spans, "boxes": boxes, "reject_reason": None, "is_plural": None, "split": None}
        )
        start = end + len(SEPARATOR) if name else start
    return plain | {"caption": caption, "phrases": phrases}


class DetectionLabels:
    """Detection shards as one table of labels, without their pictures, read shard by shard as often as it is asked for.

    DuckDB takes it for a table.
    """

    def __init__(self, shards: Sequence[Place]) -> None:
        self._shards = list(shards)
        extras = extras_of(read_end(shards[0])[0].schema.to_arrow_schema())
        schema = schema_of(GroundingRecord, extras)
        self.schema = pa.schema([field for field in schema if field.name != "image"])

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Give a stream over all shards, by Arrow's protocol between libraries."""
        return pa.RecordBatchReader.from_batches(self.schema, self._batches()).__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for shard in self._shards:
            yield from label_table(shard, self.schema.names).cast(self.schema).to_batches()


def _as_grounding(table: pa.Table, names: Mapping[int, str], columns: Sequence[str]) -> pa.Table:
    labels = schema_of(GroundingRecord, extras_of(table.schema))
    kinds = {field.name: field for field in (*DETECTION_SCHEMA, *labels)}
    rows = [as_grounding_row(row, names) for row in table.to_pylist()]
    fields = [kinds[name].with_nullable(True) for name in columns]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _box(item: Mapping[str, Any]) -> dict[str, Any]:
    score = item.get("score")
    extras = {name: item[name] for name in EXTRAS if name in item}
    return {**{side: item[side] for side in _SIDES}, "score": 1.0 if score is None else score, **extras}
