"""The dataclasses that cross module borders.

Letters of all shapes: B pictures, N boxes, A anchors over all levels, P phrases, T tokens, D text width, H W pixels.
Masks are True where the data is real. Boxes are ``xyxy`` corners in pixels; sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

CharSpans = list[tuple[int, int]]
"""The half-open character pieces of one phrase in its caption, for example ``[(0, 5)]``."""


@dataclass(frozen=True)
class GroundingTarget:
    """What one picture should produce; coordinates are those of the resized picture that the model sees."""

    boxes_xyxy: Tensor
    """(N, 4) float32; N may be 0."""
    positive_map: Tensor
    """(N, T) bool: token t names box n. A row may be empty when truncation took its phrase."""
    token_mask: Tensor | None = None
    """(T,) bool, tokens that take part in the token loss; None means every real token. Off for phrases of which it
    is unknown where they are, such as pseudo-labels below the threshold."""

    def to(self, device: torch.device | str) -> GroundingTarget:
        """Copy to a device."""
        mask = None if self.token_mask is None else self.token_mask.to(device)
        return GroundingTarget(self.boxes_xyxy.to(device), self.positive_map.to(device), mask)


@dataclass(frozen=True)
class GroundingBatch:
    """Pictures and their captions, padded to common sizes."""

    pixel_values: Tensor
    """(B, 3, H, W) float32, normalised, zero-padded at the bottom and right to a multiple of ``size_divisor``."""
    image_sizes: tuple[tuple[int, int], ...]
    """Per picture (height, width) without padding."""
    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) bool, True on real tokens including [CLS] and [SEP]."""
    text_states: Tensor | None = None
    """(B, T, D) encoder states where a frozen encoder has computed them already; None lets the model encode."""
    targets: tuple[GroundingTarget, ...] | None = None

    def to(self, device: torch.device | str) -> GroundingBatch:
        """Copy every tensor to a device."""
        return replace(
            self,
            pixel_values=self.pixel_values.to(device),
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            text_states=None if self.text_states is None else self.text_states.to(device),
            targets=None if self.targets is None else tuple(target.to(device) for target in self.targets),
        )


@dataclass(frozen=True)
class GLIPOutput:
    """Raw predictions; anchors of all levels are concatenated from P3 to the coarsest, row-major."""

    token_logits: Tensor
    """(B, A, T) anchor-token alignment before the sigmoid; meaningless where the attention mask is False."""
    box_deltas: Tensor
    """(B, A, 4) in the coding of ``boxes.BoxCodec``."""
    centerness: Tensor
    """(B, A) before the sigmoid."""
    level_sizes: tuple[tuple[int, int], ...]
    """(height, width) in cells of each level; their products sum to A."""


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, best score first."""

    boxes_xyxy: Tensor
    """(N, 4) float32, pixels of the original picture."""
    scores: Tensor
    """(N,) float32 in [0, 1]: square root of phrase score times centerness; not a calibrated probability."""
    phrase_index: Tensor
    """(N,) int64 into ``phrases``."""
    phrases: tuple[str, ...] = ()
    """The phrases that were asked for, found or not."""
    char_spans: tuple[CharSpans, ...] = field(default=())
    """Per phrase, where it stands in the caption."""

    def __len__(self) -> int:
        """Count the boxes."""
        return int(self.scores.shape[0])
