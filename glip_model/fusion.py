"""Deep fusion: cross-attention between pyramid and text in both directions, and the tower's own BERT layer.

Letters: B pictures, N cells of all levels, T tokens, C channels, D text width, h heads.

Source: GLIP (Li et al., CVPR 2022), section 3.2; the block that the published configs call "MHA-B".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glip_model.config import FusionConfig

HALF_PRECISION_BOUND = 50000.0
"""Keeps values inside the range of float16 (65504), as the published model does; no effect in bfloat16 and float32."""


def clamp_half(x: Tensor) -> Tensor:
    """Clamp to ±50000 in float16 and leave every other type alone."""
    return x.clamp(-HALF_PRECISION_BOUND, HALF_PRECISION_BOUND) if x.dtype == torch.float16 else x


class BiDirectionalAttention(nn.Module):
    """The projections and both attention directions; they share one matrix of logits."""

    def __init__(self, channels: int, text_size: int, config: FusionConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.v_proj = nn.Linear(channels, config.embed_dim)
        self.l_proj = nn.Linear(text_size, config.embed_dim)
        self.values_v_proj = nn.Linear(channels, config.embed_dim)
        self.values_l_proj = nn.Linear(text_size, config.embed_dim)
        self.out_v_proj = nn.Linear(config.embed_dim, channels)
        self.out_l_proj = nn.Linear(config.embed_dim, text_size)
        for projection in self.children():
            assert isinstance(projection, nn.Linear)
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, visual: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attend in both directions.

        Heads are wide (256) and captions short, so no cell is ever projected to heads: what a projection of all N cells
        would meet is projected back to C first, T rows instead of N. Exactly the same mathematics in another order,
        with ``h T`` in place of ``embed_dim`` columns in every product over the cells.

        Args:
            visual: (B, N, C).
            text: (B, T, D).
            mask: (B, T) bool.

        Returns:
            Updates of the visual side (B, N, C) and of the text side (B, T, D).
        """
        tokens = text.shape[1]
        key = self._split(self.l_proj(text)) * (self.l_proj.out_features // self.num_heads) ** -0.5  # (B, h, T, d)
        query_weight, query_bias = self._per_head(self.v_proj.weight), self._per_head(self.v_proj.bias)
        folded_key = (key @ query_weight).flatten(1, 2)  # (B, hT, C)
        key_bias = (key @ query_bias.unsqueeze(-1)).flatten(1)  # (B, hT)
        logits = clamp_half(visual @ folded_key.transpose(1, 2) + key_bias.unsqueeze(1))  # (B, N, hT)

        # Tensors of this size are most of the memory that the layer takes: nothing is copied that need not be.
        by_cell = logits.softmax(1)  # (B, N, hT)
        # Cells look at real tokens only.
        per_head = torch.unflatten(logits, -1, (self.num_heads, tokens))
        per_head = per_head.masked_fill_(~mask[:, None, None, :], -torch.inf).softmax(-1)
        del logits
        to_tokens = F.dropout(per_head, self.dropout, self.training).flatten(2)  # (B, N, hT)
        del per_head
        text_values = self._split(self.values_l_proj(text))  # (B, h, T, d)
        out_weight = self._per_head(self.out_v_proj.weight.T)  # (h, d, C)
        to_visual = to_tokens @ (text_values @ out_weight).flatten(1, 2) + self.out_v_proj.bias
        del to_tokens

        # Tokens look at every cell without any mask, padded picture area included: outputs depend slightly on how
        # a batch is padded, and released weights were trained so.
        to_cells = F.dropout(by_cell, self.dropout, self.training).transpose(1, 2)  # (B, hT, N)
        seen = torch.unflatten(to_cells @ visual, 1, (self.num_heads, tokens))  # (B, h, T, C)
        value_weight, value_bias = self._per_head(self.values_v_proj.weight), self._per_head(self.values_v_proj.bias)
        share = torch.unflatten(to_cells.sum(-1), 1, (self.num_heads, tokens)).unsqueeze(-1)  # 1 but for dropout
        context = seen @ value_weight.transpose(1, 2) + share * value_bias.unsqueeze(1)  # (B, h, T, d)
        return to_visual, self.out_l_proj(context.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2)  # (B, h, T, embed_dim / h)

    def _per_head(self, parameter: Tensor) -> Tensor:
        return torch.unflatten(parameter, 0, (self.num_heads, -1))  # (h, embed_dim / h, …)


class VLFuse(nn.Module):
    """Both sides updated at once from the same inputs.

    The residual base is the layer-normed tensor, not the input; released weights depend on it.
    """

    def __init__(self, channels: int, text_size: int, config: FusionConfig) -> None:
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(channels)
        self.layer_norm_l = nn.LayerNorm(text_size)
        self.attn = BiDirectionalAttention(channels, text_size, config)
        scale = 1.0 / config.num_layers if config.residual_scale is None else config.residual_scale
        self.gamma_v = nn.Parameter(torch.full((channels,), scale))
        self.gamma_l = nn.Parameter(torch.full((text_size,), scale))

    def forward(self, levels: list[Tensor], text: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map levels (B, C, h, w) and text (B, T, D) to the same shapes."""
        sizes = [level.shape[-2:] for level in levels]
        visual = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)  # (B, N, C)
        visual, text = self.layer_norm_v(visual), self.layer_norm_l(text)
        to_visual, to_text = self.attn(visual, text, mask)
        visual = visual + self.gamma_v * to_visual
        text = text + self.gamma_l * to_text
        parts = visual.transpose(1, 2).split([height * width for height, width in sizes], -1)
        return [part.reshape(*part.shape[:2], *size) for part, size in zip(parts, sizes, strict=True)], text


class TowerTextLayer(nn.Module):
    """One post-norm BERT layer inside the tower, initialised afresh and not copied from the encoder."""

    def __init__(self, text_size: int, config: FusionConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.text_num_heads, config.text_dropout
        self.query = nn.Linear(text_size, text_size)
        self.key = nn.Linear(text_size, text_size)
        self.value = nn.Linear(text_size, text_size)
        self.attention_output = nn.Linear(text_size, text_size)
        self.attention_norm = nn.LayerNorm(text_size, eps=1e-12)
        self.intermediate = nn.Linear(text_size, config.text_intermediate_size)
        self.output = nn.Linear(config.text_intermediate_size, text_size)
        self.output_norm = nn.LayerNorm(text_size, eps=1e-12)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Map (B, T, D) with its (B, T) bool mask to (B, T, D)."""
        query, key, value = (
            torch.unflatten(projection(text), -1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :], dropout_p=dropout)
        context = self.attention_output(context.transpose(1, 2).flatten(2))
        text = self.attention_norm(text + F.dropout(context, self.dropout, self.training))
        hidden = clamp_half(F.gelu(clamp_half(self.intermediate(text))))
        hidden = F.dropout(clamp_half(self.output(hidden)), self.dropout, self.training)
        return clamp_half(self.output_norm(text + hidden))
