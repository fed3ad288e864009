"""The tables of the report: all measures beside published ones, and every category."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.benchmark import TASKS
from pipeline.evaluation.coco import CocoResult
from pipeline.evaluation.lvis import LvisResult
from pipeline.evaluation.published import COLUMNS, PUBLISHED
from pipeline.evaluation.report.judged import Judged, category_part, pairs
from pipeline.evaluation.scoring import ALL, LEADING

_Key = tuple[str, str, str, str, str]
"""Split, task, source, part and measure."""


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


def measure_rows(metrics: Mapping[str, Any]) -> list[MeasureRow]:
    """Return all measures, benchmark by benchmark.

    Args:
        metrics: model → split → task → source → part → measure → value.
    """
    values: dict[_Key, dict[str, float]] = {}
    for model, of_model in metrics.items():
        for key, value in _leaves(of_model):
            values.setdefault(key, {})[model] = value
    rows = [MeasureRow(*key, found, PUBLISHED.get(key[2:], {})) for key, found in values.items()]
    return sorted(rows, key=_order)


def published_columns(rows: Sequence[MeasureRow]) -> list[str]:
    """Return which published models there are numbers of in some rows."""
    return [column for column in COLUMNS if any(column in row.published for row in rows)]


def category_rows(judged: Judged) -> list[CategoryRow]:
    """Return AP of every category that is there, largest gain first; of one model alone, best first."""
    results = {model: each for model, each in judged.results.items() if isinstance(each, CocoResult | LvisResult)}
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


def _leaves(metrics: Mapping[str, Any]) -> Iterator[tuple[_Key, float]]:
    for split, tasks in metrics.items():
        for task, sources in tasks.items():
            for source, parts in sources.items():
                for part, measures in parts.items():
                    for name, value in measures.items():
                        yield (split, task, source, part, name), value


def _order(row: MeasureRow) -> tuple[Any, ...]:
    """Sort tasks as they are always named, the whole before its parts, and R@5 before R@10."""
    digits = tuple(int(number) for number in re.findall(r"\d+", row.measure))
    tasks = list(TASKS)
    task = tasks.index(row.task) if row.task in tasks else len(tasks)
    return row.split, task, row.source, row.part != ALL, row.part, re.sub(r"\d+", "", row.measure), digits
