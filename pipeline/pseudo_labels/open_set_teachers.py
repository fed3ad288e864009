"""Teachers by the open-set detectors of ``transformers``: Grounding DINO and OWLv2, from a folder or a hub id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

from glip_model.alignment import phrase_scores, tokenize_prompt
from glip_model.boxes import clip_boxes
from glip_model.checkpoint import check_finite
from glip_model.precision import Precision, autocast, dtype_of
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from glip_model.text_encoder import check_known_words

LEAST_SCORE = 0.05
MOST_DETECTIONS = 300
"""Of one picture, over all its phrases; what scores lower is no candidate for a pseudo-label."""


class _OpenSetTeacher:
    """A detector, and what makes pictures and texts into its inputs."""

    def __init__(self, folder: Path, device: str, precision: Precision) -> None:
        model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(folder, use_safetensors=True)
        check_finite(model.state_dict(), str(folder))
        self._model, self._device, self._dtype = model.to(device).eval(), device, dtype_of(precision, device)
        self._images, self._tokenizer = (
            AutoImageProcessor.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )
        check_known_words(self._tokenizer, folder)

    def _ask(self, images: Sequence[Image.Image], texts: Sequence[str], limit: int, padding: str) -> tuple[Any, Tensor]:
        """Return what the model says, and the boxes of it."""
        text = self._tokenizer(list(texts), padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        pixels = self._images(list(images), return_tensors="pt")
        with autocast(self._dtype, self._device):
            outputs = self._model(**pixels.to(self._device), **text.to(self._device))
        return outputs, outputs.pred_boxes.float().cpu()


class GroundingDinoTeacher(_OpenSetTeacher):
    """Grounds a caption's phrases; a box scores the mean of its phrase's tokens, as GLIP's do.

    Source: Liu et al., Grounding DINO, ECCV 2024.
    """

    @torch.inference_mode()
    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        limit = self._model.config.max_text_len
        tokenized = [tokenize_prompt(self._tokenizer, _ended(prompt), limit) for prompt in prompts]
        outputs, boxes = self._ask(images, [each.prompt.text for each in tokenized], limit, "longest")
        found = []
        for i, (image, each) in enumerate(zip(images, tokenized, strict=True)):
            logits = outputs.logits[i : i + 1, :, : each.positive_map.shape[1]].float().cpu()
            scores = phrase_scores(logits, each.positive_map[None])[0]
            found.append(_detections(boxes[i], scores, (image.width, image.height), image, prompts[i]))
        return found


class Owlv2Teacher(_OpenSetTeacher):
    """Finds each phrase by itself, without its caption.

    Source: Minderer et al., Scaling Open-Vocabulary Object Detection, NeurIPS 2023.
    """

    @torch.inference_mode()
    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        most = max(len(prompt.phrases) for prompt in prompts)
        # Every picture has as many queries; those that stand for no phrase are not read off.
        queries = [text for prompt in prompts for text in (*prompt.phrases, *["a"] * (most - len(prompt.phrases)))]
        limit = self._model.config.text_config.max_position_embeddings
        outputs, boxes = self._ask(images, queries, limit, "max_length")
        found = []
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            scores = outputs.logits[i, :, : len(prompt.phrases)].float().sigmoid().cpu()
            side = max(image.size)  # the model saw the picture padded to a square
            found.append(_detections(boxes[i], scores, (side, side), image, prompt))
        return found


TEACHERS = {"grounding-dino": GroundingDinoTeacher, "owlv2": Owlv2Teacher}
"""Teacher by the ``model_type`` in its config.json."""


def _ended(prompt: Prompt) -> Prompt:
    """Return a prompt that ends in the period which Grounding DINO was trained to see."""
    text = prompt.text
    return prompt if text.rstrip().endswith(".") else Prompt((f"{text} .",), prompt.char_spans)


def _detections(
    boxes: Tensor, scores: Tensor, sides: tuple[int, int], image: Image.Image, prompt: Prompt
) -> Detections:
    """Turn what a model says of one picture into detections.

    Args:
        boxes: (Q, 4) centre, width and height as shares of ``sides``.
        scores: (Q, P).
        sides: width and height in pixels that shares are of.
        image: the picture.
        prompt: what was asked.
    """
    centre, size = boxes[:, :2], boxes[:, 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=1) * torch.tensor([*sides, *sides])
    corners = clip_boxes(corners, (image.height, image.width))
    query, phrase = (scores >= LEAST_SCORE).nonzero(as_tuple=True)
    order = scores[query, phrase].argsort(descending=True, stable=True)[:MOST_DETECTIONS]
    query, phrase = query[order], phrase[order]
    return Detections(corners[query], scores[query, phrase], phrase, prompt.phrases, prompt.char_spans)
