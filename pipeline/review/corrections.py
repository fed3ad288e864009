"""One decision and the row that it speaks of: what the row becomes, and what of it is new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pipeline.inspection.versions import match_boxes
from pipeline.review.decisions import Decision
from pipeline.store.records import (
    DETECTION_SCHEMA,
    GROUNDING_SCHEMA,
    NOT_THERE,
    NOTHING_FOUND,
    Box,
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    Phrase,
    ScoredBox,
)

COLUMNS: dict[type, list[str]] = {GroundingRecord: GROUNDING_SCHEMA.names, DetectionRecord: DETECTION_SCHEMA.names}
_SIDES = ("x1", "y1", "x2", "y2")


def correct(record: GroundingRecord, decision: Decision) -> GroundingRecord:
    """Return a row as a person says that it should be: its boxes score 1, what is not there has no box and says so."""
    before = {(phrase.text, phrase.char_spans): phrase for phrase in record.phrases}
    phrases = []
    for judged in decision.phrases:
        known = before.get((judged.text, judged.spans), Phrase(text=judged.text, char_spans=judged.spans))
        reason = NOT_THERE if judged.verdict == "absent" else None if judged.boxes else known.reject_reason
        boxes = tuple(ScoredBox(xyxy=box) for box in judged.boxes)
        phrases.append(replace(known, boxes=boxes, reject_reason=reason))
    reason = None if any(phrase.boxes for phrase in phrases) else NOTHING_FOUND
    return replace(record, phrases=tuple(phrases), reject_reason=reason, reviewed=True)


def correct_objects(record: DetectionRecord, decision: Decision, ids: Mapping[str, int]) -> DetectionRecord:
    """Return a row of category boxes likewise; boxes that stayed where they are keep area and crowd.

    Args:
        record: the row.
        decision: what was said of it.
        ids: of all categories that it names.
    """
    before = {(item.category_id, as_stored(item.xyxy)): item for item in record.objects}
    objects: list[DetectedObject] = []
    absent: list[int] = []
    for judged in decision.phrases:
        category = ids[judged.text]
        if judged.verdict == "absent":
            absent.append(category)
        for box in judged.boxes:
            known = before.get((category, as_stored(box)), DetectedObject(category_id=category, xyxy=box))
            objects.append(replace(known, score=1.0))
    present = {item.category_id for item in objects}
    negative = dict.fromkeys([*record.negative_category_ids, *absent])
    return replace(
        record,
        objects=tuple(objects),
        negative_category_ids=tuple(category for category in negative if category not in present),
        not_exhaustive_category_ids=tuple(each for each in record.not_exhaustive_category_ids if each not in present),
        reject_reason=None if objects else NOTHING_FOUND,
        reviewed=True,
    )


def added_categories(known: Sequence[Category], decisions: Iterable[Decision]) -> list[Category]:
    """Return categories for the names that decisions have and a vocabulary has not, in the order of the alphabet."""
    names = {category.name for category in known}
    new = sorted({phrase.text for decision in decisions for phrase in decision.phrases} - names)
    first = max((category.id for category in known), default=0) + 1
    return [Category(id=first + i, name=name, split="novel") for i, name in enumerate(new)]


def compare_boxes(record: GroundingRecord, decision: Decision) -> Counter[str]:
    """Count what was done to boxes of a row: accepted, moved, drawn, rejected; those of a new name were drawn."""
    before: dict[str, list[Box]] = {}
    after: dict[str, list[Box]] = {}
    for phrase in record.phrases:
        before.setdefault(phrase.text, []).extend(as_stored(box.xyxy) for box in phrase.boxes)
    for judged in decision.phrases:
        after.setdefault(judged.text, []).extend(map(as_stored, judged.boxes))
    counts: Counter[str] = Counter()
    for text in dict.fromkeys([*before, *after]):
        old, new = Counter(before.get(text, ())), Counter(after.get(text, ()))
        counts["accepted"] += (old & new).total()
        left, added = (
            [dict(zip(_SIDES, box, strict=True)) for box in boxes.elements()] for boxes in (old - new, new - old)
        )
        drawn, rejected, moved = match_boxes(left, added)
        counts += Counter(drawn=drawn, rejected=rejected, moved=moved)
    return counts


def as_stored(xyxy: Box) -> Box:
    """Return a box as shards hold it."""
    x1, y1, x2, y2 = np.asarray(xyxy, np.float32).tolist()
    return x1, y1, x2, y2
