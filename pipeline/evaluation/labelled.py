"""What records of any task and predictions of them show: boxes by label, and what labels are called."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.evaluation.predictions import Predictions
from pipeline.store.records import Box, Category, DetectionRecord, GroundingRecord


def true_boxes(record: DetectionRecord | GroundingRecord) -> list[tuple[int, Box]]:
    """Return label and corners of all true boxes; labels are category ids, or count the phrases of the caption."""
    if isinstance(record, DetectionRecord):
        return [(item.category_id, item.xyxy) for item in record.objects]
    return [(i, box.xyxy) for i, phrase in enumerate(record.phrases) for box in phrase.boxes]


def found_boxes(predictions: Predictions, positions: Iterable[int]) -> list[tuple[int, Box, float]]:
    """Return label, corners and score of some of the boxes that a model found."""
    return [
        (int(predictions.labels[i]), tuple(predictions.boxes_xyxy[i].tolist()), float(predictions.scores[i]))
        for i in positions
    ]


def label_names(record: DetectionRecord | GroundingRecord, categories: Iterable[Category]) -> dict[int, str]:
    """Return label to name: of the vocabulary of detection, or of the phrases of the caption."""
    if isinstance(record, DetectionRecord):
        return {category.id: category.name for category in categories}
    return {i: phrase.text for i, phrase in enumerate(record.phrases)}
