"""From matches to precision over recall, and from there to the averages that benchmarks report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.matching import AREAS, IOU_THRESHOLDS, Matches, split_by_category, unpack

RECALLS = np.linspace(0.0, 1.0, 101)
_BY_IOU = {"AP": None, "AP50": 0.5, "AP75": 0.75}


@dataclass(frozen=True)
class Curves:
    """Precision and recall of every category, -1 where it has no ground truth (T thresholds, K categories, A areas)."""

    precision: np.ndarray
    """(T, 101 recalls, K, A), of as many detections as the last of ``limits`` says."""
    recall: np.ndarray
    """(T, K, A, limits), the highest recall that is reached."""
    limits: tuple[int | None, ...]
    """Best detections of a picture and category that count, rising; None for all."""

    def average_precision(
        self, iou: float | None = None, area: str = "all", categories: Sequence[int] | None = None
    ) -> float | None:
        """Return the mean in [0, 1] over the categories that have ground truth; None if none has.

        Args:
            iou: one threshold; None for all ten.
            area: one of ``AREAS``.
            categories: numbers of those that count; None for all.
        """
        values = self.precision if iou is None else self.precision[[np.abs(IOU_THRESHOLDS - iou).argmin()]]
        return _mean(_of(values[:, :, :, AREAS.index(area)], categories))

    def precisions(self, categories: Sequence[int] | None = None) -> dict[str, float | None]:
        """Return ``AP``, ``AP50``, ``AP75`` and by area ``APs``, ``APm``, ``APl``, see ``average_precision``."""
        values = {name: self.average_precision(iou, categories=categories) for name, iou in _BY_IOU.items()}
        by_area = {f"AP{area[0]}": self.average_precision(area=area, categories=categories) for area in AREAS[1:]}
        return values | by_area

    def average_recall(
        self, limit: int = -1, area: str = "all", categories: Sequence[int] | None = None
    ) -> float | None:
        """Return the mean of the highest recalls as ``average_precision`` does, for one of ``limits`` by its place."""
        return _mean(_of(self.recall[:, :, AREAS.index(area), limit], categories))

    def by_category(self) -> np.ndarray:
        """Return (K,) AP in [0, 1] of every category over objects of any area, -1 where it has no ground truth."""
        values = self.precision[..., AREAS.index("all")]
        return np.where(values[0, 0] < 0, -1.0, values.mean((0, 1)))

    def precision_curve(self, categories: Sequence[int] | None = None) -> np.ndarray:
        """Return (101,) precision over recall at IoU 0.5, averaged over categories as ``average_precision`` is."""
        values = _of(self.precision[0, :, :, AREAS.index("all")], categories)
        present = values[:, values[0] > -1]
        return present.mean(1) if present.shape[1] else np.zeros(len(RECALLS))


def measure(matches: Matches, num_categories: int, limits: tuple[int | None, ...] = (None,)) -> Curves:
    """Compute the curves of all categories.

    Args:
        matches: of all categories.
        num_categories: size of the vocabulary.
        limits: see ``Curves``; the last is the one that was matched with.
    """
    thresholds, areas = len(IOU_THRESHOLDS), len(AREAS)
    precision = np.full((thresholds, len(RECALLS), num_categories, areas), -1.0)
    recall = np.full((thresholds, num_categories, areas, len(limits)), -1.0)
    wanted = split_by_category(matches.truth.categories, num_categories)
    for k, (truth, ranking) in enumerate(zip(wanted, matches.rankings(num_categories), strict=True)):
        num_truths = unpack(matches.wanted[truth])[:, 0].sum(-1)  # the same at all thresholds
        present = num_truths > 0
        if not present.any():
            continue
        counted = ~matches.ignored[ranking]
        hits = matches.matched[ranking] & counted
        precision[:, :, k, present] = _precision(hits, counted, num_truths)[present].transpose(1, 2, 0)
        for m, limit in enumerate(limits):
            within = hits if limit is None else hits[matches.ranks[ranking] < limit]
            found = unpack(within).sum(-1)  # (A, T)
            recall[:, k, present, m] = (found[present] / num_truths[present, None]).T
    return Curves(precision, recall, limits)


def _precision(hits: np.ndarray, counted: np.ndarray, num_truths: np.ndarray) -> np.ndarray:
    """Return (A, T, 101) the highest precision at each recall or any beyond, 0 where the recall is not reached.

    Args:
        hits: (D,) uint64 cases of a ranking in which a detection is a hit.
        counted: (D,) uint64 cases in which it is a hit or a false alarm.
        num_truths: (A,) truths to be found.
    """
    # Precision peaks at hits, and a recall is first reached at one: nothing between them has to be looked at.
    rows = np.flatnonzero(hits)
    hit = unpack(hits[rows])  # (A, T, rows)
    num_hits = np.cumsum(hit, -1)
    seen = np.cumsum(unpack(counted), -1, dtype=np.int32)[..., rows]
    by_hit = np.zeros((*hit.shape[:2], len(rows) + 1))  # precision at each hit, then zeros
    a, t, _ = np.nonzero(hit)
    by_hit[a, t, num_hits[hit] - 1] = num_hits[hit] / (seen[hit] + np.spacing(1))  # as the evaluators round it
    # The highest precision at this hit or any later one.
    by_hit = np.maximum.accumulate(by_hit[..., ::-1], -1)[..., ::-1]
    curves = np.zeros((*hit.shape[:2], len(RECALLS)))
    for area, count in enumerate(num_truths):
        first_hit = np.searchsorted(np.arange(1, count + 1) / max(count, 1), RECALLS)
        curves[area] = by_hit[area][:, np.minimum(first_hit, len(rows))]
    return curves


def _of(values: np.ndarray, categories: Sequence[int] | None) -> np.ndarray:
    return values if categories is None else values[..., np.asarray(categories, np.int64)]


def _mean(values: np.ndarray) -> float | None:
    present = values[values > -1]
    return float(present.mean()) if present.size else None
