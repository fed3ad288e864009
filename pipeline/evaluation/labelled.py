"""What records of any task show: boxes by label, as predictions have labels, and what these are called."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.store.records import Box, Category, DetectionRecord, GroundingRecord


def true_boxes(record: DetectionRecord | GroundingRecord) -> list[tuple[int, Box]]:
    """Return label and corners of all true boxes; labels are category ids, or count the phrases of the caption."""
    if isinstance(record, DetectionRecord):
        return [(item.category_id, item.xyxy) for item in record.objects]
    return [(i, box.xyxy) for i, phrase in enumerate(record.phrases) for box in phrase.boxes]


def label_names(record: DetectionRecord | GroundingRecord, categories: Iterable[Category]) -> dict[int, str]:
    """Return label to name: of the vocabulary of detection, or of the phrases of the caption."""
    if isinstance(record, DetectionRecord):
        return {category.id: category.name for category in categories}
    return {i: phrase.text for i, phrase in enumerate(record.phrases)}
