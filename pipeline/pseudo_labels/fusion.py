"""What several teachers find in one picture, as one: weighted box fusion.

Source: Solovyev, Wang, Gabruseva, Weighted Boxes Fusion, Image and Vision Computing 2021. Boxes of one phrase that
overlap become one, whose corners are their mean weighted by scores, and whose score is the mean over all teachers, of
whom one that did not find it says 0. Each teacher has one vote in a box: its own duplicates are suppressed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from glip_model.structures import Detections

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FusedDetections(Detections):
    """What several teachers found in one picture, best score first."""

    votes: tuple[tuple[bool, ...], ...] = field(default=())
    """Per box which of ``teachers`` found it."""
    teachers: tuple[str, ...] = field(default=())
    """Names of all teachers."""


def fuse(
    answers: Sequence[Detections], teachers: Sequence[str], fusion_threshold: float, nms_threshold: float
) -> FusedDetections:
    """Merge the detections of several teachers for the same prompt and picture.

    Args:
        answers: of each teacher.
        teachers: their names.
        fusion_threshold: IoU above which boxes of one phrase are merged into one.
        nms_threshold: IoU above which boxes of one phrase of one teacher suppress one another before.
    """
    single = [_without_duplicates(answer, nms_threshold) for answer in answers]
    owner = torch.repeat_interleave(torch.arange(len(single)), torch.tensor([len(each) for each in single]))
    boxes, scores, phrases = (
        torch.cat([getattr(each, name) for each in single]) for name in ("boxes_xyxy", "scores", "phrase_index")
    )
    order = scores.argsort(descending=True, stable=True)
    columns = [column[order].numpy() for column in (boxes.double(), scores.double(), phrases, owner)]
    found = []
    for phrase in np.unique(columns[2]).tolist():
        corners, sure, _, teacher = (column[columns[2] == phrase] for column in columns)
        found += [(phrase, *each) for each in _fuse_phrase(corners, sure, teacher, len(single), fusion_threshold)]
    found.sort(key=lambda each: -each[2])
    return FusedDetections(
        torch.tensor(np.array([box for _, box, _, _ in found]).reshape(-1, 4), dtype=torch.float32),
        torch.tensor([score for _, _, score, _ in found], dtype=torch.float32),
        torch.tensor([phrase for phrase, _, _, _ in found], dtype=torch.int64),
        answers[0].phrases,
        answers[0].char_spans,
        tuple(votes for _, _, _, votes in found),
        tuple(teachers),
    )


def merge_detections(parts: Sequence[Detections]) -> Detections:
    """Concatenate detections of one picture that count the same phrases, best first."""
    order = torch.cat([part.scores for part in parts]).argsort(descending=True, stable=True)
    values: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])[order]
        for name in ("boxes_xyxy", "scores", "phrase_index")
    }
    first = parts[0]
    if isinstance(first, FusedDetections):
        votes = [vote for part in parts if isinstance(part, FusedDetections) for vote in part.votes]
        return replace(first, **values, votes=tuple(votes[i] for i in order.tolist()))
    return replace(first, **values)


def _without_duplicates(found: Detections, threshold: float) -> Detections:
    kept = batched_nms(found.boxes_xyxy.float(), found.scores.float(), found.phrase_index, threshold)
    return Detections(found.boxes_xyxy[kept], found.scores[kept], found.phrase_index[kept])


def _fuse_phrase(
    boxes: Floats, scores: Floats, owner: NDArray[np.int64], num_teachers: int, threshold: float
) -> list[tuple[Floats, float, tuple[bool, ...]]]:
    """Merge the boxes of one phrase, which come best first; return corners, score and votes of each that results.

    A box joins the result that it overlaps most, if by more than the threshold and without a box of the same teacher;
    results move with each box that joins, as in the paper.
    """
    count = 0
    fused, sums = np.zeros_like(boxes), np.zeros_like(boxes)
    votes = np.zeros((len(boxes), num_teachers))
    for box, score, teacher in zip(boxes, scores, owner, strict=True):
        overlap = np.where(votes[:count, teacher] > 0, -1.0, _iou(fused[:count], box))
        place = int(overlap.argmax()) if count and overlap.max() > threshold else count
        count = max(count, place + 1)
        # A score of 0 is a vote, too.
        votes[place, teacher] = max(score, np.finfo(float).tiny)
        sums[place] += votes[place, teacher] * box
        fused[place] = sums[place] / votes[place].sum()
    # Divided by all teachers and not by those that voted: a box that only one of them found scores less.
    return [(fused[i], float(votes[i].sum() / num_teachers), tuple((votes[i] > 0).tolist())) for i in range(count)]


def _iou(boxes: Floats, box: Floats) -> Floats:
    """Return (N,) IoU of (N, 4) boxes and one of (4,); 0 where a union is empty."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = sides.clip(min=0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - shared
    shares: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares
