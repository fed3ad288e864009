"""Deformable convolution against a loop over every point, and against torchvision's kernel."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import deform_conv2d

from glip_model.deformable import deformable_conv2d
from glip_model.dyhead import first_values


def value_at(plane: Tensor, y: float, x: float) -> Tensor:
    """Read (C, H, W) between its cells; what lies outside is zero."""
    total = torch.zeros(plane.shape[0], dtype=plane.dtype)
    for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        if 0 <= row < plane.shape[1] and 0 <= column < plane.shape[2]:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[:, row, column]
    return total


def loop(x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    batch, _, height, width = offset.shape
    out = bias.repeat(batch, height, width, 1)
    for b, row, column, tap in itertools.product(range(batch), range(height), range(width), range(9)):
        y = row * stride - 1 + tap // 3 + float(offset[b, 2 * tap, row, column])
        at = column * stride - 1 + tap % 3 + float(offset[b, 2 * tap + 1, row, column])
        sample = value_at(x[b], y, at) * modulation[b, tap, row, column]
        out[b, row, column] += weight[:, :, tap // 3, tap % 3] @ sample
    return out.permute(0, 3, 1, 2)


def inputs(size: tuple[int, int], stride: int, reach: float, batch: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(size[0] * 7 + size[1])
    out = [(side - 1) // stride + 1 for side in size]
    return (
        torch.randn(batch, 3, *size, dtype=torch.float64),
        torch.randn(batch, 18, *out, dtype=torch.float64) * reach,
        torch.rand(batch, 9, *out, dtype=torch.float64),
        torch.randn(4, 3, 3, 3, dtype=torch.float64),
        torch.randn(4, dtype=torch.float64),
    )


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 2]), st.sampled_from([0.0, 0.5, 3.0, 50.0]))
def test_every_point_is_read_where_its_offset_says(height: int, width: int, stride: int, reach: float) -> None:
    x, offset, modulation, weight, bias = inputs((height, width), stride, reach)
    found = deformable_conv2d(x, offset, modulation, weight, bias, stride)
    torch.testing.assert_close(found, loop(x, offset, modulation, weight, bias, stride))


def test_whole_offsets_at_the_border_read_zero_outside_and_cells_inside() -> None:
    x, _, _, weight, bias = inputs((4, 4), 1, 0.0, batch=1)
    modulation = torch.ones(1, 9, 4, 4, dtype=torch.float64)
    for shift in (-5.0, -1.0, 1.0, 4.0, 1e12, -1e12):
        offset = torch.full((1, 18, 4, 4), shift, dtype=torch.float64)
        found = deformable_conv2d(x, offset, modulation, weight, bias, 1)
        torch.testing.assert_close(found, deform_conv2d(x, offset, weight, bias, padding=1, mask=modulation))


@pytest.mark.parametrize("stride", [1, 2])
def test_values_and_gradients_are_torchvisions(stride: int) -> None:
    arguments = [part.requires_grad_() for part in inputs((7, 6), stride, 2.0)]
    x, offset, modulation, weight, bias = arguments
    ours = deformable_conv2d(x, offset, modulation, weight, bias, stride)
    theirs = deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=modulation)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    for left, right in zip(
        torch.autograd.grad(ours, arguments, direction), torch.autograd.grad(theirs, arguments, direction), strict=True
    ):
        torch.testing.assert_close(left, right)


def test_without_offsets_it_is_a_plain_convolution() -> None:
    x, offset, modulation, weight, bias = inputs((6, 5), 1, 0.0)
    found = deformable_conv2d(x, offset, torch.ones_like(modulation), weight, bias, 1)
    torch.testing.assert_close(found, torch.nn.functional.conv2d(x, weight, bias, padding=1))


def test_offsets_of_a_finer_level_are_read_by_their_place_in_memory() -> None:
    # What a kernel does that trusts the shape it is told: value i of the coarse map is value i of the fine buffer.
    fine = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    coarse = first_values(fine, (2, 3))
    for b, channel, row, column in itertools.product(range(2), range(3), range(2), range(3)):
        place = (channel * 2 + row) * 3 + column
        assert coarse[b, channel, row, column] == fine[b].flatten()[place]
