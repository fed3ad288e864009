"""Phrase grounding as on Flickr30k Entities: recall of the best k boxes of every phrase, any-box protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from glip_model.boxes import pairwise_iou
from pipeline.data.records import GroundingRecord
from pipeline.evaluation.predictions import Predictions, check_rows

IOU_THRESHOLD = 0.5
RANKS = (1, 5, 10)


def evaluate_grounding(
    records: Sequence[GroundingRecord], predictions: Predictions
) -> tuple[np.ndarray, list[str | None]]:
    """Find at which rank each phrase is hit.

    A phrase is hit by a box that overlaps any of its true boxes by IoU ≥ 0.5. Phrases without true boxes are skipped.

    Args:
        records: all rows of the split, in order.
        predictions: labels count the phrases of the row.

    Returns:
        Per phrase the rank of its first hit, counted from 0, or a large number when none hits; and its split.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    check_rows(predictions, [record.key for record in records], "grounding")
    rows = predictions.by_number()
    ranks: list[int] = []
    splits: list[str | None] = []
    for number, record in enumerate(records):
        mine = rows.get(number, np.zeros(0, np.int64))
        for i, phrase in enumerate(record.phrases):
            if not phrase.boxes:
                continue
            chosen = mine[predictions.labels[mine] == i]
            chosen = chosen[np.argsort(-predictions.scores[chosen], kind="stable")]
            truth = torch.tensor([box.xyxy for box in phrase.boxes])
            overlap = pairwise_iou(torch.from_numpy(predictions.boxes_xyxy[chosen]), truth)
            hits = (overlap >= IOU_THRESHOLD).any(1).nonzero()
            ranks.append(int(hits[0]) if len(hits) else np.iinfo(np.int32).max)
            splits.append(phrase.split)
    return np.array(ranks, np.int64), splits


def recalls(ranks: np.ndarray, splits: Sequence[str | None], split: str | None = None) -> dict[str, float]:
    """Return R@1, R@5 and R@10 in percent over the phrases of a split; 0 when there are none."""
    chosen = ranks if split is None else ranks[[name == split for name in splits]]
    return {f"R@{k}": 100 * float(np.mean(chosen < k)) if len(chosen) else 0.0 for k in RANKS}
