"""Samples to tensors: what varies them, resizing, flipping, normalising, and boxes moved along."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from glip_model.alignment import TokenizedPrompt, tokenize_prompt
from glip_model.boxes import to_inclusive
from glip_model.config import GLIPConfig
from glip_model.preprocess import image_to_tensor
from glip_model.resizing import resize_size
from glip_model.structures import GroundingTarget
from pipeline.store.images import load_image
from pipeline.training.prompts import Sample
from pipeline.training.settings import SamplesConfig
from pipeline.training.transforms import tile, vary

MAX_TRAINING_PIXELS = 100_000_000
"""Pictures were checked when the records were made; this only stops what was swapped since."""
_SIDED = re.compile(r"\b(left|right)(-?most|-?hand|wards?)?\b", re.IGNORECASE)


def prepare_sample(
    sample: Sample,
    rng: np.random.Generator,
    short_side: int,
    config: SamplesConfig,
    model_config: GLIPConfig,
    tokenizer: object,
    roots: Sequence[str],
) -> tuple[torch.Tensor, TokenizedPrompt, GroundingTarget]:
    """Augment one sample and build its target.

    A caption that says "left" or "right" is not flipped, a deliberate fix: the published code flips the picture and
    leaves the words.

    Returns:
        Pixels (3, h, w), the tokenised prompt, and the target in the coordinates of these pixels.
    """
    image, boxes = vary(*_picture(sample, roots), config.augment, rng)
    height, width = resize_size(image.height, image.width, short_side, config.sizes(model_config)[1])
    if model_config.inclusive_corners:  # before pictures are resized, as published
        boxes = to_inclusive(boxes)
    boxes = boxes * torch.tensor([width / image.width, height / image.height] * 2)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if rng.random() < config.flip and not _SIDED.search(sample.prompt.text):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = flip_boxes(boxes, width - model_config.inclusive_corners)
    tokenized = tokenize_prompt(tokenizer, sample.prompt, model_config.text.max_tokens)
    return image_to_tensor(image, model_config.backbone), tokenized, build_target(sample, boxes, tokenized)


def _picture(sample: Sample, roots: Sequence[str]) -> tuple[Image.Image, torch.Tensor]:
    """Return the picture of a sample, or its pictures as one, and all of its boxes (N, 4) in its pixels."""
    images = [load_image(ref, MAX_TRAINING_PIXELS, roots) for ref in (sample.image, *(ref for ref, _ in sample.beside))]
    boxes = torch.tensor(sample.boxes, dtype=torch.float32).reshape(-1, 4)
    if not sample.beside:
        return images[0], boxes
    counts = [count for _, count in sample.beside]
    return tile(images, torch.split(boxes, [len(boxes) - sum(counts), *counts]))


def flip_boxes(boxes_xyxy: torch.Tensor, width: int) -> torch.Tensor:
    """Mirror (N, 4) boxes in a picture of that width; of inclusive corners, in the place of its last pixel."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), -1)


def build_target(sample: Sample, boxes: torch.Tensor, tokenized: TokenizedPrompt) -> GroundingTarget:
    """Join boxes with the tokens of the phrases that name them."""
    rows = [tokenized.positive_map[list(phrases)].any(0) for phrases in sample.box_phrases]
    positive_map = torch.stack(rows) if rows else tokenized.positive_map.new_zeros(0, len(tokenized.input_ids))
    token_mask = None
    if sample.ignored_phrases:
        # A token that names a box is a positive, even inside a longer phrase without a known place.
        token_mask = ~tokenized.positive_map[list(sample.ignored_phrases)].any(0) | positive_map.any(0)
    weights = None if sample.box_weights is None else torch.tensor(sample.box_weights, dtype=torch.float32)
    return GroundingTarget(boxes, positive_map, token_mask, weights, sample.shape_weight)
