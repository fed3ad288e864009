"""The model's fast paths written the plain way: the oracle of tests and the baseline of benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from glip_model import dyhead
from glip_model.fusion import BiDirectionalAttention


def attend_both_ways(self: BiDirectionalAttention, visual: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-attention as the specification writes it: every cell and token projected to heads, then two softmaxes."""

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)

    query, key = split(self.v_proj(visual)), split(self.l_proj(text))
    visual_values, text_values = split(self.values_v_proj(visual)), split(self.values_l_proj(text))
    logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(2, 3)  # (B, h, N, T)
    to_tokens = F.dropout(logits.masked_fill(~mask[:, None, None], -9e15).softmax(-1), self.dropout, self.training)
    to_cells = F.dropout(logits.transpose(2, 3).softmax(-1), self.dropout, self.training)
    to_visual, to_text = to_tokens @ text_values, to_cells @ visual_values
    return tuple(  # type: ignore[return-value]
        project(x.transpose(1, 2).flatten(2))
        for project, x in ((self.out_v_proj, to_visual), (self.out_l_proj, to_text))
    )


def convolve(x: Tensor, offset: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """torchvision's deformable convolution."""
    y: Tensor = deform_conv2d(x, offset, weight, bias, stride=stride, padding=1, mask=modulation)
    return y


def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **options: Any) -> Tensor:
    """Dot-product attention without a fused kernel."""
    scale = options.get("scale") or query.shape[-1] ** -0.5
    logits = query @ key.transpose(-2, -1) * scale
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return F.dropout(logits.softmax(-1), options.get("dropout_p", 0.0)) @ value


@contextmanager
def plain_paths() -> Iterator[None]:
    """Run models without their fast paths for the length of a ``with`` block."""
    with (
        mock.patch.object(BiDirectionalAttention, "forward", attend_both_ways),
        mock.patch.object(dyhead, "deformable_conv2d", convolve),
        mock.patch.object(F, "scaled_dot_product_attention", attend),
    ):
        yield
