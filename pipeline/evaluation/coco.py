"""COCO detection metrics: average precision over IoU 0.50 to 0.95, over all, base and novel categories.

The numbers are pycocotools' own; base and novel are means over the categories of that split.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.data.records import Category, DetectionRecord
from pipeline.evaluation.predictions import Predictions, check_rows

MAX_DETECTIONS = 100
"""Per picture and category, as COCOeval counts them."""
_ALL_AREAS = 0
_IOU_50 = 0


@dataclass(frozen=True)
class CategoryMatches:
    """How the detections of one category met its ground truth; what average precision is computed from."""

    images: np.ndarray
    """(D,) number of the picture of each detection, best score first."""
    matched: np.ndarray
    """(10 IoU thresholds, D) bool."""
    ignored: np.ndarray
    """(10, D) bool, for example detections of crowds."""
    truth_per_image: np.ndarray
    """(pictures,) ground-truth boxes."""


@dataclass(frozen=True)
class CocoResult:
    """What COCOeval accumulated."""

    categories: tuple[Category, ...]
    precision: np.ndarray
    """(10 IoU thresholds, 101 recalls, K categories), -1 where a category has no ground truth."""
    matches: tuple[CategoryMatches, ...]

    def average_precision(self, split: str | None = None, iou: float | None = None) -> float:
        """Return the mean AP in percent over the categories of a split that have ground truth; 0 if none has."""
        values = self.per_category(iou)
        chosen = [
            value
            for category, value in zip(self.categories, values, strict=True)
            if value >= 0 and (split is None or category.split == split)
        ]
        return 100 * float(np.mean(chosen)) if chosen else 0.0

    def per_category(self, iou: float | None = None) -> np.ndarray:
        """Return (K,) AP in [0, 1] of every category, -1 without ground truth; at one IoU threshold or over all."""
        precision = self.precision if iou is None else self.precision[[_threshold_index(iou)]]
        return np.where(precision[0, 0] < 0, -1.0, precision.mean((0, 1)))

    def curve(self, split: str | None = None) -> np.ndarray:
        """Return (101,) precision at IoU 0.5 for recalls 0, 0.01 … 1, averaged over the categories of a split."""
        chosen = [
            k
            for k, category in enumerate(self.categories)
            if self.precision[0, 0, k] >= 0 and (split is None or category.split == split)
        ]
        return self.precision[_IOU_50][:, chosen].mean(1) if chosen else np.zeros(101)


def evaluate_detection(
    records: Sequence[DetectionRecord], categories: Sequence[Category], predictions: Predictions
) -> CocoResult:
    """Compare predictions with ground truth.

    Args:
        records: all rows of the split, in order.
        categories: the vocabulary.
        predictions: labels are category ids; rows without predictions are counted as missed.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    check_rows(predictions, [record.key for record in records], "detection")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _ground_truth(records, categories)
        truth.createIndex()
        evaluation = COCOeval(truth, _results(truth, predictions), "bbox")
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    order = {category.id: category for category in categories}
    return CocoResult(
        categories=tuple(order[category_id] for category_id in evaluation.params.catIds),
        precision=evaluation.eval["precision"][:, :, :, _ALL_AREAS, 0],
        matches=tuple(
            _category_matches(evaluation.evalImgs[k * len(records) : (k + 1) * len(records)])
            for k in range(len(evaluation.params.catIds))
        ),
    )


def _category_matches(per_image: Sequence[dict[str, Any] | None]) -> CategoryMatches:
    """Put the pictures of one category together; None is a picture with neither detections nor ground truth."""
    present = [(number, entry) for number, entry in enumerate(per_image) if entry is not None]
    thresholds = 10
    images = np.concatenate([np.full(len(e["dtScores"]), n) for n, e in present] or [np.zeros(0)]).astype(np.int64)
    scores = np.concatenate([np.asarray(e["dtScores"], float) for _, e in present] or [np.zeros(0)])
    empty = np.zeros((thresholds, 0))
    matched = np.concatenate([e["dtMatches"] for _, e in present] or [empty], 1) > 0
    ignored = np.concatenate([e["dtIgnore"] for _, e in present] or [empty], 1).astype(bool)
    truth = np.zeros(len(per_image), np.int64)
    for number, entry in present:
        truth[number] = int((np.asarray(entry["gtIgnore"]) == 0).sum())
    order = np.argsort(-scores, kind="mergesort")  # as COCOeval sorts
    return CategoryMatches(images[order], matched[:, order], ignored[:, order], truth)


def _threshold_index(iou: float) -> int:
    return round((iou - 0.5) / 0.05)


def _ground_truth(records: Sequence[DetectionRecord], categories: Sequence[Category]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        for item in record.objects:
            x1, y1, x2, y2 = item.xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": item.category_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(item.is_crowd),
                }
            )
    return {
        "images": [{"id": n, "height": r.height, "width": r.width} for n, r in enumerate(records)],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in categories],
    }


def _results(truth: COCO, predictions: Predictions) -> COCO:
    if not len(predictions):
        empty = COCO()
        empty.dataset = {**truth.dataset, "annotations": []}
        empty.createIndex()
        return empty
    boxes = predictions.boxes_xyxy.astype(np.float64)  # before subtracting, as for the ground truth
    # Columns as loadRes takes them: picture, x, y, width, height, score, category.
    table = np.column_stack(
        (predictions.numbers, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], predictions.scores, predictions.labels)
    )
    return truth.loadRes(table)
