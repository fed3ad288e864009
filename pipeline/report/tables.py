"""The tables of the report: all measures beside published ones, and every category."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import BenchmarkError
from pipeline.evaluation.benchmark import TASKS
from pipeline.evaluation.gain import GAIN
from pipeline.evaluation.judged import Judged, category_part, pairs
from pipeline.evaluation.odinw import DATA_SETS
from pipeline.evaluation.published import COLUMNS, PUBLISHED
from pipeline.evaluation.results import LEVELS, Key, leaves
from pipeline.evaluation.scoring import ALL, LEADING
from pipeline.report.labels import read_json
from pipeline.store.storage import Place

MISSING = "missing"
"""The part of a benchmark that counts its rows without a readable picture."""
DATA_SETS_COUNT = "data_sets"
"""What ODinW's means are means of."""
_EVALUATE = "dvc repro evaluate"


@dataclass(frozen=True)
class MeasureRow:
    """One measure of a part of a benchmark."""

    split: str
    task: str
    source: str
    part: str
    measure: str
    values: dict[str, float]
    """By model."""
    published: Mapping[str, float]
    """By published model."""

    @property
    def is_leading(self) -> bool:
        """Whether it stands for its benchmark, or is what others report."""
        return bool(self.published) or (self.measure == LEADING[self.task] and self.part != "standard")


@dataclass(frozen=True)
class CategoryRow:
    """AP in percent of one category."""

    name: str
    part: str
    values: dict[str, float]
    """By model."""
    gain: float | None
    """Of the first pair of models; None for one model alone."""


def read_metrics(path: Place) -> dict[str, Any]:
    """Return split → task → source → part → measure → value as ``glip evaluate`` wrote it, nothing without a file.

    Raises:
        BenchmarkError: the file holds anything else.
    """
    metrics = {name: each for name, each in read_json(path, _EVALUATE).items() if name != GAIN}
    if not all(len(key) == len(LEVELS) and isinstance(value, int | float) for key, value in leaves(metrics)):
        raise BenchmarkError(
            f"{path}: not {' → '.join(LEVELS)} → number; written by an older version or broken; run: {_EVALUATE}"
        )
    return metrics


def measure_rows(metrics: Mapping[str, Any]) -> list[MeasureRow]:
    """Return all measures, benchmark by benchmark; those that count something are no measures.

    Args:
        metrics: model → split → task → source → part → measure → value.
    """
    rows = [
        MeasureRow(*key, found, PUBLISHED.get(key[2:], {}))
        for key, found in _by_key(metrics).items()
        if not _is_count(key)
    ]
    return sorted(rows, key=_order)


def count_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Return what has to be known of some measures: rows without a picture, and means of some of ODinW's data sets.

    Args:
        metrics: see ``measure_rows``.
    """
    notes = []
    for (*benchmark, part, measure), found in _by_key(metrics).items():
        name, most, least = "/".join(benchmark), max(found.values()), min(found.values())
        if part == MISSING and most:
            notes.append(f"{name}: {most:,} rows without a readable picture count as empty.")
        if measure == DATA_SETS_COUNT and least < len(DATA_SETS):
            notes.append(f"{name}: the mean of {least} of {len(DATA_SETS)} data sets.")
    return notes


def published_columns(rows: Sequence[MeasureRow]) -> list[str]:
    """Return which published models there are numbers of in some rows."""
    return [column for column in COLUMNS if any(column in row.published for row in rows)]


def category_rows(judged: Judged) -> list[CategoryRow]:
    """Return AP of every category that is there, largest gain first; of one model alone, best first."""
    results = judged.by_category
    if not results:
        return []
    ap = {model: 100 * each.curves.by_category() for model, each in results.items()}
    categories = next(iter(results.values())).categories
    pair = next(iter(pairs(judged.models)), None)
    rows = [
        CategoryRow(
            name=category.name,
            part=category_part(category),
            values={model: round(float(values[k]), 1) for model, values in ap.items()},
            gain=round(float(ap[pair[0]][k] - ap[pair[1]][k]), 1) + 0.0 if pair else None,
        )
        for k, category in enumerate(categories)
        if all(values[k] >= 0 for values in ap.values())
    ]
    return sorted(rows, key=lambda row: (-_extent(row), row.name))


def _extent(row: CategoryRow) -> float:
    return next(iter(row.values.values())) if row.gain is None else row.gain


def _is_count(key: Key) -> bool:
    *_, part, measure = key
    return part == MISSING or measure == DATA_SETS_COUNT


def _by_key(metrics: Mapping[str, Any]) -> dict[Key, dict[str, float]]:
    """Return the values of all models side by side."""
    values: dict[Key, dict[str, float]] = {}
    for model, of_model in metrics.items():
        for key, value in leaves(of_model):
            values.setdefault(key, {})[model] = value
    return values


def _order(row: MeasureRow) -> tuple[Any, ...]:
    """Sort tasks as they are always named, the whole before its parts, and R@5 before R@10."""
    digits = tuple(int(number) for number in re.findall(r"\d+", row.measure))
    tasks = list(TASKS)
    task = tasks.index(row.task) if row.task in tasks else len(tasks)
    return row.split, task, row.source, row.part != ALL, row.part, re.sub(r"\d+", "", row.measure), digits
