"""What of a teacher's detections is kept, and why the rest is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from glip_model.boxes import box_area, pairwise_iou
from glip_model.structures import Detections
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import Phrase, ScoredBox

PHRASE_REJECT_REASONS = ("not_detected", "below_min_score", "box_too_small", "box_too_large", "lost_to_other_phrase")
"""Why a phrase may end without a box; the first filter that took its best remaining box names the reason."""


def select_boxes(
    phrases: Sequence[Phrase], detections: Detections, image_size: tuple[int, int], config: PseudoLabelConfig
) -> tuple[Phrase, ...]:
    """Give every phrase the boxes that pass, or the reason why none does.

    In order: score, size, non-maximum suppression within a phrase, competition between phrases, and the number of
    boxes. Phrases compete because a teacher that never saw a word still grounds it by exclusion: a box belongs to the
    phrase that fits it best.

    Args:
        phrases: of the caption, in the order that ``phrase_index`` counts.
        detections: what the teacher found, in pixels of the original picture.
        image_size: (height, width) of it.
        config: thresholds.

    Returns:
        The same phrases with ``boxes`` or ``reject_reason`` set.
    """
    boxes, scores, owner = detections.boxes_xyxy, detections.scores, detections.phrase_index
    reasons = ["not_detected"] * len(phrases)
    alive = torch.ones(len(scores), dtype=torch.bool)
    side = torch.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    share = box_area(boxes) / (image_size[0] * image_size[1])
    for reason, passing in (
        ("below_min_score", scores >= config.min_score),
        ("box_too_small", side >= config.min_box_side),
        ("box_too_large", share <= config.max_area_share),
    ):
        alive = _narrow(alive, alive & passing, owner, reasons, reason)
    index = alive.nonzero().squeeze(1)
    kept = index[batched_nms(boxes[index], scores[index], owner[index], config.nms_threshold)]
    winners = torch.zeros_like(alive)
    winners[kept[_win(boxes[kept], scores[kept], owner[kept], config.compete_threshold)]] = True
    alive = _narrow(alive, winners, owner, reasons, "lost_to_other_phrase")
    return tuple(
        _with_boxes(phrase, alive & (owner == i), boxes, scores, reasons[i], config)
        for i, phrase in enumerate(phrases)
    )


def _narrow(before: Tensor, after: Tensor, owner: Tensor, reasons: list[str], reason: str) -> Tensor:
    """Note the reason for every phrase that had boxes before a filter and has none after it."""
    lost = set(owner[before].tolist()) - set(owner[after].tolist())
    for phrase in lost:
        reasons[phrase] = reason
    return after


def _win(boxes: Tensor, scores: Tensor, owner: Tensor, threshold: float) -> Tensor:
    """Return which boxes, given best first, no better box of another phrase overlaps by more than ``threshold``."""
    if len(boxes) == 0 or threshold >= 1:
        return torch.ones(len(boxes), dtype=torch.bool)
    rivals = (pairwise_iou(boxes, boxes) > threshold) & (owner[:, None] != owner[None, :])
    wins = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):  # a loser no longer suppresses others, so the order matters
        if wins[i]:
            wins[i + 1 :] &= ~rivals[i, i + 1 :]
    return wins


def _with_boxes(
    phrase: Phrase, mine: Tensor, boxes: Tensor, scores: Tensor, reason: str, config: PseudoLabelConfig
) -> Phrase:
    index = mine.nonzero().squeeze(1)
    if len(index) == 0:
        return replace(phrase, boxes=(), reject_reason=reason)
    is_single = config.one_box_per_singular and phrase.is_plural is False
    most = 1 if is_single else config.max_boxes_per_phrase
    best = index[scores[index].argsort(descending=True, stable=True)][:most]
    chosen = tuple(
        ScoredBox(xyxy=tuple(box), score=score)  # type: ignore[arg-type]
        for box, score in zip(boxes[best].tolist(), scores[best].tolist(), strict=True)
    )
    return replace(phrase, boxes=chosen, reject_reason=None)
