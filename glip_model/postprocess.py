"""Raw predictions to detections, in the published order: threshold, centerness, top-k, NMS per phrase, top-k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glip_model.alignment import phrase_scores
from glip_model.anchors import anchor_grid
from glip_model.boxes import clip_boxes, decode_boxes, to_exclusive
from glip_model.config import GLIPConfig
from glip_model.structures import Detections, GLIPOutput


def read_off(
    output: GLIPOutput,
    sizes: Sequence[tuple[int, int]],
    positive_maps: Sequence[Tensor],
    original_sizes: Sequence[tuple[int, int]],
    config: GLIPConfig,
) -> list[Detections]:
    """Turn a batch's raw predictions into detections.

    Args:
        output: predictions for B pictures.
        sizes: per picture (height, width) as the model saw it, without padding.
        positive_maps: per picture (P, T') bool, T' at most T.
        original_sizes: (height, width) that the boxes are scaled to.
        config: thresholds and limits.

    Returns:
        Per picture the best ``max_detections`` over all phrases, best first; ties at the last score stay, so there
        may be more. Far corners are the model's own, see ``GLIPConfig.inclusive_corners``. Pictures of a batch are read
        off independently of one another.
    """
    anchors = anchor_grid(output.level_sizes, config.strides, config.anchor_scale, output.box_deltas.device)
    tokens = output.token_logits.shape[2]
    results = []
    for i, (size, positive_map, original) in enumerate(zip(sizes, positive_maps, original_sizes, strict=True)):
        padded = torch.nn.functional.pad(positive_map, (0, tokens - positive_map.shape[1])).to(anchors.device)
        scores = phrase_scores(output.token_logits[i : i + 1], padded[None])[0]  # (A, P)
        boxes, scores, phrases = _candidates(
            scores, output.centerness[i].float(), output.box_deltas[i].float(), anchors, output.level_sizes, config
        )
        boxes = clip_boxes(boxes, size, config.inclusive_corners)
        kept = _suppress(boxes, scores, phrases, config)
        scale = boxes.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
        results.append(Detections((boxes[kept] * scale).cpu(), scores[kept].cpu(), phrases[kept].cpu()))
    return results


def _candidates(
    scores: Tensor,
    centerness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    level_sizes: tuple[tuple[int, int], ...],
    config: GLIPConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick each level's best (anchor, phrase) pairs; return boxes (M, 4), scores (M,) and phrases (M,)."""
    passing = scores > config.score_threshold  # before centerness, as published
    ranked = torch.where(passing, scores * centerness.sigmoid()[:, None], -1.0)
    picked, start = [], 0
    for level in torch.split(ranked, [height * width for height, width in level_sizes]):
        count = min(int((level >= 0).sum()), config.pre_nms_topk)
        picked.append(level.flatten().topk(count).indices + start)
        start += level.numel()
    index, num_phrases = torch.cat(picked), max(scores.shape[1], 1)
    anchor, phrase = index // num_phrases, index % num_phrases
    return decode_boxes(deltas[anchor], anchors[anchor]), ranked[anchor, phrase].sqrt(), phrase


def _suppress(boxes: Tensor, scores: Tensor, phrases: Tensor, config: GLIPConfig) -> Tensor:
    """Return the indices that stay, best first."""
    from torchvision.ops import batched_nms  # takes as long to import as all else

    # With one pixel added at the far side, plain IoU is the published "+1" IoU of inclusive corners.
    boxes = to_exclusive(boxes) if config.inclusive_corners else boxes
    # batched_nms moves phrases far apart; in single precision that would round the boxes of later phrases.
    kept: Tensor = batched_nms(boxes.double(), scores.double(), phrases, config.nms_threshold)
    if len(kept) > config.max_detections:
        kept = kept[scores[kept] >= scores[kept[config.max_detections - 1]]]
    return kept
