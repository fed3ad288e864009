"""What of a teacher's detections is kept, and why the rest is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from glip_model.boxes import iou, pairwise_iou
from glip_model.structures import Detections
from pipeline.pseudo_labels.fusion import FusedDetections
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import Box, Phrase, ScoredBox

PHRASE_REJECT_REASONS = (
    "not_detected",
    "below_min_score",
    "flip_disagrees",
    "teachers_disagree",
    "box_too_small",
    "box_too_large",
    "lost_to_other_phrase",
)
"""Why a phrase may end without a box, in the order that boxes are filtered; the filter that took the last remaining one
names the reason."""
_LAST_STAGE = len(PHRASE_REJECT_REASONS) - 1
FLIP_IOU = 0.5
"""IoU at which a box and one of the mirrored picture show the same object."""


class _Found(NamedTuple):
    """A box as plain numbers: a caption has a handful, for which tensors are slow."""

    phrase: int
    xyxy: Box
    score: float
    agreed: float
    """The score, or its mean over both pictures where test-time flipping is on."""
    teachers: tuple[str, ...] | None
    """Those that found it, of several."""
    agreement: float
    """The share of them; 1 where there is one teacher."""


def select_boxes(
    phrases: Sequence[Phrase],
    detections: Detections,
    image_size: tuple[int, int],
    config: PseudoLabelConfig,
    *,
    min_score: float | Sequence[float] | None = None,
    mirrored: Detections | None = None,
    in_pass: int | None = None,
) -> tuple[Phrase, ...]:
    """Give every phrase the boxes that pass, or the reason why none does.

    Phrases that have boxes, from an earlier pass, keep these and get no others; what they hold is not free.

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
        min_score: instead of the one in ``config``, of all phrases or of each.
        mirrored: what the teacher found in the mirrored picture; scores are then means over both, see ``agree``.
        in_pass: what boxes say of the pass in which they came.

    Returns:
        The same phrases with ``boxes`` or ``reject_reason`` set.
    """
    least = config.min_score if min_score is None else min_score
    least_of = least if isinstance(least, Sequence) else [least] * len(phrases)
    agreed = detections.scores if mirrored is None else agree(detections, mirrored, image_size[1])
    largest = config.max_area_share * image_size[0] * image_size[1]
    reached = [0] * len(phrases)
    candidates = []
    for box in _found(detections, agreed):
        if phrases[box.phrase].boxes:
            continue
        stage = _stage(box, least_of[box.phrase], config, largest)
        reached[box.phrase] = max(reached[box.phrase], stage)
        if stage == _LAST_STAGE:
            candidates.append(box)
    kept = _assign_boxes(candidates, phrases, config)
    return tuple(
        phrase
        if phrase.boxes
        else replace(
            phrase,
            boxes=tuple(_scored(box, in_pass) for box in mine),
            reject_reason=None if mine else PHRASE_REJECT_REASONS[stage],
        )
        for phrase, mine, stage in zip(phrases, kept, reached, strict=True)
    )


def _found(detections: Detections, agreed: Tensor) -> list[_Found]:
    """Return what was found as plain numbers."""
    columns = (detections.phrase_index, detections.boxes_xyxy, detections.scores, agreed)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    if not isinstance(detections, FusedDetections):
        return [_Found(phrase, tuple(xyxy), score, sure, None, 1.0) for phrase, xyxy, score, sure in rows]
    names = detections.teachers
    voters = [tuple(name for name, voted in zip(names, votes, strict=True) if voted) for votes in detections.votes]
    return [
        _Found(phrase, tuple(xyxy), score, sure, mine, len(mine) / len(names))
        for (phrase, xyxy, score, sure), mine in zip(rows, voters, strict=True)
    ]


def _scored(box: _Found, in_pass: int | None) -> ScoredBox:
    agreement = None if box.teachers is None else box.agreement
    return ScoredBox(xyxy=box.xyxy, score=box.agreed, teachers=box.teachers, agreement=agreement, in_pass=in_pass)


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


def _stage(box: _Found, least: float, config: PseudoLabelConfig, largest: float) -> int:
    """Return which of ``PHRASE_REJECT_REASONS`` takes a box; the last one where only other boxes can."""
    x1, y1, x2, y2 = box.xyxy
    passes = (
        box.score >= least,
        box.agreed >= least,
        box.agreement >= config.min_agreement,
        min(x2 - x1, y2 - y1) >= config.min_box_side,
        (x2 - x1) * (y2 - y1) <= largest,
    )
    return 1 + passes.index(False) if False in passes else _LAST_STAGE


def _most_boxes(phrase: Phrase, config: PseudoLabelConfig) -> int:
    return 1 if config.one_box_per_singular and phrase.is_plural is False else config.max_boxes_per_phrase


def _assign_boxes(
    candidates: Sequence[_Found], phrases: Sequence[Phrase], config: PseudoLabelConfig
) -> list[list[_Found]]:
    """Return per phrase the boxes that it gets, best first; of equal scores the earlier one goes first."""
    most = [_most_boxes(phrase, config) for phrase in phrases]
    kept: list[list[_Found]] = [[] for _ in phrases]
    taken: list[tuple[int, Box]] = [(i, box.xyxy) for i, phrase in enumerate(phrases) for box in phrase.boxes]
    for box in sorted(candidates, key=lambda box: -box.agreed):
        if len(kept[box.phrase]) < most[box.phrase] and not any(
            iou(box.xyxy, other) > (config.nms_threshold if phrase == box.phrase else config.compete_threshold)
            for phrase, other in taken
        ):
            kept[box.phrase].append(box)
            taken.append((box.phrase, box.xyxy))
    return kept
