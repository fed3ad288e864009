"""Defects of shards that anybody may have written: counted by kind, and left out of what is shown and exported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.inspection.detections import label_table
from pipeline.store.records import READABLE_VERSIONS, GroundingRecord
from pipeline.store.rows import from_row
from pipeline.store.shards import PROVENANCE_KEY, REPEAT_KEY, VERSION_KEY, read_end, read_metadata
from pipeline.store.storage import Place

KINDS = {
    "metadata_odd": "shards whose version, provenance or repeats are not as this project writes them",
    "key_missing": "rows without a key; their phrases are left out",
    "caption_missing": "rows without a caption; their phrases are left out",
    "size_missing": "rows without height or width; their phrases are left out",
    "source_missing": "rows without a source",
    "picture_missing": "rows with neither bytes nor a path of a picture; exports leave them out",
    "picture_unreadable": "rows whose picture cannot be read; only pages and exports look, pages say why",
    "phrases_missing": "rows without a list of phrases, not even an empty one",
    "phrase_missing": "phrases without a text",
    "span_outside": "phrases with a place that is not in the caption",
    "box_not_finite": "boxes with a side that is no finite number",
    "box_reversed": "boxes without width or height, or with sides the wrong way round",
    "box_outside": "boxes that leave their picture by more than a pixel",
    "score_outside": "boxes with a score that is not from 0 to 1",
}
"""What is looked for, in the order in which it is shown."""
OUTSIDE_PIXELS = 1.0
"""Boxes may leave their picture by so much: people draw along its border, and numbers are rounded."""
_SIDES = ("x1", "y1", "x2", "y2")
_COLUMNS = ("key", "caption", "source", "height", "width", "phrases")

Numbers = NDArray[Any]


def sound_record(row: Mapping[str, Any], defects: Counter[str]) -> GroundingRecord:
    """Return the record of a row as Parquet has it, without what is broken; that is counted by kind."""
    image = row["image"] or {}
    lacking = {
        "key_missing": row["key"] is None,
        "caption_missing": row["caption"] is None,
        "size_missing": not (row["height"] or 0) > 0 or not (row["width"] or 0) > 0,
    }
    whole = not any(lacking.values())
    lacking["source_missing"] = row["source"] is None
    lacking["picture_missing"] = image.get("bytes") is None and image.get("path") is None
    lacking["phrases_missing"] = whole and row["phrases"] is None
    defects.update(name for name, is_lacking in lacking.items() if is_lacking)
    phrases = sound_phrases(row["phrases"], row["caption"], row["width"], row["height"], defects) if whole else []
    texts = {name: row[name] or "" for name in ("key", "caption", "source")}
    sizes = {name: row[name] or 0 for name in ("height", "width")}
    return from_row(GroundingRecord, {**row, **texts, **sizes, "image": image, "phrases": phrases})


def sound_phrases(
    phrases: Sequence[Mapping[str, Any] | None] | None, caption: str, width: int, height: int, defects: Counter[str]
) -> list[dict[str, Any]]:
    """Return the phrases of a row without those that are broken, and without their broken boxes; they are counted."""
    kept = []
    for phrase in phrases or ():
        if phrase is None or phrase["text"] is None:
            defects["phrase_missing"] += 1
            continue
        spans = [span or {"start": None, "end": None} for span in phrase["char_spans"] or ()]
        starts, ends = _numbers(spans, ("start", "end"))
        if _span_defects(starts, ends, len(caption)).any():
            defects["span_outside"] += 1
            continue
        boxes = [box or dict.fromkeys((*_SIDES, "score")) for box in phrase["boxes"] or ()]
        found = _box_defects(_numbers(boxes, (*_SIDES, "score")), width, height)
        defects.update({name: int(mask.sum()) for name, mask in found.items() if mask.any()})
        is_broken = np.any(list(found.values()), axis=0)
        sound = [box for box, broken in zip(boxes, is_broken, strict=True) if not broken]
        kept.append({**phrase, "char_spans": spans, "boxes": sound})
    return kept


def count_defects(shard: Place) -> Counter[str]:
    """Count what is broken in a shard by its columns, without reading a picture: as ``sound_record`` does row by row.

    Raises:
        ShardError: it cannot be read at all.
    """
    defects = Counter({"metadata_odd": int(_is_odd(read_metadata(shard))), "picture_missing": _pictureless(shard)})
    table = label_table(shard, _COLUMNS).combine_chunks()
    lacking = {f"{name}_missing": _nulls(table[name]) for name in ("key", "caption")}
    sizes = [_floats(table[name]) for name in ("height", "width")]
    lacking["size_missing"] = ~((sizes[0] > 0) & (sizes[1] > 0))
    whole = ~np.any(list(lacking.values()), axis=0)
    lacking["source_missing"] = _nulls(table["source"])
    lacking["phrases_missing"] = whole & _nulls(table["phrases"])
    lengths = _floats(pc.utf8_length(table["caption"]))
    row_of, phrases = _elements(table["phrases"], whole)

    no_text = _nulls(pc.struct_field(phrases, "text"))
    phrase_of, spans = _elements(pc.struct_field(phrases, "char_spans"), ~no_text)
    starts, ends = (_floats(pc.struct_field(spans, name)) for name in ("start", "end"))
    misplaced = np.zeros(len(phrases), dtype=bool)
    misplaced[phrase_of[_span_defects(starts, ends, lengths[row_of[phrase_of]])]] = True
    lacking |= {"phrase_missing": no_text, "span_outside": misplaced}

    phrase_of, boxes = _elements(pc.struct_field(phrases, "boxes"), ~no_text & ~misplaced)
    numbers = np.stack([_floats(pc.struct_field(boxes, name)) for name in (*_SIDES, "score")])
    height, width = (size[row_of[phrase_of]] for size in sizes)
    lacking |= _box_defects(numbers, width, height)
    defects.update({name: int(mask.sum()) for name, mask in lacking.items()})
    return +defects


def read_provenance(shard: Place) -> dict[str, Any]:
    """Return what made a shard as it says; nothing where it says nothing that is understood."""
    return _provenance(read_metadata(shard)) or {}


def format_defects(defects: Mapping[str, int]) -> str:
    """Say in a line what was left out."""
    return ", ".join(f"{defects[name]:,} {name}" for name in KINDS if defects.get(name))


def _span_defects(starts: Numbers, ends: Numbers, length: Numbers | int) -> Numbers:
    return ~((starts >= 0) & (starts < ends) & (ends <= length))


def _box_defects(numbers: Numbers, width: Numbers | int, height: Numbers | int) -> dict[str, Numbers]:
    """Return per kind which boxes are broken, (N,); ``numbers`` are their sides and scores, (5, N)."""
    x1, y1, x2, y2, scores = numbers
    finite = np.isfinite(x1) & np.isfinite(y1) & np.isfinite(x2) & np.isfinite(y2)
    outside = np.zeros(len(x1), dtype=bool)
    for places, side in ((x1, width), (x2, width), (y1, height), (y2, height)):
        outside |= (places < -OUTSIDE_PIXELS) | (places > side + OUTSIDE_PIXELS)
    return {
        "box_not_finite": ~finite,
        "box_reversed": finite & ((x2 <= x1) | (y2 <= y1)),
        "box_outside": finite & outside,
        "score_outside": ~((scores >= 0) & (scores <= 1)),
    }


def _numbers(items: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Numbers:
    """Return a row of numbers per name; null is NaN, which is in no range."""
    return np.array([[item[name] for item in items] for name in names], dtype=float).reshape(len(names), len(items))


def _nulls(column: Any) -> Numbers:
    found: Numbers = np.asarray(pc.is_null(column), dtype=bool)
    return found


def _floats(column: Any) -> Numbers:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")), dtype=float)


def _elements(column: Any, wanted: Numbers) -> tuple[Numbers, Any]:
    """Return the elements of the wanted lists of a column in one array, and to which list each belongs."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    parents = np.asarray(pc.list_parent_indices(lists), dtype=np.int64)
    is_wanted = wanted[parents]
    return parents[is_wanted], pc.list_flatten(lists).filter(pa.array(is_wanted))


def _pictureless(shard: Place) -> int:
    """Count rows without a picture, by the counts of nulls at the end of the file."""
    end, _ = read_end(shard)
    count = 0
    for group in map(end.row_group, range(end.num_row_groups)):
        columns = [group.column(i) for i in range(group.num_columns)]
        nulls = [
            column.statistics.null_count or 0
            for column in columns
            if column.path_in_schema in ("image.bytes", "image.path") and column.statistics is not None
        ]
        count += max(0, sum(nulls) - group.num_rows)
    return count


def _is_odd(metadata: Mapping[str, str]) -> bool:
    repeat = metadata.get(REPEAT_KEY, "1")
    is_count = repeat.isascii() and repeat.isdecimal() and int(repeat[:9]) > 0
    return metadata.get(VERSION_KEY) not in READABLE_VERSIONS or not is_count or _provenance(metadata) is None


def _provenance(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the provenance in a shard's metadata, empty where there is none; None where it is no such thing."""
    try:
        found = json.loads(metadata.get(PROVENANCE_KEY, "{}"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    is_sound = isinstance(found, dict) and all(
        isinstance(found.get(part, {}), dict) for part in ("teacher", "settings")
    )
    return found if is_sound else None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
