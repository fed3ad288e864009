"""LVIS detection metrics, v0.5 and v1: a thousand categories, of which each picture was checked for a few.

In a picture only those categories count that it shows or that were looked for in vain; where not every object of a
category has a box, unmatched detections of it are no false alarms. Two protocols say which detections count:

    standard   the best 300 of a picture over all categories
    fixed AP   the best 10,000 of a category over all pictures, as many as it likes in each (Dave et al., 2021,
               "Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details")

The numbers are those of the reference evaluator (lvis-dataset/lvis-api).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.evaluation.curves import Curves, measure
from pipeline.evaluation.detection_set import DetectionSet
from pipeline.evaluation.matching import AREAS, Found, match, places_in_runs
from pipeline.store.records import Category

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
"""What categories are called that are in up to 10, up to 100 and more training pictures."""


@dataclass(frozen=True)
class LvisProtocol:
    """Which detections count."""

    per_picture: int | None
    """Best detections of a picture over all categories; None for all."""
    per_category: int | None = None
    """Best detections of a category over all pictures; None for all."""


STANDARD = LvisProtocol(per_picture=300)
FIXED_AP = LvisProtocol(per_picture=None, per_category=10_000)


@dataclass(frozen=True)
class LvisResult:
    """What the reference evaluator accumulates."""

    categories: tuple[Category, ...]
    curves: Curves
    protocol: LvisProtocol

    def metrics(self) -> dict[str, float | None]:
        """Return LVIS's thirteen numbers in [0, 1]; None where there is no ground truth.

        ``APr``, ``APc`` and ``APf`` are means over rare, common and frequent categories. Recalls carry the number of
        detections a picture in their names, -1 for no limit.
        """
        limit = -1 if self.protocol.per_picture is None else self.protocol.per_picture
        precision, recall = self.curves.average_precision, self.curves.average_recall
        frequencies = [category.frequency for category in self.categories]
        places = {each: [k for k, frequency in enumerate(frequencies) if frequency == each] for each in FREQUENCIES}
        return {
            **self.curves.precisions(),
            **{f"AP{each}": precision(categories=chosen) for each, chosen in places.items()},
            f"AR@{limit}": recall(),
            **{f"AR{area[0]}@{limit}": recall(area=area) for area in AREAS[1:]},
        }


def evaluate_federated(truth: DetectionSet, found: Found, protocol: LvisProtocol = STANDARD) -> LvisResult:
    """Compare detections with ground truth of which each picture was checked for some categories only.

    Args:
        truth: pictures, vocabulary and boxes.
        found: detections of those pictures.
        protocol: which of them count.
    """
    if protocol.per_category is not None:
        found = _best(found, found.categories, protocol.per_category)
    if protocol.per_picture is not None:
        found = _best(found, found.pictures, protocol.per_picture)  # before any is left out, as the reference does
    num_categories = len(truth.categories)
    boxes = truth.truth.select(_has_area(truth.truth.areas))
    boxes = replace(boxes, is_crowd=np.zeros(len(boxes.areas), bool))
    found = found.select(_has_area(found.areas) & (found.categories >= 0))
    # Federated: a detection counts only where its category was checked in its picture, present or stated as absent.
    keys = found.pictures * num_categories + found.categories
    checked = [boxes.pictures * num_categories + boxes.categories, truth.negative @ (num_categories, 1)]
    is_checked = np.isin(keys, np.concatenate(checked))
    # Where not all objects of a category are boxed, an unmatched detection may be right and is no false alarm.
    lenient = np.isin(keys, truth.not_exhaustive @ (num_categories, 1))
    matches = match(boxes, found.select(is_checked), lenient=lenient[is_checked])
    return LvisResult(truth.categories, measure(matches, num_categories), protocol)


def _best(found: Found, groups: np.ndarray, count: int) -> Found:
    """Return the best detections of every group, of equal scores the earlier ones."""
    order = np.lexsort((-found.scores, groups))
    return found.select(np.sort(order[places_in_runs(groups[order]) < count]))


def _has_area(areas: np.ndarray) -> np.ndarray:
    """Return (N,) bool: what the reference lets in, on either side."""
    return np.asarray((areas > 0) & (areas < np.inf))
