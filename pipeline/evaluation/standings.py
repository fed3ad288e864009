"""The leading measure of each model on a benchmark, with its confidence interval.

Pictures are resampled (``bootstrap``); all models of a benchmark on the same draws, so that gains are paired. LVIS has
values without intervals: its protocol keeps the best detections of a category over all pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.bootstrap import Interval, compare, interval, resampled_ap, resampled_share
from pipeline.evaluation.coco import CocoResult
from pipeline.evaluation.flickr30k import GroundingResult, is_of_part
from pipeline.evaluation.judged import Judged, categories_of_part, category_part, pairs
from pipeline.evaluation.lvis import FREQUENCIES, LvisResult
from pipeline.evaluation.scoring import ALL, LEADING, Result

CONCEPTS = ("novel", "base")
"""Kinds of concepts in the order in which they are reported: what a student is trained for comes first."""


@dataclass(frozen=True)
class Standing:
    """The leading measure of one part of a benchmark, in percent."""

    task: str
    source: str
    part: str
    measure: str
    models: dict[str, Interval]
    gains: dict[tuple[str, str], Interval]
    """Gain of the first of two models over the second."""
    is_resampled: bool
    """Whether the intervals are more than the values alone."""


def standings(judged: Judged, draws: np.ndarray) -> list[Standing]:
    """Return where the models stand on each part of a benchmark; nothing where there is no model or no truth.

    Args:
        judged: a benchmark.
        draws: (1 + samples, rows), see ``draw_pictures``.
    """
    found = []
    for part in _parts(judged):
        samples = {model: _samples(judged, result, part, draws) for model, result in judged.results.items()}
        found.append(
            Standing(
                task=judged.benchmark.task,
                source=judged.benchmark.source,
                part=part or ALL,
                measure=LEADING[judged.benchmark.task],
                models={model: _rounded(interval(values)) for model, values in samples.items()},
                gains={pair: _rounded(compare(*(samples[each] for each in pair))) for pair in pairs(judged.models)},
                is_resampled=all(len(values) > 1 for values in samples.values()),
            )
        )
    return found


def _rounded(value: Interval) -> Interval:
    """Return an interval in two digits, as the metrics are, so that both read the same in one."""
    return Interval(**value.to_dict())


def _parts(judged: Judged) -> list[str | None]:
    """Return the parts that are reported, the most telling first; None is all of it."""
    if not judged.results:
        return []
    result = next(iter(judged.results.values()))
    with_truth = _with_truth(result)
    if not with_truth:
        return []
    names = frozenset[str]().union(*with_truth)
    if isinstance(result, LvisResult):
        return [None, *(name for name in FREQUENCIES.values() if name in names)]
    if names == set(CONCEPTS):
        return list(CONCEPTS)
    return [None]  # also types of phrases, which the table has


def _with_truth(result: Result) -> Sequence[AbstractSet[str]]:
    """Return what each category, phrase or expression that there is something of counts to."""
    if isinstance(result, CocoResult | LvisResult):
        present = result.curves.by_category() >= 0
        return [{category_part(each)} for each, there in zip(result.categories, present, strict=True) if there]
    return result.parts


def _samples(judged: Judged, result: Result, part: str | None, draws: np.ndarray) -> np.ndarray:
    """Return (1 + samples,) of the leading measure in percent, the measured value first."""
    if isinstance(result, CocoResult):
        return resampled_ap(result, draws, part)
    if isinstance(result, LvisResult):
        return np.array([100 * (result.curves.average_precision(categories=categories_of_part(result, part)) or 0.0)])
    ranks = result.any_box if isinstance(result, GroundingResult) else result.by_iou
    chosen = is_of_part(result.parts, part)
    counts = [sum(bool(phrase.boxes) for phrase in record.phrases) for record in judged.records]
    rows = np.repeat(np.arange(len(judged.records)), counts)
    return resampled_share(ranks[chosen] < 1, rows[chosen], draws)
