"""The dynamic head's layer: deformable convolutions across neighbouring levels, scale attention, task activation.

Letters: B pictures, C channels, h w cells of a level.

Source: Dynamic Head (Dai et al., CVPR 2021) in the form of GLIP's published model.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glip_model.deformable import TAPS, deformable_conv2d

DYRELU_REDUCTION = 4


class DeformableConv(nn.Module):
    """A modulated deformable 3×3 convolution and its GroupNorm; a plain convolution where no offsets are given."""

    def __init__(self, channels: int, norm_groups: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(norm_groups, channels)
        nn.init.uniform_(self.weight, -1 / math.sqrt(channels * TAPS), 1 / math.sqrt(channels * TAPS))

    def forward(self, x: Tensor, offset: Tensor | None, modulation: Tensor | None) -> Tensor:
        """Convolve (B, C, h, w); offsets (B, 18, h', w') and modulation (B, 9, h', w') fit the output's size."""
        if offset is None or modulation is None:
            y = F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=1)
        else:
            y = deformable_conv2d(x, offset, modulation, self.weight, self.bias, self.stride)
        normed: Tensor = self.norm(y)
        return normed


class DyReLU(nn.Module):
    """Task-aware activation: the larger of two linear functions whose coefficients depend on the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // DYRELU_REDUCTION)
        self.expand = nn.Linear(channels // DYRELU_REDUCTION, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        theta = F.hardsigmoid(self.expand(F.relu(self.squeeze(x.mean((2, 3))))))
        slope1, offset1, slope2, offset2 = (theta - 0.5)[:, :, None, None].chunk(4, 1)
        return torch.maximum(x * (2 * slope1 + 1) + offset1, x * (2 * slope2) + offset2)


class DyConv(nn.Module):
    """One layer over all levels: every level mixes itself with its finer and coarser neighbours."""

    def __init__(self, channels: int, norm_groups: int, deformable: bool) -> None:
        super().__init__()
        self.coarser = DeformableConv(channels, norm_groups, stride=1)
        self.same = DeformableConv(channels, norm_groups, stride=1)
        self.finer = DeformableConv(channels, norm_groups, stride=2)
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1) if deformable else None
        self.scale_attention = nn.Conv2d(channels, 1, 1)
        self.activation = DyReLU(channels)
        nn.init.normal_(self.scale_attention.weight, std=0.01)
        nn.init.zeros_(self.scale_attention.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map levels (B, C, h, w), finest first, to the same shapes."""
        return [self.activation(self._mix(levels, i)) for i in range(len(levels))]

    def _mix(self, levels: list[Tensor], i: int) -> Tensor:
        level = levels[i]
        offset = modulation = None
        if self.offset is not None:
            raw = self.offset(level)
            # The same offsets and modulation serve all branches of this level.
            offset, modulation = raw[:, : 2 * TAPS], raw[:, 2 * TAPS :].sigmoid()
        branches = [self.same(level, offset, modulation)]
        if i > 0:
            branches.append(self.finer(levels[i - 1], offset, modulation))
        if i + 1 < len(levels):
            coarse = levels[i + 1]
            size = (coarse.shape[-2], coarse.shape[-1])
            fitted = (None if x is None else first_values(x, size) for x in (offset, modulation))
            y = self.coarser(coarse, *fitted)
            branches.append(F.interpolate(y, size=level.shape[-2:], mode="bilinear", align_corners=True))
        weighted = [self._attention(branch) * branch for branch in branches]
        return torch.stack(weighted).mean(0)

    def _attention(self, branch: Tensor) -> Tensor:
        """Return (B, 1, 1, 1) in [0.5, 1], one weight per picture."""
        return F.hardsigmoid(F.relu(self.scale_attention(branch.mean((2, 3), keepdim=True))))


def first_values(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Reinterpret the memory of (B, K, h, w) as (B, K, *size), taking as many leading values as fit.

    The coarser branch receives offsets made for the finer level. The published kernel does not check their size and
    indexes the buffer as if it had the coarser level's shape; released weights were trained with that.
    """
    batch, channels = x.shape[:2]
    count = channels * size[0] * size[1]
    return x.flatten(1)[:, :count].reshape(batch, channels, *size)
