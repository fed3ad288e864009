"""The anchor grid against the published boxes."""

from __future__ import annotations

import pytest
import torch

from glip_model.anchors import anchor_grid
from glip_model.boxes import decode_boxes

CPU = torch.device("cpu")
STRIDES = (8, 16, 32, 64, 128)


def test_first_anchor_of_every_level_is_the_published_one() -> None:
    anchors = anchor_grid(((1, 1),) * 5, STRIDES, 8.0, CPU)
    assert anchors.tolist() == [[-low, -low, high, high] for low, high in
                                ((28, 35), (56, 71), (112, 143), (224, 287), (448, 575))]  # fmt: skip


def test_anchors_run_along_rows_from_the_finest_level() -> None:
    anchors = anchor_grid(((2, 3), (1, 2)), (8, 16), 4.0, CPU)
    expected = []
    for stride, height, width in ((8, 2, 3), (16, 1, 2)):
        for row in range(height):
            for column in range(width):
                x, y = column * stride + (stride - 1) / 2, row * stride + (stride - 1) / 2
                half = (4 * stride - 1) / 2  # inclusive corners: 4 strides wide
                expected.append([x - half, y - half, x + half, y + half])
    assert anchors.tolist() == expected
    assert anchors.dtype == torch.float32


def test_a_grid_first_asked_for_in_inference_serves_training() -> None:
    with torch.inference_mode():
        anchors = anchor_grid(((3, 5),), (8,), 3.0, CPU)
    deltas = torch.zeros(15, 4, requires_grad=True)
    decode_boxes(deltas, anchors).sum().backward()
    assert deltas.grad is not None


def test_every_level_needs_a_stride() -> None:
    with pytest.raises(ValueError, match="shorter"):
        anchor_grid(((2, 2), (1, 1)), (8,), 8.0, CPU)
