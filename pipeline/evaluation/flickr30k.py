"""Phrase grounding as on Flickr30k Entities: is one of the best k boxes of a phrase right?

Two protocols, by what "right" means for a phrase of several boxes (MDETR, Kamath et al., ICCV 2021): any-box, where one
of them is enough, and merged-box, where it is their hull. GLIP's numbers are any-box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from glip_model.boxes import pairwise_iou
from pipeline.evaluation.predictions import Predictions, check_rows
from pipeline.store.records import GroundingRecord, Phrase

IOU_THRESHOLD = 0.5
RANKS = (1, 5, 10)
NEVER = np.iinfo(np.int32).max
"""Rank of what is not hit at all."""


@dataclass(frozen=True)
class GroundingResult:
    """At which rank, from 0, each phrase that has boxes is hit; ``NEVER`` where it is not."""

    any_box: np.ndarray
    """(P,) int64."""
    merged_box: np.ndarray
    """(P,) int64."""
    parts: tuple[frozenset[str], ...]
    """Per phrase what it counts to: ``base`` or ``novel``, or its types."""

    def metrics(self, part: str | None = None) -> dict[str, float]:
        """Return R@1, R@5, R@10 and R@all of both protocols, in [0, 1], over the phrases of a part, if it has any."""
        chosen = np.array([part is None or part in parts for parts in self.parts], bool)
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
    any_box, merged_box, parts = [], [], []
    for phrase, boxes, truth in found_and_true(records, predictions, "grounding"):
        any_box.append(rank_of_hit(pairwise_iou(boxes, truth)))
        hull = torch.cat([truth[:, :2].min(0).values, truth[:, 2:].max(0).values])
        merged_box.append(rank_of_hit(pairwise_iou(boxes, hull[None])))
        parts.append(parts_of(phrase))
    return GroundingResult(np.array(any_box, np.int64), np.array(merged_box, np.int64), tuple(parts))


def found_and_true(
    records: Sequence[GroundingRecord], predictions: Predictions, name: str
) -> Iterator[tuple[Phrase, Tensor, Tensor]]:
    """Yield every phrase that has true boxes with the (K, 4) boxes found, best first, and the (N, 4) true ones.

    Raises:
        BenchmarkError: predictions belong to other rows.
    """
    check_rows(predictions, [record.key for record in records], name)
    rows, nothing = predictions.by_number(), np.zeros(0, np.int64)
    for number, record in enumerate(records):
        mine = rows.get(number, nothing)
        for i, phrase in enumerate(record.phrases):
            if phrase.boxes:
                chosen = mine[predictions.labels[mine] == i]
                chosen = chosen[np.argsort(-predictions.scores[chosen], kind="stable")]
                truth = torch.tensor([box.xyxy for box in phrase.boxes])
                yield phrase, torch.from_numpy(predictions.boxes_xyxy[chosen]), truth


def rank_of_hit(overlaps: Tensor) -> int:
    """Return the first of K boxes that overlaps one of N truths by the threshold, given (K, N) overlaps."""
    hits = (overlaps >= IOU_THRESHOLD).any(1).nonzero()
    return int(hits[0]) if len(hits) else NEVER


def parts_of(phrase: Phrase) -> frozenset[str]:
    """Return what a phrase counts to."""
    return frozenset(phrase.split.split("/")) if phrase.split else frozenset()
