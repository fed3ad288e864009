"""What few pictures are varied by besides flips and sizes: colours, cuts, frames and mosaics, with their boxes.

Chance comes from the sample's own generator alone; the transforms of torchvision draw from one that all threads share,
so that only the functions behind them are used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from pipeline.training.settings import AugmentConfig

HUE_SHARE = 0.1
"""Change of the hue as a share of ``colour``."""
MIN_CUT_SHARE = 0.3
"""A cut is at least so wide and high, as a share of the picture's sides, even where its boxes are smaller."""
FRAME = (127, 127, 127)
"""Colour around a picture that is shrunk, and between those of a mosaic."""


def vary(
    image: Image.Image, boxes_xyxy: Tensor, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Image.Image, Tensor]:
    """Change a picture and its (N, 4) boxes in pixels as the settings say; all boxes stay, whole."""
    if config.colour:
        image = _colour(image, config.colour, rng)
    if config.crop and rng.random() < config.crop:
        image, boxes_xyxy = _cut(image, boxes_xyxy, rng)
    if config.shrink > 1:
        image, boxes_xyxy = _shrink(image, boxes_xyxy, config.shrink, rng)
    return image, boxes_xyxy


def tile(images: Sequence[Image.Image], boxes_xyxy: Sequence[Tensor]) -> tuple[Image.Image, Tensor]:
    """Combine up to four pictures into a mosaic of the first one's size, each as large as fits into its quarter.

    Args:
        images: from the upper left to the lower right.
        boxes_xyxy: of each, (N, 4) in its pixels.

    Returns:
        The picture, and the boxes of all in that order.
    """
    width, height = images[0].size
    canvas = Image.new("RGB", (width, height), FRAME)
    moved = []
    for i, (image, boxes) in enumerate(zip(images, boxes_xyxy, strict=True)):
        left, top = i % 2 * (width // 2), i // 2 * (height // 2)
        scale = min((width - width // 2) / image.width, (height - height // 2) / image.height)
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        canvas.paste(image.resize(size, Image.Resampling.BILINEAR), (left, top))
        ratio = torch.tensor([size[0] / image.width, size[1] / image.height] * 2)
        moved.append(boxes * ratio + torch.tensor([left, top] * 2))
    return canvas, torch.cat(moved)


def _colour(image: Image.Image, most: float, rng: np.random.Generator) -> Image.Image:
    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    factors = rng.uniform(1 - most, 1 + most, len(changes)).tolist()
    for i in rng.permutation(len(changes)).tolist():
        image = changes[i](image, factors[i])
    hue = float(rng.uniform(-1, 1)) * most * HUE_SHARE
    changed: Image.Image = functional.adjust_hue(image, hue)
    return changed


def _cut(image: Image.Image, boxes: Tensor, rng: np.random.Generator) -> tuple[Image.Image, Tensor]:
    """Cut a picture anywhere around its boxes; where there are none, anywhere."""
    size = np.array(image.size)
    if len(boxes):
        low = np.floor(boxes[:, :2].amin(0).numpy())
        high = np.ceil(boxes[:, 2:].amax(0).numpy())
    else:
        low = high = rng.uniform(0, 1, 2) * size
    # What has to be in it grows to the least size around its middle, and stays in the picture.
    needed = np.maximum(high - low, MIN_CUT_SHARE * size)
    low = np.clip((low + high - needed) / 2, 0, size - needed)
    high = low + needed
    left, top = np.floor(rng.uniform(0, 1, 2) * low).astype(int).tolist()
    right, bottom = np.ceil(size - rng.uniform(0, 1, 2) * (size - high)).astype(int).tolist()
    cut: Image.Image = functional.crop(image, top, left, max(1, bottom - top), max(1, right - left))
    return cut, boxes - torch.tensor([left, top] * 2)


def _shrink(image: Image.Image, boxes: Tensor, most: float, rng: np.random.Generator) -> tuple[Image.Image, Tensor]:
    """Put a picture somewhere into a frame of its own shape, up to ``most`` times wider; its pixels stay."""
    factor = float(rng.uniform(1, most))
    spare = [round(side * (factor - 1)) for side in image.size]
    left, top = (int(rng.integers(each + 1)) for each in spare)
    framed: Image.Image = functional.pad(image, [left, top, spare[0] - left, spare[1] - top], fill=FRAME)
    return framed, boxes + torch.tensor([left, top] * 2)
