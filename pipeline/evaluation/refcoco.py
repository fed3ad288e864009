"""Referring expressions as on RefCOCO: is the best box of the whole expression the object that is meant?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.data.records import GroundingRecord
from pipeline.evaluation.flickr30k import evaluate_grounding
from pipeline.evaluation.predictions import Predictions


def evaluate_referring(
    records: Sequence[GroundingRecord], predictions: Predictions
) -> tuple[np.ndarray, list[str | None]]:
    """Tell for every expression whether the best box overlaps its object by IoU ≥ 0.5.

    The target is the whole expression: a record has one phrase that spans its caption, with one box.

    Returns:
        (N,) bool, and the split of each expression.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    ranks, splits = evaluate_grounding(records, predictions)
    return ranks == 0, splits


def precision(hits: np.ndarray, splits: Sequence[str | None], split: str | None = None) -> dict[str, float]:
    """Return P@1 in percent over the expressions of a split; 0 when there are none."""
    chosen = hits if split is None else hits[[name == split for name in splits]]
    return {"P@1": 100 * float(np.mean(chosen)) if len(chosen) else 0.0}
