"""What the models of a run found in a benchmark, and who is compared with whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.evaluation.benchmark import TASKS, Benchmark, predictions_of
from pipeline.evaluation.coco import CocoResult
from pipeline.evaluation.lvis import FREQUENCIES, LvisResult
from pipeline.evaluation.predictions import Predictions, read_predictions
from pipeline.evaluation.scoring import Result, evaluate
from pipeline.store.records import Category
from pipeline.store.storage import Place, exists, list_files

SHOWN_SCORE = 0.3
"""Detections below it are neither drawn nor counted as confusions: they would hardly be shown to anybody."""


@dataclass(frozen=True)
class Judged:
    """A benchmark with the results of each model that has predictions for it."""

    benchmark: Benchmark
    records: list[Any]
    categories: list[Category]
    """Categories of a detection benchmark; empty in other tasks."""
    predictions: dict[str, Predictions]
    results: dict[str, Result]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order in which they were asked for."""
        return tuple(self.predictions)

    @property
    def by_category(self) -> dict[str, CocoResult | LvisResult]:
        """Model to result where categories are detected; empty in other tasks."""
        return {model: each for model, each in self.results.items() if isinstance(each, CocoResult | LvisResult)}

    @cached_property
    def pictures(self) -> np.ndarray:
        """(rows,) int64 number of the picture that each row is about."""
        return self.benchmark.picture_numbers()

    @cached_property
    def rows_found(self) -> dict[str, dict[int, np.ndarray]]:
        """Model to row to the positions of its boxes in the predictions; rows without any are absent."""
        return {model: each.by_number() for model, each in self.predictions.items()}


def has_predictions(predictions: Place, model: str, split: str) -> bool:
    """Tell whether a folder of MODEL/SPLIT/TASK has any of a model for a split."""
    return any(list_files(predictions / model / split / task, "part-*.parquet") for task in TASKS)


def judge(benchmark: Benchmark, predictions: Place, models: Sequence[str]) -> Judged:
    """Compare with the truth what models predicted for a benchmark; models without predictions are left out.

    Args:
        benchmark: its records are read.
        predictions: folder of MODEL/SPLIT/TASK.
        models: names of folders.

    Raises:
        ShardError: predictions are broken.
        BenchmarkError: predictions belong to other rows.
    """
    records: list[Any] = benchmark.read()
    categories = benchmark.categories()
    found: dict[str, Predictions] = {}
    for model in models:
        places = predictions_of(benchmark, predictions / model)
        if all(exists(place) for place in places):
            found[model] = read_predictions(places, benchmark.rows)
    results = {model: evaluate(benchmark.task, records, categories, each) for model, each in found.items()}
    return Judged(benchmark, records, categories, found, results)


def pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return who is compared with whom: the student, or else the last model, with every other in turn."""
    if not models:
        return []
    focus = "student" if "student" in models else models[-1]
    return [(focus, other) for other in models if other != focus]


def category_part(category: Category) -> str:
    """Return what a category counts to: LVIS's rare, common and frequent ones, or base and novel."""
    return FREQUENCIES.get(category.frequency or "", category.split)


def categories_of_part(result: CocoResult | LvisResult, part: str | None) -> list[int]:
    """Return the numbers of a part's categories, of all when it is None."""
    return [k for k, each in enumerate(result.categories) if part is None or category_part(each) == part]
