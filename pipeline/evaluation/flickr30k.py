"""Phrase grounding as on Flickr30k Entities: is one of the best k boxes of a phrase right?

Two protocols, by what "right" means for a phrase of several boxes (MDETR, Kamath et al., ICCV 2021): any-box, where one
of them is enough, and merged-box, where it is their hull. GLIP's numbers are any-box.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glip_model.boxes import pairwise_iou
from pipeline.evaluation.predictions import NO_BOXES, Predictions, check_rows
from pipeline.store.records import GroundingRecord

IOU_THRESHOLD = 0.5
RANKS = (1, 5, 10)
NEVER = np.iinfo(np.int32).max
"""Rank of what is not hit at all."""


@dataclass(frozen=True)
class GroundingResult:
    """Rank, from 0, at which each phrase that has boxes is hit; ``NEVER`` where it is not."""

    any_box: np.ndarray
    """(P,) int64."""
    merged_box: np.ndarray
    """(P,) int64."""
    parts: tuple[frozenset[str], ...]
    """Per phrase what it counts to: ``base`` or ``novel``, or its types."""

    def metrics(self, part: str | None = None) -> dict[str, float]:
        """Return R@1, R@5, R@10 and R@all of both protocols, in [0, 1], over the phrases of a part, if it has any."""
        chosen = is_of_part(self.parts, part)
        if not chosen.any():
            return {}
        found = {}
        for prefix, ranks in (("", self.any_box[chosen]), ("merged ", self.merged_box[chosen])):
            for k in RANKS:
                found[f"{prefix}R@{k}"] = float(np.mean(ranks < k))
            found[f"{prefix}R@all"] = float(np.mean(ranks < NEVER))
        return found


def evaluate_grounding(records: Sequence[GroundingRecord], predictions: Predictions) -> GroundingResult:
    """Find at which rank each phrase is hit, by a box that overlaps its truth by IoU ≥ 0.5.

    Args:
        records: all rows of the benchmark, in order.
        predictions: labels count the phrases of the row.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    return GroundingResult(*rank_phrases(records, predictions, "grounding", pairwise_iou, _iou_of_hull))


def rank_phrases(
    records: Sequence[GroundingRecord],
    predictions: Predictions,
    name: str,
    *overlaps: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Any, ...]:
    """Return for each rule (P,) int64 ranks at which the phrases that have true boxes are hit, and what these count to.

    Args:
        records: all rows of the benchmark, in order.
        predictions: labels count the phrases of the row.
        name: of the task, for errors.
        overlaps: rules; each returns (K, M) overlaps of the (K, 4) boxes found, best first, and the (N, 4) true ones.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    check_rows(predictions, [record.key for record in records], name)
    rows = predictions.by_number()
    ranks, parts = [], []
    for number, record in enumerate(records):
        mine = rows.get(number, NO_BOXES)
        for i, phrase in enumerate(record.phrases):
            if phrase.boxes:
                boxes = torch.from_numpy(predictions.boxes_xyxy[mine[predictions.labels[mine] == i]])
                truth = torch.tensor([box.xyxy for box in phrase.boxes])
                ranks.append([_rank_of_hit(overlap(boxes, truth)) for overlap in overlaps])
                parts.append(frozenset(phrase.split.split("/")) if phrase.split else frozenset[str]())
    return *np.array(ranks, np.int64).reshape(-1, len(overlaps)).T, tuple(parts)


def is_of_part(parts: Sequence[frozenset[str]], part: str | None) -> np.ndarray:
    """Return (P,) bool: which phrases count to a part; None is all of them."""
    return np.array([part is None or part in each for each in parts], bool)


def _iou_of_hull(boxes: Tensor, truth: Tensor) -> Tensor:
    hull = torch.cat([truth[:, :2].min(0).values, truth[:, 2:].max(0).values])
    return pairwise_iou(boxes, hull[None])


def _rank_of_hit(overlaps: Tensor) -> int:
    """Return the first of K boxes that overlaps one of N truths by the threshold, given (K, N) overlaps."""
    hits = (overlaps >= IOU_THRESHOLD).any(1).nonzero()
    return int(hits[0]) if len(hits) else NEVER
