"""Referring expressions as on RefCOCO, RefCOCO+ and RefCOCOg: is the best box the object that is meant?

What of an expression names its object is not the same everywhere: all of it, or the phrase at its head, as MDETR's
files mark it. ``evaluate.referring_target`` chooses; the predictions here answer whichever was asked. A box is right
from IoU 0.5 on; MDETR's evaluator asks for a generalised IoU of 0.5, which is stricter, and is reported beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glip_model.boxes import generalised_iou, pairwise_iou
from pipeline.evaluation.flickr30k import RANKS, is_of_part, rank_phrases
from pipeline.evaluation.predictions import Predictions
from pipeline.store.records import GroundingRecord


@dataclass(frozen=True)
class ReferringResult:
    """Rank, from 0, at which the object of each expression is hit."""

    by_iou: np.ndarray
    """(N,) int64."""
    by_giou: np.ndarray
    """(N,) int64."""
    parts: tuple[frozenset[str], ...]
    """Per expression what it counts to."""

    def metrics(self, part: str | None = None) -> dict[str, float]:
        """Return P@1, P@5, P@10 and P@1 by GIoU, in [0, 1], over the expressions of a part, if it has any."""
        chosen = is_of_part(self.parts, part)
        if not chosen.any():
            return {}
        by_rank = {f"P@{k}": float(np.mean(self.by_iou[chosen] < k)) for k in RANKS}
        return by_rank | {"P@1 GIoU": float(np.mean(self.by_giou[chosen] < 1))}


def evaluate_referring(records: Sequence[GroundingRecord], predictions: Predictions) -> ReferringResult:
    """Tell for every expression at which rank its object is hit.

    Args:
        records: each has one phrase, with one box.
        predictions: boxes of label 0 answer the expression.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    return ReferringResult(*rank_phrases(records, predictions, "referring", pairwise_iou, _pairwise_giou))


def _pairwise_giou(boxes: Tensor, truth: Tensor) -> Tensor:
    return torch.stack([generalised_iou(boxes, one[None].expand_as(boxes)) for one in truth], 1)
