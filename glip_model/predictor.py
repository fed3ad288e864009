"""GLIPPredictor: pictures and prompts in, detections in original pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from glip_model.alignment import TokenizedPrompt, tokenize_prompt
from glip_model.glip import GLIP
from glip_model.postprocess import read_off
from glip_model.preprocess import collate, image_to_tensor, resize_size
from glip_model.prompts import Prompt, category_prompt, chunk_categories
from glip_model.structures import Detections
from glip_model.text_encoder import TextStateCache, load_tokenizer


class GLIPPredictor:
    """A model with everything around it: resizing, tokenising, batching, reading off.

    Args:
        model: put into eval mode and moved to ``device``.
        tokenizer: a fast tokenizer of the model's vocabulary.
        device: torch device.
    """

    def __init__(self, model: GLIP, tokenizer: Any, device: str | torch.device = "cpu") -> None:
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        # Inference never changes the encoder, so its states can be kept whether or not it was trained.
        self._text_states = TextStateCache(self.model.text_encoder, tokenizer)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> GLIPPredictor:
        """Load model and tokenizer from one folder; ValueError when something is missing there."""
        return cls(GLIP.from_pretrained(folder), load_tokenizer(folder), device)

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture, all pictures in one batch.

        Args:
            images: RGB pictures of any sizes.
            prompts: one per picture.

        Returns:
            Per picture detections whose ``phrase_index`` counts the prompt's phrases.

        Raises:
            ValueError: the lists differ in length.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} pictures need as many prompts, got {len(prompts)}")
        if not images:
            return []
        tokenized = [self.tokenize(prompt) for prompt in prompts]
        found = self._run(images, tokenized)
        return [
            replace(detections, phrases=prompt.phrases, char_spans=prompt.char_spans)
            for detections, prompt in zip(found, prompts, strict=True)
        ]

    def detect(
        self, images: Sequence[Image.Image], names: Sequence[str], max_prompt_categories: int | None = None
    ) -> list[Detections]:
        """Find categories in every picture, names packed into as few prompts as fit.

        Args:
            images: RGB pictures of any sizes, one batch.
            names: any number of category names.
            max_prompt_categories: names in one prompt at most; None leaves it to the token limit.

        Returns:
            Per picture the best ``max_detections`` over all prompts; ``phrase_index`` counts ``names``.

        Raises:
            ValueError: there are no names, or one is empty or alone too long for a prompt.
        """
        if not names:
            raise ValueError("detect needs at least one category name, got none")
        if not images:
            return []
        chunks = chunk_categories(names, self.tokenizer, self.model.config.text.max_tokens, max_prompt_categories)
        parts: list[list[Detections]] = [[] for _ in images]
        for chunk in chunks:
            prompt = self.tokenize(category_prompt([names[i] for i in chunk]))
            index = torch.tensor(chunk)
            for found, detections in zip(parts, self._run(images, [prompt] * len(images)), strict=True):
                found.append(replace(detections, phrase_index=index[detections.phrase_index]))
        limit = self.model.config.max_detections
        return [replace(_merge(found, limit), phrases=tuple(names)) for found in parts]

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """Tokenise a prompt with the model's token limit."""
        return tokenize_prompt(self.tokenizer, prompt, self.model.config.text.max_tokens)

    @torch.inference_mode()
    def _run(self, images: Sequence[Image.Image], prompts: Sequence[TokenizedPrompt]) -> list[Detections]:
        config = self.model.config
        tensors = []
        for image in images:
            height, width = resize_size(image.height, image.width, config.test_short_side, config.test_long_side)
            resized = image.resize((width, height), Image.Resampling.BILINEAR)
            tensors.append(image_to_tensor(resized, config.backbone))
        states = self._text_states([prompt.prompt.segments for prompt in prompts])
        batch = collate(tensors, prompts, size_divisor=config.size_divisor, text_states=states).to(self.device)
        sizes = [(image.height, image.width) for image in images]
        return read_off(self.model(batch), batch, [prompt.positive_map for prompt in prompts], sizes, config)


def _merge(parts: Sequence[Detections], limit: int) -> Detections:
    """Put the detections of several prompts together, best first, at most ``limit``."""
    scores = torch.cat([part.scores for part in parts])
    order = scores.argsort(descending=True, stable=True)[:limit]
    boxes = torch.cat([part.boxes_xyxy for part in parts])
    index = torch.cat([part.phrase_index for part in parts])
    return Detections(boxes[order], scores[order], index[order])
