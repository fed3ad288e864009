"""Results of a model on all benchmarks: nested metrics, a table beside published numbers, curves."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.benchmark import Benchmark, predictions_of
from pipeline.evaluation.odinw import averages
from pipeline.evaluation.predictions import read_missing, read_predictions
from pipeline.evaluation.published import COLUMNS, PUBLISHED
from pipeline.evaluation.scoring import ALL, Score, leading, score
from pipeline.store.image_roots import HOW_TO_ALLOW, OUTSIDE
from pipeline.store.storage import Place

logger = logging.getLogger(__name__)

Key = tuple[str, str, str, str, str]
"""See ``LEVELS``."""
LEVELS = ("split", "task", "source", "part", "measure")
"""Levels of the nested metrics that ``collect`` returns."""


def score_predictions(benchmark: Benchmark, out: Place) -> Score:
    """Compare the predictions below a folder with ground truth; rows whose picture cannot be read count as empty.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    places = predictions_of(benchmark, out)
    missing = read_missing(places)
    if missing:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(missing.values()).items()))
        logger.warning(
            "%s: %d rows count as empty, for their pictures cannot be read: %s%s",
            benchmark.name,
            len(missing),
            reasons,
            f"; {HOW_TO_ALLOW}" if OUTSIDE in missing.values() else "",
        )
    found = score(benchmark, read_predictions(places, benchmark.rows))
    if missing:
        found.metrics["missing"] = {"rows": len(missing)}
    return found


def collect(scores: Sequence[tuple[Benchmark, Score]]) -> dict[str, Any]:
    """Return split → task → source → part → measure; the means of ODinW stand among the sources of detection."""
    metrics: dict[str, Any] = {}
    for benchmark, each in scores:
        metrics.setdefault(benchmark.split, {}).setdefault(benchmark.task, {})[benchmark.source] = each.metrics
    for tasks in metrics.values():
        detection = tasks.get("detection", {})
        values = {source: parts[ALL]["AP"] for source, parts in detection.items() if "AP" in parts.get(ALL, {})}
        for name, mean in averages(values).items():
            detection[name] = {ALL: {"AP": round(mean.ap, 2), "data_sets": mean.data_sets}}
    return metrics


def leaves(metrics: Any, *above: str) -> Iterator[tuple[Any, Any]]:
    """Yield key (see ``LEVELS``) and value of every measure; a key is shorter where metrics are not nested so."""
    if isinstance(metrics, dict) and len(above) < len(LEVELS):
        for name, each in metrics.items():
            yield from leaves(each, *above, name)
    else:
        yield above, metrics


def measure_table(metrics: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """Yield the names of columns and a row for every measure, with what was published of the same."""
    yield *LEVELS, "value", *COLUMNS
    for key, value in leaves(metrics):
        published = PUBLISHED.get(key[2:], {})
        yield *key, value, *(published.get(column) for column in COLUMNS)


def curve_table(scores: Sequence[tuple[Benchmark, Score]]) -> Iterator[Sequence[Any]]:
    """Yield the names of columns and 101 rows: recall, and the precision of each part of detection at IoU 0.5."""
    detection = [(benchmark, each) for benchmark, each in scores if benchmark.task == "detection"]
    columns = {
        part if len(detection) == 1 else f"{benchmark.source} {part}": curve.round(4).tolist()
        for benchmark, each in detection
        for part, curve in each.curves.items()
    }
    yield "recall", *columns
    yield from zip(np.linspace(0, 1, 101).round(2).tolist(), *columns.values(), strict=True)


def figures(scores: Sequence[tuple[Benchmark, Score]]) -> str:
    """Return the leading measure of every benchmark, part by part."""
    parts = (
        (benchmark.name, [f"{value:.1f} {part}" for part, value in leading(benchmark.task, each.metrics).items()])
        for benchmark, each in scores
    )
    return "; ".join(f"{name} {', '.join(values)}" for name, values in parts)
