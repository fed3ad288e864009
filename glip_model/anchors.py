"""The anchor grid: one square anchor per cell of every level."""

from __future__ import annotations

import torch
from torch import Tensor

from glip_model.cached import cached_by_size


@cached_by_size
def anchor_grid(
    level_sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], anchor_scale: float, device: torch.device
) -> Tensor:
    """Return (A, 4) anchors of all levels, row-major, as inclusive corners.

    An anchor is ``anchor_scale`` strides wide and centred on (stride - 1) / 2 of its cell; for scale 8 and stride 8
    the first is (-28, -28, 35, 35), as published. Anchors that leave the picture stay.
    """
    grids = []
    for (height, width), stride in zip(level_sizes, strides, strict=True):
        half = (anchor_scale * stride - 1) / 2
        y = torch.arange(height, device=device) * stride + (stride - 1) / 2
        x = torch.arange(width, device=device) * stride + (stride - 1) / 2
        center_y, center_x = torch.meshgrid(y, x, indexing="ij")
        center = torch.stack((center_x, center_y), -1).view(-1, 2).float()
        grids.append(torch.cat((center - half, center + half), -1))
    return torch.cat(grids)
