"""Ground truth and detections of a benchmark as the arrays that are matched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.evaluation.matching import Found, Truth
from pipeline.evaluation.predictions import Predictions, check_rows
from pipeline.store.records import Category, DetectionRecord


@dataclass(frozen=True)
class DetectionSet:
    """The ground truth of a benchmark."""

    categories: tuple[Category, ...]
    """Categories in order of their ids; numbers of categories index this tuple."""
    num_pictures: int
    truth: Truth
    negative: np.ndarray
    """(N, 2) int64 picture and category that was looked for in it and is not there."""
    not_exhaustive: np.ndarray
    """(N, 2) int64 picture and category of which only some objects have boxes."""

    def with_all_ids_counting(self) -> DetectionSet | None:
        """Return this with the annotations of id 0 counted as all others are; None where there are none."""
        if not self.truth.is_mute.any():
            return None
        return replace(self, truth=replace(self.truth, is_mute=np.zeros_like(self.truth.is_mute)))


def truth_and_found(
    records: Sequence[DetectionRecord], categories: Sequence[Category], predictions: Predictions
) -> tuple[DetectionSet, Found]:
    """Return what ``evaluate_coco`` and ``evaluate_federated`` compare.

    Args:
        records: all rows of the split, in order.
        categories: the vocabulary.
        predictions: labels are category ids; rows without predictions are counted as missed.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    check_rows(predictions, [record.key for record in records], "detection")
    truth = _truth(records, categories)
    return truth, _found(predictions, truth.categories)


def in_order(categories: Iterable[Category]) -> tuple[Category, ...]:
    """Return categories in order of their ids, of equal ids the last."""
    by_id = {category.id: category for category in categories}
    return tuple(by_id[category_id] for category_id in sorted(by_id))


def numbers_of(categories: Sequence[Category]) -> dict[int, int]:
    """Return category id to number."""
    return {category.id: number for number, category in enumerate(categories)}


def pairs(per_picture: Iterable[Iterable[int]], numbers: dict[int, int]) -> np.ndarray:
    """Return (N, 2) int64 picture and category number of each picture's category ids; unknown ids are left out."""
    found = [(i, numbers[label]) for i, labels in enumerate(per_picture) for label in labels if label in numbers]
    return np.array(found, np.int64).reshape(-1, 2)


def to_xywh(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Return (N, 4) left, top, width and height of corners."""
    return np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)


def _truth(records: Sequence[DetectionRecord], categories: Sequence[Category]) -> DetectionSet:
    vocabulary = in_order(categories)
    numbers = numbers_of(vocabulary)
    rows = [(number, item) for number, record in enumerate(records) for item in record.objects]
    rows = [(number, item) for number, item in rows if item.category_id in numbers]
    boxes = to_xywh(np.array([item.xyxy for _, item in rows], np.float64).reshape(-1, 4))
    sizes = (boxes[:, 2] * boxes[:, 3]).tolist()
    areas = [size if item.area is None else item.area for (_, item), size in zip(rows, sizes, strict=True)]
    truth = Truth(
        pictures=np.array([number for number, _ in rows], np.int64),
        categories=np.array([numbers[item.category_id] for _, item in rows], np.int64),
        boxes_xywh=boxes,
        areas=np.array(areas, np.float64),
        is_crowd=np.array([item.is_crowd for _, item in rows], bool),
        is_ignored=np.zeros(len(rows), bool),
        is_mute=np.zeros(len(rows), bool),  # records have no ids, and so none that is 0
    )
    return DetectionSet(
        vocabulary,
        len(records),
        truth,
        negative=pairs([record.negative_category_ids for record in records], numbers),
        not_exhaustive=pairs([record.not_exhaustive_category_ids for record in records], numbers),
    )


def _found(predictions: Predictions, categories: Sequence[Category]) -> Found:
    ids = np.array([category.id for category in categories], np.int64)
    places = np.minimum(np.searchsorted(ids, predictions.labels), max(len(ids) - 1, 0))
    known = ids[places] == predictions.labels if len(ids) else np.zeros(len(predictions), bool)
    return Found(
        pictures=predictions.numbers.astype(np.int64),
        categories=np.where(known, places, -1),
        boxes_xywh=to_xywh(predictions.boxes_xyxy.astype(np.float64)),  # before subtracting, as for the truth
        scores=predictions.scores.astype(np.float64),
    )
