"""GLIP: backbone, pyramid, text encoder, fusion tower and prediction head joined.

Source: GLIP (Li et al., CVPR 2022), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glip_model.backbone import Backbone
from glip_model.checkpoint import load_model, read_trained_on, save_model
from glip_model.config import GLIPConfig
from glip_model.dyhead import DyConv
from glip_model.fpn import FPN
from glip_model.fusion import TowerTextLayer, VLFuse
from glip_model.pretrained import resolve_folder
from glip_model.structures import GLIPOutput, GroundingBatch
from glip_model.text_encoder import TextEncoder
from glip_model.trained_on import TrainedOn

PRIOR_PROBABILITY = 0.01
"""Every region-token pair starts at this probability, so that the focal loss is stable from the first step."""


class TowerLayer(nn.Module):
    """One layer of the tower: fusion and text layer (absent in GLIP-T (A)), then DyConv on the pyramid."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        fused = config.fusion.enabled
        self.fuse = VLFuse(config.channels, config.text_size, config.fusion) if fused else None
        self.text = TowerTextLayer(config.text_size, config.fusion) if fused else None
        self.dyconv = DyConv(config.channels, config.norm_groups, config.deformable)

    def forward(self, levels: list[Tensor], text: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map levels (B, C, h, w) and text (B, T, D) with its mask (B, T) to the same shapes."""
        if self.fuse is not None and self.text is not None:
            levels, text = self.fuse(levels, text, mask)
            text = self.text(text, mask)
        return self.dyconv(levels), text


class PredictionHead(nn.Module):
    """Box deltas, centerness and region-token logits from every cell; weights shared over levels."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.bbox_pred = nn.Conv2d(config.channels, 4, 1)
        self.centerness = nn.Conv2d(config.channels, 1, 1)
        self.scales = nn.Parameter(torch.ones(config.num_levels))
        self.text_projection = nn.Linear(config.text_size, config.channels)
        self.log_scale = nn.Parameter(torch.full((1,), float(config.log_scale)))
        self.bias_lang = nn.Parameter(torch.zeros(config.text_size))
        self.bias0 = nn.Parameter(torch.tensor([-math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)]))
        for convolution in (self.bbox_pred, self.centerness):
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor], text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return token logits (B, A, T), float32 under autocast too, box deltas (B, A, 4) and centerness (B, A)."""
        unit = F.normalize(text, dim=-1, eps=1e-12)
        # Only the text is normalised; it is halved before its projection but not in its bias.
        tokens = self.text_projection(unit / 2) / self.log_scale.exp()  # (B, T, C)
        bias = unit @ self.bias_lang + self.bias0  # (B, T)
        cells = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)  # (B, A, C)
        with torch.autocast(cells.device.type, enabled=False):  # half of the digits would round before the sum
            logits = cells.float() @ tokens.float().transpose(1, 2) + bias.float().unsqueeze(1)
        boxes = [(self.bbox_pred(x) * self.scales[i]).flatten(2) for i, x in enumerate(levels)]
        centerness = [self.centerness(x).flatten(2) for x in levels]
        return logits, torch.cat(boxes, 2).transpose(1, 2), torch.cat(centerness, 2).flatten(1)


class GLIP(nn.Module):
    """A grounding detector: pictures and captions in, region-token alignment and boxes out."""

    def __init__(self, config: GLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.trained_on: TrainedOn | None = None
        """The training data as recorded in the model's folder; None where it is unknown."""
        self.backbone = Backbone(config.backbone, config.activation_checkpointing)
        self.fpn = FPN(self.backbone.channels, config.channels, config.num_levels, config.drop_block)
        self.text_encoder = TextEncoder(config.text)
        projected = config.text.projected_size
        self.text_projection = nn.Linear(config.text.hidden_size, projected) if projected else None
        self.text_offset = self._new_offset() if config.text.has_offset else None
        self.tower = nn.ModuleList(TowerLayer(config) for _ in range(config.fusion.num_layers))
        self.head = PredictionHead(config)

    def forward(self, batch: GroundingBatch) -> GLIPOutput:
        """Predict for every cell of every level how it aligns with every token, and a box.

        Args:
            batch: see ``GroundingBatch``; its targets are not looked at. With ``text_states`` the text encoder
                does not run.

        Raises:
            ValueError: ``text_states`` are of another shape, or absent where prompts are encoded segment by segment.
        """
        features = self.features(batch.pixel_values)
        return self.ground(features, batch.input_ids, batch.attention_mask, batch.text_states)

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the pyramid of pictures (B, 3, H, W), levels (B, C, h, w), finest first; no prompt matters to it."""
        return cast(list[Tensor], self.fpn(self.backbone(pixel_values)))

    def ground(
        self, features: list[Tensor], input_ids: Tensor, mask: Tensor, text_states: Tensor | None = None
    ) -> GLIPOutput:
        """Predict how the cells of ``features`` align with prompts; arguments and errors as of ``forward``."""
        text, levels = self._encode(input_ids, mask, text_states), features
        if self.text_projection is not None:
            text = self.text_projection(text)
        if self.text_offset is not None:
            text = text + self.text_offset[: text.shape[1]]
        if not self.config.fusion.enabled:
            # Without fusion the published model zeroes padding; with it, padded states stay garbage and are masked
            # wherever they are read.
            text = text * mask.unsqueeze(-1)
        for layer in self.tower:
            levels, text = self._run(layer, levels, text, mask)
        logits, deltas, centerness = self.head(levels, text)
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        return GLIPOutput(token_logits=logits, box_deltas=deltas, centerness=centerness, level_sizes=sizes)

    def recompute_activations(self) -> None:
        """Keep little of tower and Swin for the backward pass, which computes it anew: slower, far less memory."""
        self.config = replace(self.config, activation_checkpointing=True)
        self.backbone.recompute_activations()

    def add_text_offset(self) -> nn.Parameter:
        """Return the offset that prompt tuning trains, (T, D); where there is none yet, add one of zeros."""
        if self.text_offset is None:
            self.config = replace(self.config, text=replace(self.config.text, has_offset=True))
            self.text_offset = self._new_offset()
        return self.text_offset

    def _new_offset(self) -> nn.Parameter:
        return nn.Parameter(torch.zeros(self.config.text.max_tokens, self.config.text_size))

    def _encode(self, input_ids: Tensor, mask: Tensor, states: Tensor | None) -> Tensor:
        if states is None:
            if self.config.text.encoding == "segments":
                # Tokens do not tell where a segment ends; encoded as one string they would get other states.
                raise ValueError("text.encoding is 'segments': the batch needs text_states, see TextStateCache")
            return cast(Tensor, self.text_encoder(input_ids, mask))
        expected = (*mask.shape, self.config.text.hidden_size)
        if states.shape != expected:
            raise ValueError(f"text_states must be (B, T, hidden_size) = {expected}, got {tuple(states.shape)}")
        return states

    def _run(
        self, layer: Callable[..., Any], levels: list[Tensor], text: Tensor, mask: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        recompute = self.config.activation_checkpointing and torch.is_grad_enabled()
        arguments = (levels, text, mask)
        updated = checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
        return cast(tuple[list[Tensor], Tensor], updated)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> GLIP:
        """Load a model that ``save_pretrained`` wrote; in eval mode.

        Args:
            name: folder, ``package:`` path or hub id.
            revision: branch, tag or commit of a hub id.

        Raises:
            ValueError: it is missing, broken, or its weights do not fit its config.
        """
        folder = resolve_folder(name, revision)
        model = load_model(cls, folder)
        model.trained_on = read_trained_on(folder)
        return model

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write config.json, model.safetensors and, when given, the tokenizer's files into ``folder``."""
        save_model(self, self.config, folder, tokenizer, self.trained_on)
