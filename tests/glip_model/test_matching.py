"""ATSS against a double loop over boxes and anchors."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from glip_model.anchors import anchor_grid
from glip_model.matching import MIN_INSIDE, UNMATCHED, match_anchors

LEVELS = ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
STRIDES = (8, 16, 32, 64, 128)
COUNTS = tuple(height * width for height, width in LEVELS)


def grid(scale: float = 8.0, levels: int = 5) -> Tensor:
    return anchor_grid(LEVELS[:levels], STRIDES[:levels], scale, torch.device("cpu"))


def inclusive_iou(left: list[float], right: list[float]) -> float:
    width = min(left[2], right[2]) - max(left[0], right[0]) + 1
    height = min(left[3], right[3]) - max(left[1], right[1]) + 1
    shared = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (left, right)]
    return shared / (sum(areas) - shared)


def slow_match(anchors: Tensor, counts: tuple[int, ...], boxes: Tensor, topk: int) -> list[int]:
    best: list[tuple[float, int]] = [(-1.0, UNMATCHED)] * len(anchors)
    for number, box in enumerate(boxes.tolist()):
        candidates, start = [], 0
        for count in counts:

            def distance(index: int, box: list[float] = box) -> float:
                a = anchors[index].tolist()
                return math.dist(((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))

            candidates += sorted(range(start, start + count), key=distance)[:topk]
            start += count
        overlaps = {index: inclusive_iou(anchors[index].tolist(), box) for index in candidates}
        threshold = statistics.mean(overlaps.values())
        threshold += statistics.stdev(overlaps.values()) if len(overlaps) > 1 else 0
        for index, overlap in overlaps.items():
            a = anchors[index].tolist()
            x, y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > MIN_INSIDE
            if overlap >= threshold and inside and overlap > best[index][0]:
                best[index] = (overlap, number)
    return [number for _, number in best]


def random_boxes(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([90.0, 60.0]) - 4
    return torch.cat((corners, corners + 3 + torch.rand(count, 2, generator=generator) ** 2 * 70), 1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("scale", "levels", "topk"), [(8.0, 5, 9), (4.0, 3, 9), (4.0, 3, 3), (2.0, 2, 30)])
def test_assignment_equals_the_double_loop(seed: int, scale: float, levels: int, topk: int) -> None:
    anchors, boxes = grid(scale, levels), random_boxes(seed, 1 + seed % 6)
    found = match_anchors(anchors, COUNTS[:levels], boxes, topk)
    assert found.tolist() == slow_match(anchors, COUNTS[:levels], boxes, topk)
    assert found.dtype == torch.int64


def test_random_boxes_do_find_anchors_and_do_compete() -> None:
    """The comparison above is about something: positives exist, and some anchors are claimed twice."""
    positives, contested = 0, 0
    for seed in range(12):
        boxes = random_boxes(seed, 1 + seed % 6)
        alone = [match_anchors(grid(4.0, 3), COUNTS[:3], box[None], 9) >= 0 for box in boxes]
        positives += int((match_anchors(grid(4.0, 3), COUNTS[:3], boxes, 9) >= 0).sum())
        contested += int((torch.stack(alone).sum(0) > 1).sum())
    assert positives > 20
    assert contested > 0


def test_a_picture_without_boxes_is_all_background() -> None:
    assert match_anchors(grid(), COUNTS, torch.zeros(0, 4), 9).tolist() == [UNMATCHED] * sum(COUNTS)


def test_an_anchor_claimed_twice_goes_to_the_better_box() -> None:
    anchors = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    boxes = torch.tensor([[0.0, 0.0, 19.0, 9.0], [0.0, 0.0, 9.0, 10.0], [1.0, 1.0, 30.0, 30.0]])
    assert match_anchors(anchors, (1,), boxes, 9).tolist() == [1]


def test_a_box_may_end_without_an_anchor() -> None:
    between_centres = torch.tensor([[4.5, 4.5, 6.5, 6.5]])  # cell centres lie at 3.5, 11.5, 19.5 ...
    assert (match_anchors(grid(), COUNTS, between_centres, 9) == UNMATCHED).all()


def test_two_candidates_spread_as_more_do() -> None:
    anchors, box = torch.tensor([[0.0, 0.0, 9.0, 9.0], [4.0, 0.0, 13.0, 9.0]]), torch.tensor([[0.0, 0.0, 11.0, 9.0]])
    # IoUs of 0.83 and 0.57: neither reaches their mean and their deviation, 0.70 + 0.19.
    assert match_anchors(anchors, (2,), box, 9).tolist() == slow_match(anchors, (2,), box, 9) == [UNMATCHED] * 2


@pytest.mark.parametrize(("inside", "expected"), [(0.02, 0), (0.007, UNMATCHED)])
def test_a_centre_must_be_a_hundredth_of_a_pixel_inside(inside: float, expected: int) -> None:
    left = 5 - inside  # of the anchor's centre
    anchors, box = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[left, 0.0, left + 10, 10.0]])
    assert match_anchors(anchors, (1,), box, 9).tolist() == [expected]


def test_the_order_of_boxes_does_not_matter() -> None:
    boxes = random_boxes(3, 5)
    order = torch.tensor([4, 2, 0, 1, 3])
    straight, shuffled = (match_anchors(grid(4.0), COUNTS, b, 9) for b in (boxes, boxes[order]))
    assert torch.equal(torch.where(shuffled >= 0, order[shuffled.clamp(min=0)], UNMATCHED), straight)
