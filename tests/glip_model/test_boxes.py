"""Box arithmetic against loops, hand-worked numbers and round trips."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glip_model.boxes import (
    MAX_LOG_SIZE,
    box_area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    generalised_iou,
    iou,
    pairwise_iou,
    to_exclusive,
    to_inclusive,
)

corner = st.integers(-40, 400).map(lambda quarter: quarter / 4)
side = st.integers(1, 400).map(lambda quarter: quarter / 4)
box = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def loop_iou(left: tuple[float, ...], right: tuple[float, ...], extra: float) -> float:
    width = min(left[2], right[2]) - max(left[0], right[0]) + extra
    height = min(left[3], right[3]) - max(left[1], right[1]) + extra
    shared = width * height if width > 0 and height > 0 else 0.0
    areas = [(b[2] - b[0] + extra) * (b[3] - b[1] + extra) for b in (left, right)]
    return shared / (sum(areas) - shared)


def as_tensor(boxes: list[tuple[float, ...]]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4)


@given(st.lists(box, max_size=4), st.lists(box, max_size=4), st.booleans())
def test_iou_of_every_pair(left: list[tuple[float, ...]], right: list[tuple[float, ...]], plus_one: bool) -> None:
    found = pairwise_iou(as_tensor(left), as_tensor(right), plus_one)
    assert found.shape == (len(left), len(right))
    for i, first in enumerate(left):
        for j, second in enumerate(right):
            assert found[i, j].item() == pytest.approx(loop_iou(first, second, float(plus_one)), abs=1e-5)


@given(box, box)
def test_iou_of_two(left: tuple[float, ...], right: tuple[float, ...]) -> None:
    assert iou(left, right) == pytest.approx(loop_iou(left, right, 0.0))
    assert iou((3, 3, 3, 3), (3, 3, 3, 3)) == 0


def test_plus_one_counts_pixels_inclusively() -> None:
    point, neighbour = as_tensor([(3, 3, 3, 3)]), as_tensor([(3, 3, 4, 3)])
    assert box_area(point, plus_one=True).item() == 1
    assert pairwise_iou(point, neighbour, plus_one=True).item() == 0.5
    assert box_area(point).item() == 0
    assert pairwise_iou(point, point).item() == 0  # an empty union, not NaN


def test_boxes_turned_inside_out_have_no_area() -> None:
    assert box_area(as_tensor([(5, 5, 2, 9), (5, 5, 2, 3)])).tolist() == [0, 0]


@given(box, box)
def test_generalised_iou_is_iou_less_the_empty_share_of_the_hull(
    first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    hull = (max(first[2], second[2]) - min(first[0], second[0])) * (max(first[3], second[3]) - min(first[1], second[1]))
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
    iou = loop_iou(first, second, 0.0)
    union = sum(areas) / (1 + iou)  # shared = iou × union, and union = areas − shared
    expected = iou - (hull - union) / hull
    found = generalised_iou(as_tensor([first]), as_tensor([second])).item()
    assert found == pytest.approx(expected, abs=1e-4)
    assert -1 <= found <= 1 + 1e-6


def test_generalised_iou_pulls_boxes_that_do_not_meet_together() -> None:
    predicted = as_tensor([(0, 0, 10, 10)]).requires_grad_()
    generalised_iou(predicted, as_tensor([(30, 0, 40, 10)])).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 2] > 0  # moving the right side to the right helps


def test_generalised_iou_has_finite_gradients_for_boxes_without_area() -> None:
    predicted = as_tensor([(5, 5, 5, 5), (5, 5, 4, 4)]).requires_grad_()
    value = generalised_iou(predicted, as_tensor([(5, 5, 5, 5), (0, 0, 9, 9)]))
    value.sum().backward()
    assert value.isfinite().all()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()


@given(box, box)
def test_decoding_undoes_encoding(target: tuple[float, ...], anchor: tuple[float, ...]) -> None:
    boxes, anchors = as_tensor([target]), as_tensor([anchor])
    ratio = max(
        (target[2] - target[0] + 1) / (anchor[2] - anchor[0] + 1),
        (target[3] - target[1] + 1) / (anchor[3] - anchor[1] + 1),
    )
    decoded = decode_boxes(encode_boxes(boxes, anchors), anchors)
    if ratio < 1000 / 16:
        torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-2)
    else:
        assert (decoded[0, 2:] - decoded[0, :2] <= boxes[0, 2:] - boxes[0, :2]).all()


def test_deltas_are_the_published_ones() -> None:
    anchor, target = as_tensor([(0, 0, 9, 19)]), as_tensor([(4, 2, 23, 41)])  # 10 × 20 and 20 × 40 pixels
    deltas = encode_boxes(target, anchor)[0].tolist()
    assert deltas == pytest.approx([10 * (13.5 - 4.5) / 10, 10 * (21.5 - 9.5) / 20, 5 * math.log(2), 5 * math.log(2)])
    assert decode_boxes(torch.zeros(1, 4), anchor).tolist() == anchor.tolist()


def test_decoded_sizes_are_bounded() -> None:
    decoded = decode_boxes(torch.tensor([[0.0, 0.0, 500.0, -500.0]]), as_tensor([(0, 0, 15, 15)]))[0]
    assert (decoded[2] - decoded[0] + 1).item() == pytest.approx(1000, rel=1e-5)
    assert math.exp(MAX_LOG_SIZE) == pytest.approx(62.5)
    assert (decoded[3] - decoded[1] + 1).item() == pytest.approx(0, abs=1e-5)


@given(st.lists(box, max_size=4), st.integers(1, 60), st.integers(1, 60))
def test_clipped_boxes_end_at_the_edge_or_on_the_last_pixel(
    boxes: list[tuple[float, ...]], height: int, width: int
) -> None:
    for inclusive in (False, True):
        clipped = clip_boxes(as_tensor(boxes), (height, width), inclusive)
        expected = [
            (*(min(max(x, 0), limit - inclusive) for x, limit in zip(b, (width, height, width, height), strict=True)),)
            for b in boxes
        ]
        assert clipped.tolist() == as_tensor(expected).tolist()


def test_inclusive_corners_are_a_pixel_before_exclusive_ones() -> None:
    boxes = as_tensor([(2, 3, 5, 9), (0, 0, 1, 1)])
    assert to_inclusive(boxes).tolist() == [[2, 3, 4, 8], [0, 0, 0, 0]]
    assert to_exclusive(to_inclusive(boxes)).tolist() == boxes.tolist()
