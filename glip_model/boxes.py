"""Boxes: IoU in both pixel conventions, generalised IoU, clipping, and the delta codec of the published model.

The published code counts pixels inclusively in some places ("+1": a box from 3 to 3 is one pixel wide) and not in
others. Each function says which convention it follows; released weights and published numbers depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from glip_model.cached import cached_by_size

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MAX_LOG_SIZE = math.log(1000.0 / 16)
"""Decoded boxes are at most 62.5 anchors wide or high."""
IOU_EPSILON = 1e-7


def box_area(boxes_xyxy: Tensor, plus_one: bool = False) -> Tensor:
    """Return (…,) areas of (…, 4) boxes; ``plus_one`` counts pixels inclusively."""
    extra = 1.0 if plus_one else 0.0
    width = (boxes_xyxy[..., 2] - boxes_xyxy[..., 0] + extra).clamp(min=0)
    height = (boxes_xyxy[..., 3] - boxes_xyxy[..., 1] + extra).clamp(min=0)
    return width * height


def pairwise_iou(left: Tensor, right: Tensor, plus_one: bool = False) -> Tensor:
    """Return (…, M, N) IoU of (…, M, 4) and (…, N, 4) boxes; 0 where a union is empty."""
    extra = 1.0 if plus_one else 0.0
    top_left = torch.maximum(left[..., None, :2], right[..., None, :, :2])
    bottom_right = torch.minimum(left[..., None, 2:], right[..., None, :, 2:])
    shared = (bottom_right - top_left + extra).clamp(min=0).prod(-1)
    union = box_area(left, plus_one)[..., None] + box_area(right, plus_one)[..., None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=IOU_EPSILON), torch.zeros_like(shared))


def iou(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the IoU of two boxes x1 y1 x2 y2 given as plain numbers; 0 where they share nothing."""
    width = min(left[2], right[2]) - max(left[0], right[0])
    height = min(left[3], right[3]) - max(left[1], right[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    union = (left[2] - left[0]) * (left[3] - left[1]) + (right[2] - right[0]) * (right[3] - right[1]) - shared
    return shared / union


def generalised_iou(left: Tensor, right: Tensor) -> Tensor:
    """Return (N,) GIoU in [-1, 1] of paired (N, 4) boxes, without "+1".

    Source: Rezatofighi et al., CVPR 2019; the box loss of the published model.
    """
    top_left = torch.maximum(left[:, :2], right[:, :2])
    bottom_right = torch.minimum(left[:, 2:], right[:, 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = box_area(left) + box_area(right) - shared
    hull = (torch.maximum(left[:, 2:], right[:, 2:]) - torch.minimum(left[:, :2], right[:, :2])).clamp(min=0).prod(-1)
    return shared / (union + IOU_EPSILON) - (hull - union) / (hull + IOU_EPSILON)


def clip_boxes(boxes_xyxy: Tensor, image_size: tuple[int, int], inclusive: bool = False) -> Tensor:
    """Clip (…, 4) boxes to [0, W] × [0, H] of a picture given as (height, width); to its last pixels if inclusive."""
    height, width = image_size
    x, y = (boxes_xyxy[..., axis::2].clamp(0, side - int(inclusive)) for axis, side in ((0, width), (1, height)))
    return torch.stack((x, y), -1).flatten(-2)


def to_inclusive(boxes_xyxy: Tensor) -> Tensor:
    """Return (…, 4) boxes that end with the last pixel they hold, of boxes that end where the next one begins."""
    return boxes_xyxy - constant((0.0, 0.0, 1.0, 1.0), boxes_xyxy.dtype, boxes_xyxy.device)


def to_exclusive(boxes_xyxy: Tensor) -> Tensor:
    """Undo ``to_inclusive``."""
    return boxes_xyxy + constant((0.0, 0.0, 1.0, 1.0), boxes_xyxy.dtype, boxes_xyxy.device)


def encode_boxes(boxes_xyxy: Tensor, anchors: Tensor) -> Tensor:
    """Return (N, 4) weighted deltas of boxes against anchors; widths count inclusively ("+1")."""
    box_center, box_size = _center_size(boxes_xyxy)
    anchor_center, anchor_size = _center_size(anchors)
    shift = (box_center - anchor_center) / anchor_size
    deltas = torch.cat((shift, torch.log(box_size / anchor_size)), -1)
    return deltas * constant(DELTA_WEIGHTS, deltas.dtype, deltas.device)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Return boxes (…, 4) of deltas (…, 4) against anchors (…, 4); the inverse of ``encode_boxes``."""
    center, size = _center_size(anchors)
    deltas = deltas / constant(DELTA_WEIGHTS, deltas.dtype, deltas.device)
    center = center + deltas[..., :2] * size
    size = size * deltas[..., 2:].clamp(max=MAX_LOG_SIZE).exp()
    half = (size - 1) / 2  # inclusive corners
    return torch.cat((center - half, center + half), -1)


@cached_by_size
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the numbers as a tensor, kept on its device: sending them anew each time would wait for a GPU."""
    return torch.tensor(values, dtype=dtype, device=device)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2] + 1
