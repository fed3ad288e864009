"""Swin Transformer as GLIP uses it: any picture size, maps padded before they are shifted, output norms.

Letters: B pictures, H W cells, C channels, h heads, w window side, n = w·w cells of a window.

Sources: Swin Transformer (Liu et al., ICCV 2021); GLIP's published backbone, whose weights load under the same names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glip_model.cached import cached_by_size
from glip_model.config import SwinConfig

CROSS_REGION = -100.0
"""Added to attention between cells that only the cyclic shift made neighbours."""


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        mapped: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mapped


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", _relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows.

        Args:
            x: (B·num_windows, n, C).
            mask: (num_windows, n, n) added to the attention, or None.
        """
        windows, n, dim = x.shape
        q, k, v = self.qkv(x).view(windows, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (windows, h, n, d)
        index = self.get_buffer("relative_position_index").reshape(-1)
        table = self.relative_position_bias_table[index]
        bias = table.view(n, n, self.num_heads).permute(2, 0, 1).unsqueeze(0)  # (1, h, n, n)
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(windows // mask.shape[0], 1, 1, 1)  # (windows, h, n, n)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        projected: Tensor = self.proj(x.transpose(1, 2).reshape(windows, n, dim))
        return projected


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normed before and added to its input."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path = window, shift, drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = x + self._drop(self._attend(self.norm1(x)))
        updated: Tensor = x + self._drop(self.mlp(self.norm2(x)))
        return updated

    def _drop(self, x: Tensor) -> Tensor:
        """Leave out the update of some pictures while training: stochastic depth."""
        if not (self.training and self.drop_path):
            return x
        from torchvision.ops import stochastic_depth  # takes as long to import as all else

        kept: Tensor = stochastic_depth(x, self.drop_path, "row")
        return kept

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        w = self.window
        # Padded after the norm and before the shift, and the padding is not masked as keys: released weights
        # depend on both. The shift is always window // 2, even on a map as small as one window.
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
            mask = shift_mask(rows, columns, w, self.shift, x.device).to(x.dtype)
        else:
            mask = None
        x = x.view(batch, rows, w, columns, w, dim).transpose(2, 3).reshape(-1, w * w, dim)
        x = self.attn(x, mask)
        x = x.view(batch, rows, columns, w, w, dim).transpose(2, 3).reshape(batch, rows * w, columns * w, dim)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Halve the resolution: the four cells of a 2 × 2 square become one of twice the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, -1)))
        return merged


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one shifted; ``downsample`` leads to the next stage."""

    def __init__(self, dim: int, num_heads: int, window: int, drop_paths: list[float], is_last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, num_heads, window, window // 2 if i % 2 else 0, drop) for i, drop in enumerate(drop_paths)
        )
        self.downsample = None if is_last else PatchMerging(dim)


class PatchEmbed(nn.Module):
    """4 × 4 pixels to one normed cell."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        pixel_values = F.pad(pixel_values, (0, -pixel_values.shape[3] % 4, 0, -pixel_values.shape[2] % 4))
        cells: Tensor = self.norm(self.proj(pixel_values).permute(0, 2, 3, 1))
        return cells


class SwinTransformer(nn.Module):
    """Four stages; the last three are normed and returned as maps at strides 8, 16 and 32."""

    def __init__(self, config: SwinConfig, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        depth = sum(config.depths)
        drops = [config.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        dims = [config.embed_dim * 2**i for i in range(len(config.depths))]
        self.channels = tuple(dims[1:])
        self.patch_embed = PatchEmbed(config.embed_dim)
        self.layers = nn.ModuleList()
        for i, (dim, stage_depth, heads) in enumerate(zip(dims, config.depths, config.num_heads, strict=True)):
            stage_drops = [drops.pop(0) for _ in range(stage_depth)]
            self.layers.append(SwinStage(dim, heads, config.window_size, stage_drops, i == len(dims) - 1))
        for i, dim in enumerate(self.channels, start=1):
            self.add_module(f"norm{i}", nn.LayerNorm(dim))
        self.apply(_init_linear)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to maps (B, C, h, w) at strides 8, 16 and 32."""
        x = self.patch_embed(pixel_values)
        maps = []
        for i, stage in enumerate(self.layers):
            assert isinstance(stage, SwinStage)
            for block in stage.blocks:
                recompute = self.activation_checkpointing and torch.is_grad_enabled()
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if i > 0:
                maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)  # takes the map before its output norm
        return maps


@cached_by_size
def shift_mask(rows: int, columns: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return (rows·columns, n, n) of 0 or ``CROSS_REGION`` for windows of a cyclically shifted, padded map."""
    vertical, horizontal = (_bands(count * window, window, shift, device) for count in (rows, columns))
    region = vertical[:, None] * 3 + horizontal
    windows = region.view(rows, window, columns, window).transpose(1, 2).reshape(-1, window * window)
    return (windows.unsqueeze(1) != windows.unsqueeze(2)) * CROSS_REGION


def _bands(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number cells by where the shift took them from: 0 in all windows but the last, 1 and 2 in its two parts."""
    cell = torch.arange(length, device=device)
    return (cell >= length - window).long() + (cell >= length - shift).long()


def _relative_position_index(window: int) -> Tensor:
    cells = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)  # (2, n)
    offset = cells[:, :, None] - cells[:, None, :] + window - 1  # (2, n, n)
    return offset[0] * (2 * window - 1) + offset[1]


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
