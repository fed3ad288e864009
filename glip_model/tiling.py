"""Detection in large pictures by overlapping tiles: their places, and how their detections are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from glip_model.boxes import box_area
from glip_model.structures import Detections, join_detections

OVERLAP = 0.2
"""Share of a piece's side that the next one shows again, so that what a border cuts is whole in one of them."""
INSIDE = 0.6
"""A box that a border cuts goes where so much of it lies in a better one, or it in that."""
_AT_BORDER = 2.0
"""Pixels from a border between pieces within which a side counts as cut."""

Tile = tuple[int, int, int, int]
"""Corners x1 y1 x2 y2 in pixels of the picture."""


def tiles(size: tuple[int, int], side: int) -> list[Tile]:
    """Return the pieces of a picture, the whole of it first: what is large is found there.

    Args:
        size: (height, width).
        side: of a piece in pixels; a picture that is no larger is looked at whole, and no further.

    Raises:
        ValueError: the side is below 32 pixels.
    """
    if side < 32:
        raise ValueError(f"pieces of {side} pixels show too little; expected a side of at least 32")
    height, width = size
    whole = (0, 0, width, height)
    if max(size) <= side:
        return [whole]
    return [
        whole,
        *(
            (x, y, min(x + side, width), min(y + side, height))
            for y in _starts(height, side)
            for x in _starts(width, side)
        ),
    ]


def find_in_tiles(
    find: Callable[[Sequence[Image.Image]], list[Detections]],
    image: Image.Image,
    side: int,
    batch_size: int,
    iou_threshold: float,
) -> Detections:
    """Find in overlapping pieces of a picture and in the whole, so many pieces at a time; the rest as ``merge_tiles``.

    Args:
        find: returns what is found in each of several pictures.
        image: RGB.
        side: of a piece in pixels.
        batch_size: pieces at once.
        iou_threshold: above which boxes of a phrase suppress one another.
    """
    size = image.height, image.width
    places = tiles(size, side)
    found: list[Detections] = []
    for start in range(0, len(places), batch_size):
        found += find([image.crop(place) for place in places[start : start + batch_size]])
    return merge_tiles(found, places, size, iou_threshold)


def merge_tiles(
    parts: Sequence[Detections], places: Sequence[Tile], size: tuple[int, int], iou_threshold: float = 0.6
) -> Detections:
    """Put together what was found in the pieces of a picture for the same phrases.

    Of boxes of a phrase that overlap the better stays; one that a border between pieces cuts gives way to any that has
    most of it.

    Args:
        parts: per piece what was found, in its own pixels.
        places: of the pieces.
        size: (height, width) of the picture.
        iou_threshold: above which boxes of a phrase suppress one another.
    """
    moved = [
        replace(part, boxes_xyxy=part.boxes_xyxy + torch.tensor([place[0], place[1]] * 2, dtype=torch.float32))
        for part, place in zip(parts, places, strict=True)
    ]
    is_cut = torch.cat([_is_cut(part.boxes_xyxy, place, size) for part, place in zip(moved, places, strict=True)])
    joined = join_detections(moved, [0] * len(moved))  # the same phrases: their places are not counted through
    is_cut = is_cut[torch.cat([part.scores for part in moved]).argsort(descending=True, stable=True)]
    kept = _suppress(joined.boxes_xyxy, joined.phrase_index, is_cut, iou_threshold)
    return replace(
        parts[0],
        boxes_xyxy=joined.boxes_xyxy[kept],
        scores=joined.scores[kept],
        phrase_index=joined.phrase_index[kept],
    )


def _starts(length: int, side: int) -> list[int]:
    """Return where pieces begin along one side: spread evenly, overlapping by at least ``OVERLAP``."""
    if length <= side:
        return [0]
    count = -(-(length - side) // int(side * (1 - OVERLAP))) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _is_cut(boxes: Tensor, place: Tile, size: tuple[int, int]) -> Tensor:
    """Tell of boxes of a piece whether they reach a border of it that is not one of the picture's."""
    height, width = size
    x1, y1, x2, y2 = place
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    for border, edge, column in ((x1, 0, 0), (y1, 0, 1), (x2, width, 2), (y2, height, 3)):
        if border != edge:
            cut |= (boxes[:, column] - border).abs() <= _AT_BORDER
    return cut


def _suppress(boxes: Tensor, phrases: Tensor, is_cut: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes stay, of boxes in order of their scores: whole ones are given their place first."""
    stays = torch.zeros(len(boxes), dtype=torch.bool)
    areas = box_area(boxes)
    for i in [*torch.nonzero(~is_cut).flatten().tolist(), *torch.nonzero(is_cut).flatten().tolist()]:
        rivals = stays & (phrases == phrases[i])
        both = boxes[rivals]
        sides = torch.minimum(both[:, 2:], boxes[i, 2:]) - torch.maximum(both[:, :2], boxes[i, :2])
        shared = sides.clamp(min=0).prod(1)
        smaller = torch.minimum(areas[rivals], areas[i]).clamp(min=1e-6)
        union = (areas[rivals] + areas[i] - shared).clamp(min=1e-6)
        is_rival = shared / union > iou_threshold
        if is_cut[i]:
            is_rival |= shared / smaller > INSIDE
        stays[i] = not bool(is_rival.any())
    return stays
