"""Modulated deformable 3×3 convolution: torchvision's kernel on a GPU, gather and matrix product elsewhere.

In an ONNX graph it is the standard's own operator, DeformConv of opset 19.

Letters: B pictures, C channels, h w cells of the output, K = 9 sampling points of a cell.

Source: Deformable ConvNets v2 (Zhu et al., CVPR 2019).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9
"""Sampling points of a 3×3 kernel."""
_SIDE = 3


def deformable_conv2d(
    x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
) -> Tensor:
    """Convolve with a 3×3 kernel whose points are moved and weighted cell by cell; padding 1.

    Args:
        x: (B, C, H, W).
        offset: (B, 2·K, h, w) in cells of ``x``, row before column for every point.
        modulation: (B, K, h, w).
        weight: (C', C, 3, 3).
        bias: (C',).
        stride: of the output over ``x``.

    Returns:
        (B, C', h, w), under autocast in its type. Points outside of ``x`` read zero, those at its edge are blended
        with zero.
    """
    # At least float32 up to the matrix product: sampling positions lose whole cells in half precision.
    x, offset, modulation = (part if part.dtype == torch.float64 else part.float() for part in (x, offset, modulation))
    if x.is_cuda:
        from torchvision.ops import deform_conv2d  # takes as long to import as all else

        with torch.autocast("cuda", enabled=False):
            y: Tensor = deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=modulation)
            return y
    if torch.onnx.is_in_onnx_export():
        exported: Tensor = _DeformConv.apply(x, offset, modulation, weight, bias, stride)
        return exported
    index, share = _corners(offset, modulation, (x.shape[-2], x.shape[-1]), stride)
    cells = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])  # (BHW, C)
    sampled = F.embedding_bag(index, cells, mode="sum", per_sample_weights=share)  # (BhwK, C)
    kernel = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)  # (C', KC)
    batch, _, height, width = offset.shape
    y = F.linear(sampled.view(batch, height, width, -1), kernel, bias)
    return y.permute(0, 3, 1, 2)


class _DeformConv(torch.autograd.Function):
    """The convolution as one node of an ONNX graph: three times as fast in onnxruntime as gathers and a product."""

    @staticmethod
    def symbolic(g: Any, x: Any, offset: Any, modulation: Any, weight: Any, bias: Any, stride: int) -> Any:
        """Write the node."""
        sides = {"kernel_shape_i": [_SIDE] * 2, "pads_i": [1] * 4, "strides_i": [stride] * 2, "offset_group_i": 1}
        return g.op("DeformConv", x, weight, offset, bias, modulation, **sides)

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int
    ) -> Tensor:
        """Return something of the right shape: while a graph is traced, nothing else of it matters."""
        return F.conv2d(x, weight, bias, stride=stride, padding=1)


def _corners(offset: Tensor, modulation: Tensor, size: tuple[int, int], stride: int) -> tuple[Tensor, Tensor]:
    """Return per point the four cells around it, (BhwK, 4) into the flattened input, and their weights."""
    batch, _, height, width = offset.shape
    device, (rows, columns) = offset.device, size
    moved = torch.unflatten(offset, 1, (TAPS, 2)).permute(0, 3, 4, 1, 2)  # (B, h, w, K, 2)
    tap = torch.arange(TAPS, device=device)
    # Beyond one cell outside nothing is read; the bound keeps wild offsets inside the range of integers.
    y = (moved[..., 0] + (torch.arange(height, device=device)[:, None, None] * stride - 1 + tap // _SIDE)).clamp(
        -2, rows
    )
    x = (moved[..., 1] + (torch.arange(width, device=device)[:, None] * stride - 1 + tap % _SIDE)).clamp(-2, columns)
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    top, left = top.long(), left.long()
    picture = torch.arange(batch, device=device).view(-1, 1, 1, 1) * (rows * columns)
    weights = modulation.permute(0, 2, 3, 1)
    indices, shares = [], []
    for row, row_share in ((top, 1 - down), (top + 1, down)):
        for column, column_share in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            indices.append(picture + row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1))
            shares.append(row_share * column_share * weights * inside)
    return torch.stack(indices, -1).view(-1, 4), torch.stack(shares, -1).view(-1, 4)
