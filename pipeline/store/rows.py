"""Records as rows of Arrow tables, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pipeline.store.records import (
    ADDED_LISTS,
    CaptionRecord,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    ImageRef,
    Phrase,
    PhrasesRecord,
    Record,
    ScoredBox,
)

R = TypeVar("R", CaptionRecord, PhrasesRecord, GroundingRecord, DetectionRecord)


def to_row(record: Record) -> dict[str, Any]:
    """Return a record as one row for ``pyarrow.Table.from_pylist``."""
    row = dict(vars(record))
    if "image" in row:
        row["image"] = vars(row["image"])
    if "phrases" in row:
        row["phrases"] = [_phrase_to_row(phrase) for phrase in row["phrases"]]
    if "objects" in row:
        row["objects"] = [_box_to_row(item) for item in row["objects"]]
    return row


def from_row(record_type: type[R], row: Mapping[str, Any]) -> R:
    """Rebuild a record from one row as ``pyarrow.Table.to_pylist`` gives it."""
    values = dict(row)
    if "image" in values:
        values["image"] = ImageRef(**values["image"])
    if "phrases" in values:
        values["phrases"] = tuple(map(_phrase_from_row, values["phrases"] or ()))
    if "objects" in values:
        values["objects"] = tuple(
            DetectedObject(
                category_id=item["category_id"],
                xyxy=_xyxy(item),
                is_crowd=bool(item["is_crowd"]),
                area=item.get("area"),
                score=1.0 if item.get("score") is None else item["score"],
                **_box_extras(item),
            )
            for item in values["objects"] or ()
        )
    for name in ADDED_LISTS:
        if name in values:
            values[name] = tuple(values[name] or ())
    if "reviewed" in values:
        values["reviewed"] = bool(values["reviewed"])
    return record_type(**values)


def _phrase_from_row(row: Mapping[str, Any]) -> Phrase:
    spans = tuple((span["start"], span["end"]) for span in row["char_spans"] or ())
    boxes = tuple(ScoredBox(xyxy=_xyxy(box), score=box["score"], **_box_extras(box)) for box in row["boxes"] or ())
    return Phrase(**{**row, "char_spans": spans, "boxes": boxes})


def _box_extras(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a box that not all shards have, where it has them."""
    teachers = row.get("teachers")
    found = {name: row[name] for name in ("agreement", "in_pass") if row.get(name) is not None}
    return found if teachers is None else found | {"teachers": tuple(teachers)}


def _xyxy(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    return row["x1"], row["y1"], row["x2"], row["y2"]


def _phrase_to_row(phrase: Phrase) -> dict[str, Any]:
    spans = [{"start": start, "end": end} for start, end in phrase.char_spans]
    return {**vars(phrase), "char_spans": spans, "boxes": [_box_to_row(box) for box in phrase.boxes]}


def _box_to_row(box: ScoredBox | DetectedObject) -> dict[str, Any]:
    """Return the fields of a box; Arrow leaves ``xyxy``, which its schema does not have."""
    return vars(box) | dict(zip(("x1", "y1", "x2", "y2"), box.xyxy, strict=True))
