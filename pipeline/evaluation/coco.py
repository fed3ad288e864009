"""COCO detection metrics: average precision and recall over IoU 0.50 to 0.95, for all, base and novel categories.

The numbers are pycocotools' own; base and novel are means over the categories of that split.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.evaluation.curves import Curves, measure
from pipeline.evaluation.detection_set import DetectionSet
from pipeline.evaluation.matching import AREAS, Found, Matches, match, split_by_category, unpack
from pipeline.store.records import Category

LIMITS = (1, 10, 100)
"""Detections per picture and category that recall is reported for; the last is what precision counts."""
_ALL_AREAS = AREAS.index("all")


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
    """What COCOeval accumulates."""

    categories: tuple[Category, ...]
    curves: Curves
    matches: tuple[CategoryMatches, ...]
    """Per category, without regard to area."""

    def metrics(self, split: str | None = None) -> dict[str, float | None]:
        """Return COCO's twelve numbers in [0, 1] over the categories of a split; None where there is no ground truth.

        Small objects are below 32² pixels, large ones above 96²; ``AR@N`` counts N detections a picture and category.
        """
        chosen = self._chosen(split)
        recall = self.curves.average_recall
        return {
            **self.curves.precisions(chosen),
            **{f"AR@{limit}": recall(m, categories=chosen) for m, limit in enumerate(self.curves.limits)},
            **{f"AR{area[0]}": recall(area=area, categories=chosen) for area in AREAS[1:]},
        }

    def curve(self, split: str | None = None) -> np.ndarray:
        """Return (101,) precision at IoU 0.5 for recalls 0, 0.01 … 1, averaged over the categories of a split."""
        return self.curves.precision_curve(self._chosen(split))

    def _chosen(self, split: str | None) -> list[int]:
        return [k for k, category in enumerate(self.categories) if split is None or category.split == split]


def evaluate_coco(truth: DetectionSet, found: Found, max_detections: int = LIMITS[-1]) -> CocoResult:
    """Compare detections with ground truth.

    Args:
        truth: pictures, vocabulary and boxes.
        found: detections of those pictures.
        max_detections: best ones of a picture and category that count.
    """
    limits = tuple(limit for limit in LIMITS[:-1] if limit < max_detections)
    boxes = replace(truth.truth, is_ignored=np.zeros(len(truth.truth.areas), bool))  # crowds alone are, as pycocotools
    matches = match(boxes, found, max_detections)
    curves = measure(matches, len(truth.categories), (*limits, max_detections))
    return CocoResult(truth.categories, curves, _by_category(matches, len(truth.categories), truth.num_pictures))


def _by_category(matches: Matches, num_categories: int, num_pictures: int) -> tuple[CategoryMatches, ...]:
    is_wanted = unpack(matches.wanted)[_ALL_AREAS, 0]
    truths = split_by_category(matches.truth.categories, num_categories)
    return tuple(
        CategoryMatches(
            images=matches.found.pictures[ranking],
            matched=unpack(matches.matched[ranking])[_ALL_AREAS].copy(),  # not a view that keeps all areas
            ignored=unpack(matches.ignored[ranking])[_ALL_AREAS].copy(),
            truth_per_image=np.bincount(matches.truth.pictures[part][is_wanted[part]], minlength=num_pictures),
        )
        for ranking, part in zip(matches.rankings(num_categories), truths, strict=True)
    )
