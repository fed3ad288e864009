"""Feature pyramid: three backbone maps to levels P3 … P7 of one width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROP_BLOCK_SIZE = 3


class FPN(nn.Module):
    """Lateral 1×1 convolutions, nearest top-down path, 3×3 output convolutions; P6 and P7 by stride-2 convolutions.

    P6 is computed from P5, not from the backbone's last map: released weights depend on it.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int, num_levels: int, drop_block: float) -> None:
        super().__init__()
        self.drop_block = drop_block
        self.inner = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.layer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.top = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(num_levels - len(in_channels))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map backbone maps at strides 8, 16 and 32 to ``num_levels`` maps (B, C, h, w), finest first."""
        merged = self.inner[-1](maps[-1])
        levels = [self.layer[-1](merged)]
        for i in range(len(maps) - 2, -1, -1):
            merged = self.inner[i](maps[i]) + F.interpolate(merged, size=maps[i].shape[-2:], mode="nearest")
            levels.insert(0, self.layer[i](self._drop(merged)))
        for i, convolution in enumerate(self.top):
            levels.append(convolution(F.relu(levels[-1]) if i else levels[-1]))
        return levels

    def _drop(self, merged: Tensor) -> Tensor:
        """DropBlock on what enters an output convolution; the map that continues downwards stays whole."""
        if not self.training or self.drop_block == 0.0:
            return merged
        batch, _, height, width = merged.shape
        seeds = torch.rand(batch, 1, height, width, device=merged.device) < self.drop_block / DROP_BLOCK_SIZE**2
        dropped = F.max_pool2d(seeds.float(), DROP_BLOCK_SIZE, stride=1, padding=DROP_BLOCK_SIZE // 2)
        keep = (1.0 - dropped).to(merged.dtype)
        return merged * keep * (keep.numel() / keep.sum().clamp(min=1.0))
