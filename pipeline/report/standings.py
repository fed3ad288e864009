"""Where the models stand on every benchmark, by its leading measure, and how sure that is.

Pictures are resampled (``bootstrap``); all models of a benchmark on the same draws, so that gains are paired. LVIS has
values without intervals: its protocol keeps the best detections of a category over all pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.bootstrap import Interval, compare, interval, resampled_ap, resampled_share
from pipeline.evaluation.coco import CocoResult
from pipeline.evaluation.flickr30k import GroundingResult, is_of_part
from pipeline.evaluation.lvis import FREQUENCIES, LvisResult
from pipeline.evaluation.scoring import ALL, LEADING, Result
from pipeline.report.judged import Judged, categories_of_part, category_part, pairs

CONCEPTS = ("novel", "base")
"""In the order in which they are reported: what a student is trained for comes first."""


@dataclass(frozen=True)
class Standing:
    """The leading measure of one part of a benchmark, in percent."""

    task: str
    source: str
    part: str
    measure: str
    models: dict[str, Interval]
    gains: dict[tuple[str, str], Interval]
    """Of the first of two models over the second."""
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


def summarise(found: Sequence[Standing]) -> dict[str, Any]:
    """Return the numbers for JSON: ``models`` and ``gains``, each task → source → part → who → value, low, high."""
    summary: dict[str, Any] = {"models": {}, "gains": {}}
    for each in found:
        gains = {f"{one}_over_{other}": value for (one, other), value in each.gains.items()}
        for name, values in (("models", each.models), ("gains", gains)):
            if values:
                source = summary[name].setdefault(each.task, {}).setdefault(each.source, {})
                source[each.part] = {who: _to_dict(value, each) for who, value in values.items()}
    return summary


def headline(found: Sequence[Standing]) -> list[str]:
    """Return what the run shows in two sentences, from its first two standings; none where there are none."""
    with_source = len({each.source for each in found}) > 1
    return [_sentence(each, with_source, is_first=number == 0) for number, each in enumerate(found[:2])]


def _rounded(value: Interval) -> Interval:
    """Return an interval in two digits, as the metrics are, so that both read the same in one."""
    return Interval(**value.to_dict())


def _to_dict(value: Interval, standing: Standing) -> dict[str, float]:
    return value.to_dict() if standing.is_resampled else {"value": value.value}


def _sentence(standing: Standing, with_source: bool, is_first: bool) -> str:
    focus = next(iter(standing.gains), (next(reversed(standing.models)), ""))[0]
    value = standing.models[focus]
    text = f"{_where(standing, with_source)} {_called(focus)} reaches {value.value:.1f} {standing.measure}"
    name = "95 % interval " if is_first else ""  # of the first number with one
    if not standing.gains:
        return text + (f" ({name}{value.low:.1f} to {value.high:.1f})." if standing.is_resampled else ".")
    clauses = []
    for (_, other), gain in standing.gains.items():
        chance = ", may be chance" if gain.low <= 0 <= gain.high else ""
        note = f" ({name}{signed(gain.low)} to {signed(gain.high)}{chance})" if standing.is_resampled else ""
        clauses.append(f"{signed(gain.value)} {'over' if gain.value >= 0 else 'against'} {_called(other)}{note}")
        name = ""
    return f"{text}: {', '.join(clauses[:-1])}{' and ' if clauses[1:] else ''}{clauses[-1]}."


def _where(standing: Standing, with_source: bool) -> str:
    source = standing.source if with_source or standing.part == ALL else ""
    if standing.part == ALL:
        return f"On {source}"
    return f"On {standing.part} concepts{' of ' if source else ''}{source}"


def _called(model: str) -> str:
    return f"the {model}" if model in ("teacher", "student", "control") else model


def signed(value: float) -> str:
    """Return a number with its sign, one digit."""
    return minus(f"{value:+.1f}")


def minus(text: str) -> str:
    """Return a number with a minus sign as typesetters write it, zero without any sign before it but ``+``."""
    is_zero = not text.strip("+-0.%")
    return text.replace("-", "+" if is_zero else "−")


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
