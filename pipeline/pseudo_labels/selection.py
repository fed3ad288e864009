"""What of a teacher's detections is kept, and why the rest is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from glip_model.boxes import box_area, pairwise_iou
from glip_model.structures import Detections
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import Phrase, ScoredBox

PHRASE_REJECT_REASONS = (
    "not_detected",
    "below_min_score",
    "flip_disagrees",
    "box_too_small",
    "box_too_large",
    "lost_to_other_phrase",
)
"""Why a phrase may end without a box; the filter that took its last remaining one names the reason."""
FLIP_IOU = 0.5
"""From this overlap on a box and one of the mirrored picture show the same thing."""


def select_boxes(
    phrases: Sequence[Phrase],
    detections: Detections,
    image_size: tuple[int, int],
    config: PseudoLabelConfig,
    *,
    min_score: float | None = None,
    mirrored: Detections | None = None,
) -> tuple[Phrase, ...]:
    """Give every phrase the boxes that pass, or the reason why none does.

    Score and size come first. The boxes that remain are given out best score first: a phrase takes a box unless it
    holds one that overlaps it (non-maximum suppression), another phrase holds one that overlaps it (competition), or
    it holds as many as it may. Phrases compete because a teacher that never saw a word still grounds it by exclusion:
    a box belongs to the phrase that fits it best. What a phrase may not keep it takes from nobody, so that the second
    best "dog" of a caption with one dog is still free to be the wolf.

    Args:
        phrases: of the caption, in the order that ``phrase_index`` counts.
        detections: what the teacher found, in pixels of the original picture.
        image_size: (height, width) of it.
        config: thresholds.
        min_score: instead of the one in ``config``.
        mirrored: what the teacher found in the mirrored picture; scores are then means over both, see ``agree``.

    Returns:
        The same phrases with ``boxes`` or ``reject_reason`` set.
    """
    least = config.min_score if min_score is None else min_score
    boxes, scores, owner = detections.boxes_xyxy, detections.scores, detections.phrase_index
    reasons = ["not_detected"] * len(phrases)
    alive = torch.ones(len(scores), dtype=torch.bool)
    side = torch.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    share = box_area(boxes) / (image_size[0] * image_size[1])
    agreed = scores if mirrored is None else agree(detections, mirrored, image_size[1])
    for reason, passing in (
        ("below_min_score", scores >= least),
        ("flip_disagrees", agreed >= least),
        ("box_too_small", side >= config.min_box_side),
        ("box_too_large", share <= config.max_area_share),
    ):
        alive = _narrow(alive, alive & passing, owner, reasons, reason)
    kept = _give_out(boxes, agreed, owner, alive, [_most_boxes(phrase, config) for phrase in phrases], config)
    _narrow(alive, kept, owner, reasons, "lost_to_other_phrase")
    return tuple(
        _with_boxes(phrase, kept & (owner == i), boxes, agreed, reasons[i]) for i, phrase in enumerate(phrases)
    )


def agree(detections: Detections, mirrored: Detections, width: int) -> Tensor:
    """Return for every detection the mean of its score and that of its mirror image.

    Args:
        detections: of a picture, in pixels.
        mirrored: of the same picture with left and right exchanged.
        width: of the picture.

    Returns:
        (N,) scores; a box that the mirrored picture does not show for the same phrase keeps half of its own.
    """
    x1, y1, x2, y2 = mirrored.boxes_xyxy.unbind(1)
    back = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    is_same = detections.phrase_index[:, None] == mirrored.phrase_index[None, :]
    is_same &= pairwise_iou(detections.boxes_xyxy, back) >= FLIP_IOU
    found = torch.where(is_same, mirrored.scores[None, :], 0.0)
    best = found.max(1).values if len(mirrored.scores) else torch.zeros_like(detections.scores)
    return (detections.scores + best) / 2


def _narrow(before: Tensor, after: Tensor, owner: Tensor, reasons: list[str], reason: str) -> Tensor:
    """Note the reason for every phrase that had boxes before a filter and has none after it."""
    lost = set(owner[before].tolist()) - set(owner[after].tolist())
    for phrase in lost:
        reasons[phrase] = reason
    return after


def _most_boxes(phrase: Phrase, config: PseudoLabelConfig) -> int:
    return 1 if config.one_box_per_singular and phrase.is_plural is False else config.max_boxes_per_phrase


def _give_out(
    boxes: Tensor, scores: Tensor, owner: Tensor, alive: Tensor, most: Sequence[int], config: PseudoLabelConfig
) -> Tensor:
    """Give the boxes that are alive to their phrases, best first; return (N,) bool, True for those that were kept."""
    is_own = owner[:, None] == owner[None, :]
    overlap = pairwise_iou(boxes, boxes)
    clashes = (is_own & (overlap > config.nms_threshold)) | (~is_own & (overlap > config.compete_threshold))
    free, kept, room = alive.clone(), torch.zeros_like(alive), list(most)
    for i in scores.argsort(descending=True, stable=True).tolist():
        phrase = int(owner[i])
        if free[i] and room[phrase] > 0:
            kept[i] = True
            room[phrase] -= 1
            free &= ~clashes[i]
    return kept


def _with_boxes(phrase: Phrase, mine: Tensor, boxes: Tensor, scores: Tensor, reason: str) -> Phrase:
    index = mine.nonzero().squeeze(1)
    if len(index) == 0:
        return replace(phrase, boxes=(), reject_reason=reason)
    best = index[scores[index].argsort(descending=True, stable=True)]
    chosen = tuple(
        ScoredBox(xyxy=(x1, y1, x2, y2), score=score)
        for (x1, y1, x2, y2), score in zip(boxes[best].tolist(), scores[best].tolist(), strict=True)
    )
    return replace(phrase, boxes=chosen, reject_reason=None)
