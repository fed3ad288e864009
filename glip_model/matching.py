"""ATSS: which anchors answer for which box.

Source: Adaptive Training Sample Selection (Zhang et al., CVPR 2020), with the published model's "+1" IoU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glip_model.boxes import pairwise_iou

UNMATCHED = -1
MIN_INSIDE = 0.01
"""Pixels by which an anchor's centre must be inside its box."""


def match_anchors(anchors: Tensor, anchors_per_level: tuple[int, ...], boxes_xyxy: Tensor, topk: int) -> Tensor:
    """Assign every anchor to a box or to the background.

    Per box: the ``topk`` nearest anchors of each level are candidates; those whose IoU reaches the candidates' mean
    plus standard deviation, with their centre inside the box, are its positives. An anchor claimed twice goes to the
    box with the highest IoU. A box may end without any anchor.

    Args:
        anchors: (A, 4), levels one after the other.
        anchors_per_level: their counts, which sum to A.
        boxes_xyxy: (N, 4); N may be 0, a deliberate addition to the published code.
        topk: candidates per level and box.

    Returns:
        (A,) int64 index of the box, or ``UNMATCHED``.
    """
    num_anchors, num_boxes = anchors.shape[0], boxes_xyxy.shape[0]
    if num_boxes == 0:
        return anchors.new_full((num_anchors,), UNMATCHED, dtype=torch.int64)
    iou = pairwise_iou(anchors, boxes_xyxy, plus_one=True)  # (A, N)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    distance = torch.cdist(centers, box_centers, compute_mode="donot_use_mm_for_euclid_dist")  # (A, N)
    candidates, start = [], 0
    for level in torch.split(distance, list(anchors_per_level)):
        candidates.append(level.topk(min(topk, len(level)), dim=0, largest=False).indices + start)
        start += len(level)
    chosen = torch.cat(candidates)  # (K, N)
    candidate_iou = iou.gather(0, chosen)
    threshold = candidate_iou.mean(0) + (candidate_iou.std(0) if chosen.shape[0] > 1 else 0.0)  # (N,)
    candidate_centers = centers[chosen]  # (K, N, 2)
    inside = torch.cat((candidate_centers - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - candidate_centers), -1)
    positive = (candidate_iou >= threshold) & (inside.amin(-1) > MIN_INSIDE)
    claimed = torch.full_like(iou, -1.0).scatter(0, chosen, torch.where(positive, candidate_iou, -1.0))  # (A, N)
    best_iou, best_box = claimed.max(1)
    return torch.where(best_iou >= 0, best_box, torch.full_like(best_box, UNMATCHED))
