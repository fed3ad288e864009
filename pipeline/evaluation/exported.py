"""An exported model beside the one that it was made of: the same boxes, and COCO's AP of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glip_model.boxes import pairwise_iou
from glip_model.structures import Detections
from pipeline.errors import MissingInputError
from pipeline.evaluation.coco import evaluate_coco
from pipeline.evaluation.detection_set import truth_and_found
from pipeline.evaluation.predictions import Predictions
from pipeline.store.records import Category, DetectionRecord
from pipeline.store.vocabulary import read_as

SAME_IOU = 0.9
"""IoU at which two boxes of one name count as the same box."""


@dataclass(frozen=True)
class Agreement:
    """How far the boxes of two models are the same ones."""

    boxes: int
    """Boxes of the first model above a score."""
    found_again: int
    """How many of these the second model finds at any score: the same name and an IoU of at least ``SAME_IOU``."""
    score_difference: float
    """The largest among the boxes found again; 0 without any."""
    side_difference: float
    """The same of the place of a side, in pixels."""


def agreement(first: Sequence[Detections], second: Sequence[Detections], min_score: float) -> Agreement:
    """Compare what two models found in the same pictures, for the same names.

    Args:
        first: per picture all boxes of the first model.
        second: those of the other one.
        min_score: boxes of the first that count.
    """
    boxes = again = 0
    scores, sides = [0.0], [0.0]
    for mine, theirs in zip(first, second, strict=True):
        chosen = mine.above(min_score)
        boxes += len(chosen)
        if not len(chosen) or not len(theirs):
            continue
        overlaps = pairwise_iou(chosen.boxes_xyxy, theirs.boxes_xyxy)
        overlaps[chosen.phrase_index[:, None] != theirs.phrase_index[None, :]] = -1.0
        best, place = overlaps.max(1)
        same, place = best >= SAME_IOU, place[best >= SAME_IOU]
        again += int(same.sum())
        scores += (chosen.scores[same] - theirs.scores[place]).abs().tolist()
        sides += (chosen.boxes_xyxy[same] - theirs.boxes_xyxy[place]).abs().flatten().tolist()
    return Agreement(boxes, again, max(scores), max(sides))


def average_precision(
    records: Sequence[DetectionRecord],
    categories: Sequence[Category],
    names: Sequence[str],
    found: Sequence[Detections],
) -> dict[str, float | None]:
    """Return COCO's numbers in [0, 1] of what was found in annotated pictures.

    Args:
        records: of the pictures.
        categories: of the annotations; those of other names are left out.
        names: that were asked for; phrases of ``found`` count them.
        found: per picture.

    Raises:
        MissingInputError: none of the names is a category.
    """
    id_of = {read_as(category.name): category.id for category in categories}
    ids = np.array([id_of.get(read_as(name), -1) for name in names])
    known = [category for category in categories if category.id in ids]
    if not known:
        shown = ", ".join(category.name for category in categories[:10])
        raise MissingInputError(f"none of the names is a category of the annotations, such as {shown}")
    counts = [len(each) for each in found]
    numbers = np.repeat(np.arange(len(found), dtype=np.int32), counts)
    index, boxes, scores = (
        np.concatenate([getattr(each, name).numpy() for each in [Detections.none(), *found]])
        for name in ("phrase_index", "boxes_xyxy", "scores")
    )
    is_known = ids[index] >= 0
    predictions = Predictions(
        keys=tuple(records[number].key for number in numbers[is_known]),
        numbers=numbers[is_known],
        labels=ids[index][is_known].astype(np.int32),
        boxes_xyxy=boxes[is_known].astype(np.float32),
        scores=scores[is_known].astype(np.float32),
    )
    return evaluate_coco(*truth_and_found(records, known, predictions)).metrics()
