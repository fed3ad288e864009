"""Pictures to tensors: normalisation, and padding to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glip_model.alignment import TokenizedPrompt
from glip_model.cached import cached_by_size
from glip_model.config import BackboneConfig
from glip_model.resizing import ResizedImage, padded_size
from glip_model.structures import GroundingBatch, GroundingTarget


def image_to_tensor(image: Image.Image, config: BackboneConfig) -> Tensor:
    """Return an RGB picture as (3, h, w) float32, in the channel order and normalisation of the backbone.

    Raises:
        ValueError: the picture is of another mode.
    """
    if image.mode != "RGB":
        raise ValueError(f"pictures must be RGB, got mode {image.mode!r}; convert it: image.convert('RGB')")
    # np.array copies, so that the tensor never shares the picture's read-only buffer.
    return normalise(torch.from_numpy(np.array(image, dtype=np.uint8)), config)


def normalise(pixels: Tensor, config: BackboneConfig) -> Tensor:
    """Return RGB pixels (..., h, w, 3) uint8 as (..., 3, h, w) float32, as the backbone takes them, on their device."""
    values = pixels.movedim(pixels.ndim - 1, pixels.ndim - 3).float()  # counted from the front: ONNX knows no other way
    if config.bgr:
        values = values.flip(-3)
    mean, std = _scale(config.pixel_mean, config.pixel_std, pixels.device)
    normalised: Tensor = (values - mean) / std
    return normalised


@cached_by_size  # on a GPU a new tensor of numbers would wait for all that is under way
def _scale(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor([mean, std], device=device)[..., None, None]


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of one padded size, on their way to the device."""

    pixels: Tensor
    """(B, H, W, 3) uint8 RGB, padded at the bottom and right with zeros."""
    sizes: tuple[tuple[int, int], ...]
    """Per picture (height, width) without padding."""
    original_sizes: tuple[tuple[int, int], ...]
    """Per picture (height, width) before it was resized."""

    @classmethod
    def of(cls, images: Sequence[ResizedImage], size_divisor: int, pin_memory: bool = False) -> PictureBatch:
        """Put pictures together; ``pin_memory`` takes memory that a GPU fetches from beside other work."""
        sizes = tuple(image.size for image in images)
        height, width = padded_size((max(h for h, _ in sizes), max(w for _, w in sizes)), size_divisor)
        pixels = torch.empty(len(images), height, width, 3, dtype=torch.uint8, pin_memory=pin_memory)
        for place, image, (h, w) in zip(pixels.numpy(), images, sizes, strict=True):
            place[:h, :w], place[h:], place[:h, w:] = image.pixels, 0, 0
        return cls(pixels, sizes, tuple(image.original_size for image in images))

    def to_device(self, device: torch.device, config: BackboneConfig) -> Tensor:
        """Return the pictures as (B, 3, H, W) float32, normalised on the device, zeros where they are padded."""
        values = normalise(self.pixels.to(device, non_blocking=True), config).contiguous()
        for value, (height, width) in zip(values, self.sizes, strict=True):
            value[:, height:] = 0
            value[:, :, width:] = 0
        return values


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
        pixel_values=_pad_pictures(images, size_divisor),
        image_sizes=tuple((int(image.shape[1]), int(image.shape[2])) for image in images),
        input_ids=input_ids,
        attention_mask=mask,
        text_states=None if text_states is None else pad_sequence(list(text_states), batch_first=True),
        targets=None if targets is None else tuple(_pad_target(target, input_ids.shape[1]) for target in targets),
    )


def pad_prompts(prompts: Sequence[TokenizedPrompt]) -> tuple[Tensor, Tensor]:
    """Return the tokens of prompts (B, T) int64, padded with zeros, and their mask (B, T) bool."""
    input_ids = [prompt.input_ids for prompt in prompts]
    mask = [torch.ones(len(ids), dtype=torch.bool) for ids in input_ids]
    return pad_sequence(input_ids, batch_first=True), pad_sequence(mask, batch_first=True)


def _pad_pictures(images: Sequence[Tensor], size_divisor: int) -> Tensor:
    """Return pictures (3, h, w) as (B, 3, H, W), padded as ``collate`` does."""
    height, width = padded_size(
        (max(image.shape[1] for image in images), max(image.shape[2] for image in images)), size_divisor
    )
    padded = torch.zeros(len(images), 3, height, width)
    for i, image in enumerate(images):
        padded[i, :, : image.shape[1], : image.shape[2]] = image
    return padded


def _pad_target(target: GroundingTarget, tokens: int) -> GroundingTarget:
    missing = tokens - target.positive_map.shape[1]
    token_mask = target.token_mask
    return replace(
        target,
        positive_map=torch.nn.functional.pad(target.positive_map, (0, missing)),
        token_mask=None if token_mask is None else torch.nn.functional.pad(token_mask, (0, missing)),
    )
