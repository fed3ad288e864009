"""Confidence intervals: how much a metric would vary over other pictures of the same kind.

Pictures are drawn with replacement, as often as there are, each with all rows that are about it, such as its captions.
Detections were matched to ground truth once, so a resampled average precision only counts each row's matches as often
as the row was drawn. Two models are compared on the same draws, which leaves the spread of their difference.

Average precision over few boxes a category rises when pictures repeat: copies of a hit stand side by side in the
ranking and lift the precision that is read off. Its resamplings therefore scatter around a higher value than the one
that was measured, and their plain percentiles may leave that value out. What carries over is their scatter: an interval
is the measured value plus the percentiles of the resamplings around their own mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.coco import CategoryMatches, CocoResult
from pipeline.evaluation.curves import RECALLS

CONFIDENCE = 0.95
_BLOCK_CELLS = 4_000_000
"""Draws times detections that are worked on at once, some hundred megabytes."""


@dataclass(frozen=True)
class Interval:
    """A value and the range that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON, two digits."""
        return {"value": round(self.value, 2), "low": round(self.low, 2), "high": round(self.high, 2)}


def draw_pictures(pictures: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Return (1 + samples, rows) int64, how often each row's picture is drawn; the first sample draws each once.

    Args:
        pictures: (rows,) int64 number of each row's picture, from 0 without gaps.
        num_samples: resamplings.
        seed: of the draws.
    """
    num_pictures = int(pictures.max()) + 1
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(num_pictures, np.full(num_pictures, 1 / num_pictures), size=num_samples)
    return np.concatenate([np.ones((1, num_pictures), np.int64), draws])[:, pictures]


def resampled_ap(result: CocoResult, draws: np.ndarray, split: str | None = None) -> np.ndarray:
    """Return (samples,) AP in percent of the categories of a split; categories that a sample lacks are left out.

    For the first sample of ``draw_pictures`` it is COCOeval's number.
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


def resampled_share(hits: np.ndarray, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return (1 + samples,) which share of questions is answered right, in percent; samples without any are left out.

    Args:
        hits: (Q,) bool, right or not.
        rows: (Q,) number of the row that each was asked about.
        draws: see ``draw_pictures``; there is a question about some row.
    """
    right, asked = (
        draws @ np.bincount(rows, weights, minlength=draws.shape[1]) for weights in (hits, np.ones(len(hits)))
    )
    return np.asarray(100 * right[asked > 0] / asked[asked > 0])


def interval(values: np.ndarray) -> Interval:
    """Return the interval of a metric in percent: its value, then its resamplings."""
    found = _centred(values)
    return Interval(found.value, max(found.low, 0.0), min(found.high, 100.0))


def compare(left: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray) -> Interval:
    """Return the difference of two metrics that were resampled on the same draws."""
    return _centred(np.asarray(left) - np.asarray(right))


def _centred(values: np.ndarray) -> Interval:
    value = float(values[0])
    if len(values) == 1:
        return Interval(value, value, value)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[1:] - values[1:].mean(), [tail, 1 - tail])
    return Interval(value, value + min(float(low), 0.0), value + max(float(high), 0.0))


def _category_ap(matches: CategoryMatches, draws: np.ndarray) -> np.ndarray:
    """Return (samples,) AP in [0, 1], -1 where a sample has no ground truth."""
    size = max(1, _BLOCK_CELLS // max(1, len(matches.images)))
    return np.concatenate([_block_ap(matches, draws[i : i + size]) for i in range(0, len(draws), size)])


def _block_ap(matches: CategoryMatches, draws: np.ndarray) -> np.ndarray:
    truth = draws @ matches.truth_per_image  # (S,)
    weights = draws[:, matches.images]  # (S, D)
    counted, seen = np.ones(len(matches.images), bool), np.cumsum(weights, 1)
    total = np.zeros(len(draws))
    for matched, ignored in zip(matches.matched, matches.ignored, strict=True):
        if not np.array_equal(counted, ~ignored):  # only crowds differ from one threshold to the next
            counted, seen = ~ignored, np.cumsum(weights * ~ignored, 1)
        # Precision peaks at hits, so the misses between them need no precision of their own.
        hit = np.flatnonzero(matched & counted)
        total += _mean_precision(np.cumsum(weights[:, hit], 1), seen[:, hit], truth)
    return np.where(truth > 0, total / len(matches.matched), -1.0)


def _mean_precision(hits: np.ndarray, seen: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return (S,) mean precision at 101 recalls, 0 beyond the highest recall reached.

    Args:
        hits: (S, H) hits down to and with each hit of the ranking.
        seen: (S, H) detections down to there.
        truth: (S,) ground-truth boxes.
    """
    if hits.shape[1] == 0:
        return np.zeros(len(truth))
    precision = hits / np.maximum(seen, 1)
    # The highest precision at this recall or any higher one.
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    reached = np.searchsorted(RECALLS, hits / np.maximum(truth, 1)[:, None], side="right")
    return np.asarray((np.diff(reached, axis=1, prepend=0) * envelope).sum(1) / len(RECALLS))
