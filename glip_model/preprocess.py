"""Pictures to tensors: the published resize rule, normalisation, and padding to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glip_model.alignment import TokenizedPrompt
from glip_model.config import BackboneConfig
from glip_model.structures import GroundingBatch, GroundingTarget


def resize_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the (height, width) that a picture is resized to.

    The short side becomes ``short_side`` unless the long side would exceed ``long_side``; the long side is truncated,
    as published. Of a sliver one row or column of pixels is left, where the published rule leaves nothing.
    """
    short, long = min(height, width), max(height, width)
    if short_side * long / short > long_side:
        short_side = round(long_side * short / long)
        if short_side == 0:
            return (1, long_side) if height < width else (long_side, 1)
    if short == short_side:
        return height, width
    other = int(short_side * long / short)
    return (short_side, other) if height < width else (other, short_side)


def padded_size(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Return the (height, width) that a picture of this size is padded to when it is alone in its batch."""
    height, width = size
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def image_to_tensor(image: Image.Image, config: BackboneConfig) -> Tensor:
    """Return an RGB picture as (3, h, w) float32, in the channel order and normalisation of the backbone.

    Raises:
        ValueError: the picture is of another mode.
    """
    if image.mode != "RGB":
        raise ValueError(f"pictures must be RGB, got mode {image.mode!r}; convert it: image.convert('RGB')")
    # np.array copies, so that the tensor never shares the picture's read-only buffer.
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float()
    if config.bgr:
        pixels = pixels.flip(0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.pixel_mean, config.pixel_std))
    return (pixels - mean) / std


def collate(
    images: Sequence[Tensor],
    prompts: Sequence[TokenizedPrompt],
    *,
    size_divisor: int,
    targets: Sequence[GroundingTarget] | None = None,
    text_states: Sequence[Tensor] | None = None,
) -> GroundingBatch:
    """Pad pictures and prompts to common sizes.

    Args:
        images: (3, h, w) each, normalised.
        prompts: one per picture.
        size_divisor: padded height and width are multiples of it.
        targets: their token dimension is padded as well.
        text_states: (T, D) each, when a frozen encoder has computed them.

    Raises:
        ValueError: there are no pictures, or not one of everything for each.
    """
    if not images:
        raise ValueError("a batch needs at least one picture, got none")
    for name, parts in (("prompts", prompts), ("targets", targets), ("text_states", text_states)):
        if parts is not None and len(parts) != len(images):
            raise ValueError(f"{len(images)} pictures need one of everything each, got {len(parts)} {name}")
    input_ids, mask = pad_prompts(prompts)
    return GroundingBatch(
        pixel_values=pad_pictures(images, size_divisor),
        image_sizes=tuple((int(image.shape[1]), int(image.shape[2])) for image in images),
        input_ids=input_ids,
        attention_mask=mask,
        text_states=None if text_states is None else pad_sequence(list(text_states), batch_first=True),
        targets=None if targets is None else tuple(_pad_target(target, input_ids.shape[1]) for target in targets),
    )


def pad_pictures(images: Sequence[Tensor], size_divisor: int) -> Tensor:
    """Return pictures (3, h, w) as (B, 3, H, W), padded as ``collate`` does."""
    height, width = padded_size(
        (max(image.shape[1] for image in images), max(image.shape[2] for image in images)), size_divisor
    )
    padded = torch.zeros(len(images), 3, height, width)
    for i, image in enumerate(images):
        padded[i, :, : image.shape[1], : image.shape[2]] = image
    return padded


def pad_prompts(prompts: Sequence[TokenizedPrompt]) -> tuple[Tensor, Tensor]:
    """Return the tokens of prompts (B, T) int64, padded with zeros, and their mask (B, T) bool."""
    input_ids = [prompt.input_ids for prompt in prompts]
    mask = [torch.ones(len(ids), dtype=torch.bool) for ids in input_ids]
    return pad_sequence(input_ids, batch_first=True), pad_sequence(mask, batch_first=True)


def _pad_target(target: GroundingTarget, tokens: int) -> GroundingTarget:
    missing = tokens - target.positive_map.shape[1]
    token_mask = target.token_mask
    return GroundingTarget(
        boxes_xyxy=target.boxes_xyxy,
        positive_map=torch.nn.functional.pad(target.positive_map, (0, missing)),
        token_mask=None if token_mask is None else torch.nn.functional.pad(token_mask, (0, missing)),
    )
