"""The criterion: token focal loss, GIoU loss and centerness loss over ATSS-matched anchors.

Source: GLIP (Li et al., CVPR 2022); ATSS (Zhang et al., CVPR 2020); terms, weights and normalisers as published.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from glip_model.anchors import anchor_grid
from glip_model.boxes import decode_boxes, encode_boxes, generalised_iou
from glip_model.config import GLIPConfig
from glip_model.matching import UNMATCHED, match_anchors
from glip_model.structures import GLIPOutput, GroundingBatch, GroundingTarget


class GroundingCriterion:
    """Loss terms by name, weighted and in float32.

    Pictures without boxes are all background, and a rank without positives contributes zero box and centerness
    losses: deliberate additions, the published trainer skips such batches. The published disabled "no object" bit at
    token 255 is left out, because it would become a positive on [SEP] of a caption that fills all 256 tokens.
    """

    def __init__(self, config: GLIPConfig) -> None:
        self.config = config

    def __call__(self, output: GLIPOutput, batch: GroundingBatch) -> dict[str, Tensor]:
        """Compare predictions with the batch's targets.

        Returns:
            Scalars ``loss_token``, ``loss_box`` and ``loss_centerness``; their sum is minimised. Normalisers are
            averaged over ranks when torch.distributed runs.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("the batch has no targets; collate it with targets to compute losses")
        with torch.autocast(output.token_logits.device.type, enabled=False):
            return self._losses(output, batch, batch.targets)

    def _losses(
        self, output: GLIPOutput, batch: GroundingBatch, targets: tuple[GroundingTarget, ...]
    ) -> dict[str, Tensor]:
        config = self.config
        logits = output.token_logits.float()
        anchors = anchor_grid(output.level_sizes, config.strides, config.anchor_scale, logits.device)
        per_level = tuple(height * width for height, width in output.level_sizes)
        matches, most, before = [], 0, 0  # anchors of the batch to boxes of the batch
        token_mask = batch.attention_mask.clone()
        for i, target in enumerate(targets):
            match = match_anchors(anchors, per_level, target.boxes_xyxy, config.atss_topk)
            matches.append(torch.where(match == UNMATCHED, UNMATCHED, match + before))
            before += len(target.boxes_xyxy)
            most += min(len(anchors), len(target.boxes_xyxy) * config.atss_topk * len(per_level))
            if target.token_mask is not None:
                token_mask[i] &= target.token_mask
        matched = torch.cat(matches)
        # Positive anchors over the flattened batch; behind them, on a GPU, empty rows, which weigh nothing.
        index, real = positions(matched != UNMATCHED, most)
        place = index.clamp(max=len(matched) - 1)
        rows = matched[place].clamp(min=0)
        matched_anchors = anchors[place % len(anchors)]
        boxes = torch.cat([target.boxes_xyxy for target in targets])[rows].float()
        boxes = torch.where(real[:, None], boxes, matched_anchors)
        positive_map = torch.cat([target.positive_map for target in targets])
        token_targets = logits.new_zeros(len(matched) + 1, logits.shape[-1])  # the last row is that of the empty ones
        token_targets[index] = positive_map[rows].to(logits.dtype)
        token_targets = token_targets[:-1].view_as(logits)
        weights = torch.where(real, torch.cat([target.weights() for target in targets])[rows], 0.0)
        quality = torch.where(real, centerness_of(matched_anchors, boxes), 0.0)
        trust = [target.boxes_xyxy.new_full((len(target.boxes_xyxy),), target.shape_weight) for target in targets]
        shape_weights = weights * torch.cat(trust)[rows]
        sums = torch.stack((weights.sum(), shape_weights.sum(), (shape_weights * quality).sum()))
        num_positives, num_shapes, quality_sum = _mean_over_ranks(sums).unbind()
        deltas = torch.where(real[:, None], output.box_deltas.float().flatten(0, 1)[place], 0.0)
        predicted = decode_boxes(deltas, matched_anchors)
        # The published target passes through the codec as well.
        expected = decode_boxes(encode_boxes(boxes, matched_anchors), matched_anchors)
        giou_loss = (shape_weights * quality * (1 - generalised_iou(predicted, expected))).sum()
        centerness = output.centerness.float().flatten()[place]
        entropy = F.binary_cross_entropy_with_logits(centerness, quality, reduction="none")
        centerness_loss = (shape_weights * torch.where(real, entropy, 0.0)).sum()
        anchor_weights = None
        if any(target.box_weights is not None for target in targets):
            anchor_weights = logits.new_ones(len(matched) + 1)
            anchor_weights[index] = weights
            anchor_weights = anchor_weights[:-1].view(logits.shape[:2])
        token_loss = focal_loss(
            logits, token_targets, token_mask, config.focal_alpha, config.focal_gamma, anchor_weights
        )
        return {
            "loss_token": config.token_loss_weight * token_loss / num_positives.clamp(min=1.0),
            "loss_box": config.box_loss_weight * giou_loss / quality_sum.clamp(min=1e-6),
            "loss_centerness": config.centerness_loss_weight * centerness_loss / num_shapes.clamp(min=1.0),
        }


def positions(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return where a mask (M,) is True, (K,) int64, without waiting for a GPU, and which of the K there are.

    Elsewhere K is how many there are. On a GPU it is ``most``, which must be no less: their number is not known there
    before all work has been done. What is too much is M.
    """
    if mask.device.type == "cpu":
        index = mask.nonzero().squeeze(1)
    else:
        index = mask.nonzero_static(size=most, fill_value=len(mask)).squeeze(1)
    return index, index < len(mask)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    token_mask: Tensor,
    alpha: float,
    gamma: float,
    anchor_weights: Tensor | None = None,
) -> Tensor:
    """Sum the focal loss of all anchor-token pairs.

    Args:
        logits: (B, A, T).
        targets: (B, A, T) of 0 and 1.
        token_mask: (B, T) bool; tokens that are False take no part. Special tokens and unmentioned words stay in,
            as negatives.
        alpha: weight of positives; negatives weigh 1 - alpha.
        gamma: exponent that fades out what is already right.
        anchor_weights: (B, A), how much the positives of each anchor count; None means 1. Negatives count in full: what
            a doubtful box is not, it is not either where it is wrong.

    Source: Focal Loss (Lin et al., ICCV 2017).
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    miss = torch.where(targets > 0, 1 - probability, probability)
    positive = alpha if anchor_weights is None else alpha * anchor_weights.unsqueeze(-1)
    weight = torch.where(targets > 0, positive, 1 - alpha)
    return (weight * entropy * miss**gamma * token_mask.unsqueeze(1)).sum()


def centerness_of(anchors: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Return (N,) in [0, 1]: how central each anchor's centre lies in its box; 1 in the middle.

    Source: FCOS (Tian et al., ICCV 2019).
    """
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, after = center - boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - center
    ratio = torch.minimum(before, after) / torch.maximum(before, after)
    return ratio.clamp(min=0).prod(-1).sqrt()


def _mean_over_ranks(value: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value.detach()
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()
