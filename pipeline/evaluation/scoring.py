"""What a model's predictions score on a benchmark, by the protocol that judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.benchmark import Benchmark, is_federated
from pipeline.evaluation.coco import CocoResult, evaluate_coco
from pipeline.evaluation.detection_set import truth_and_found
from pipeline.evaluation.flickr30k import GroundingResult, evaluate_grounding
from pipeline.evaluation.lvis import FIXED_AP, STANDARD, LvisResult, evaluate_federated
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.refcoco import ReferringResult, evaluate_referring
from pipeline.store.records import Category

Result = CocoResult | LvisResult | GroundingResult | ReferringResult
Metrics = dict[str, dict[str, float]]
"""Part of the benchmark to measure to value, in percent with two digits; what has no ground truth is left out."""
ALL = "all"
PART_MEASURES = ("AP", "AP50")
"""Measures of base and of novel categories; all categories together have COCO's twelve."""
LEADING = {"detection": "AP", "grounding": "R@1", "referring": "P@1"}
"""The measure of each task that stands for the others."""


@dataclass(frozen=True)
class Score:
    """What predictions are worth."""

    metrics: Metrics
    """``all``, and ``base`` and ``novel`` or the types of phrases; LVIS has ``fixed`` and ``standard``."""
    curves: Mapping[str, np.ndarray]
    """Part to (101,) precision at IoU 0.5 over recall, of detection."""


def score(benchmark: Benchmark, predictions: Predictions) -> Score:
    """Compare predictions with ground truth.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    records: list[Any] = benchmark.read()
    categories = benchmark.categories()
    result = evaluate(benchmark.task, records, categories, predictions)
    if isinstance(result, LvisResult):
        standard = evaluate_federated(*truth_and_found(records, categories, predictions), STANDARD)
        metrics = {"fixed": result.metrics(), "standard": standard.metrics()}
        return Score(_percent(metrics), {"fixed": result.curves.precision_curve()})
    if isinstance(result, CocoResult):
        splits = sorted({category.split for category in result.categories})
        parts = splits if len(splits) > 1 else []  # base and novel; most vocabularies have no such thing
        of_parts = {part: {name: result.metrics(part)[name] for name in PART_MEASURES} for part in parts}
        curves = {part: result.curve(part) for part in parts} or {ALL: result.curve()}
        return Score(_percent({ALL: result.metrics(), **of_parts}), curves)
    types = sorted(frozenset[str]().union(*result.parts))
    return Score(_percent({ALL: result.metrics(), **{part: result.metrics(part) for part in types}}), {})


def evaluate(task: str, records: Sequence[Any], categories: Sequence[Category], predictions: Predictions) -> Result:
    """Compare predictions with ground truth by the protocol that the leading measure is of: of LVIS's two, fixed AP.

    Args:
        task: one of ``benchmark.TASKS``.
        records: all rows of the benchmark, in order.
        categories: the vocabulary of detection.
        predictions: of these rows.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    if task == "grounding":
        return evaluate_grounding(records, predictions)
    if task == "referring":
        return evaluate_referring(records, predictions)
    truth, found = truth_and_found(records, categories, predictions)
    return evaluate_federated(truth, found, FIXED_AP) if is_federated(categories) else evaluate_coco(truth, found)


def leading(task: str, metrics: Metrics) -> dict[str, float]:
    """Return the leading measure of every part; of LVIS's two protocols that of fixed AP."""
    name = LEADING[task]
    return {part: values[name] for part, values in metrics.items() if name in values and part != "standard"}


def _percent(metrics: Mapping[str, Mapping[str, float | None]]) -> Metrics:
    return {
        part: {name: round(100 * value, 2) for name, value in values.items() if value is not None}
        for part, values in metrics.items()
        if any(value is not None for value in values.values())
    }
