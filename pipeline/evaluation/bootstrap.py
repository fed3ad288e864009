"""Confidence intervals: how much a metric would vary over other pictures of the same kind.

Pictures are drawn with replacement, as often as there are; detections were matched to ground truth once, so a resampled
average precision only counts each picture's matches as often as the picture was drawn. Two models are compared on the
same draws, which leaves the spread of their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.coco import CategoryMatches, CocoResult

RECALLS = np.linspace(0.0, 1.0, 101)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the range that holds 95 % of its resamplings."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON, two digits."""
        return {"value": round(self.value, 2), "low": round(self.low, 2), "high": round(self.high, 2)}


def draw_pictures(num_pictures: int, num_samples: int, seed: int) -> np.ndarray:
    """Return (samples, pictures) int64, how often each picture is drawn; the first row draws each once."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_pictures, np.full(num_pictures, 1 / num_pictures), size=num_samples)
    return np.concatenate([np.ones((1, num_pictures), np.int64), draws])


def resampled_ap(result: CocoResult, draws: np.ndarray, split: str | None = None) -> np.ndarray:
    """Return (samples,) AP in percent of the categories of a split; categories that a sample lacks are left out.

    For the first row of ``draw_pictures`` it is exactly COCOeval's number.
    """
    chosen = [
        matches
        for category, matches in zip(result.categories, result.matches, strict=True)
        if split is None or category.split == split
    ]
    if not chosen:
        return np.zeros(len(draws))
    values = np.stack([_category_ap(matches, draws) for matches in chosen])  # (K, samples)
    present = values >= 0
    sums = np.where(present, values, 0.0).sum(0)
    return np.asarray(100 * sums / np.maximum(present.sum(0), 1))


def interval(values: np.ndarray) -> Interval:
    """Return the first value with the percentile interval of the others."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail]) if len(values) > 1 else (values[0], values[0])
    return Interval(float(values[0]), float(low), float(high))


def compare(left: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray) -> Interval:
    """Return the difference of two metrics that were resampled on the same draws."""
    return interval(np.asarray(left) - np.asarray(right))


def _category_ap(matches: CategoryMatches, draws: np.ndarray) -> np.ndarray:
    """Return (samples,) AP in [0, 1], -1 where a sample has no ground truth."""
    truth = draws @ matches.truth_per_image  # (S,)
    weights = draws[:, matches.images]  # (S, D)
    total = np.zeros(len(draws))
    for matched, ignored in zip(matches.matched, matches.ignored, strict=True):
        hits = np.cumsum(weights * (matched & ~ignored), 1)
        misses = np.cumsum(weights * (~matched & ~ignored), 1)
        precision = hits / np.maximum(hits + misses, 1e-12)
        # The highest precision at this recall or any higher one.
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        recall = hits / np.maximum(truth, 1)[:, None]
        total += _interpolate(recall, precision)
    return np.where(truth > 0, total / len(matches.matched), -1.0)


def _interpolate(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return (S,) mean precision at 101 recalls, 0 beyond the highest recall reached."""
    if recall.shape[1] == 0:
        return np.zeros(len(recall))
    padded = np.concatenate([precision, np.zeros((len(precision), 1))], 1)
    values = np.empty(len(recall))
    for i in range(len(recall)):  # a row at a time: searchsorted works on one sorted array
        values[i] = padded[i, np.searchsorted(recall[i], RECALLS, side="left")].mean()
    return values
