"""Teachers by the open-set detectors of ``transformers``, from a folder or a hub id.

Grounding DINO and MM-Grounding-DINO (so LLMDet) read captions; OWL-ViT, OWLv2, OmDet-Turbo and SAM 3 read phrases by
themselves. Florence-2, which writes boxes as words, is in a module of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer, Sam3Model

from glip_model.alignment import phrase_scores, tokenize_prompt
from glip_model.boxes import clip_boxes
from glip_model.checkpoint import check_finite
from glip_model.precision import Precision, autocast, dtype_of
from glip_model.prompts import Prompt, chunk_categories
from glip_model.structures import Detections
from glip_model.text_encoder import check_known_words

LEAST_SCORE = 0.05
MOST_DETECTIONS = 300
"""Most boxes of a picture, over all its phrases; what scores lower is no candidate for a pseudo-label."""
NAMES_AT_ONCE = 100
"""Names in a batch of teachers that read every name by itself: more take memory and no less time."""
OMDET_TOKENS, SAM3_TOKENS = 77, 32
"""Most tokens of a text, as in their processors."""


class OpenSetTeacher:
    """A detector, and what makes pictures and texts into its inputs."""

    architecture: Any = AutoModelForZeroShotObjectDetection

    def __init__(self, folder: Path, device: str, precision: Precision) -> None:
        model: Any = self.architecture.from_pretrained(folder, use_safetensors=True)
        check_finite(model.state_dict(), str(folder))
        self._model, self._device, self._dtype = model.to(device).eval(), device, dtype_of(precision, device)
        self._images, self._tokenizer = (
            AutoImageProcessor.from_pretrained(folder),
            AutoTokenizer.from_pretrained(folder),
        )
        check_known_words(self._tokenizer, folder)

    def divide(self, names: Sequence[str]) -> list[list[int]]:
        """Return the names of each prompt, by their indices; ValueError where one is too long."""
        places = list(range(len(names)))
        return [places[start : start + NAMES_AT_ONCE] for start in range(0, len(places), NAMES_AT_ONCE)]

    def _ask(self, images: Sequence[Image.Image], texts: Sequence[str], limit: int, padding: str) -> tuple[Any, Tensor]:
        """Return the model's outputs and their boxes."""
        text = self._tokenizer(list(texts), padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        pixels = self._images(list(images), return_tensors="pt")
        with autocast(self._dtype, self._device):
            outputs = self._model(**pixels.to(self._device), **text.to(self._device))
        return outputs, outputs.pred_boxes.float().cpu()


class GroundingDinoTeacher(OpenSetTeacher):
    """Grounds a caption's phrases; a box scores the mean of its phrase's tokens, as GLIP's do.

    Source: Liu et al., Grounding DINO, ECCV 2024; Zhao et al., MM-Grounding-DINO, 2024; Fu et al., LLMDet, CVPR 2025.
    """

    def divide(self, names: Sequence[str]) -> list[list[int]]:
        """Return which names go into each of as few prompts as hold them; ValueError where one is too long."""
        return chunk_categories(names, self._tokenizer, self._model.config.max_text_len - 1)  # without the last period

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


class OwlTeacher(OpenSetTeacher):
    """Detects each phrase separately, without its caption.

    Source: Minderer et al., Simple Open-Vocabulary Object Detection with Vision Transformers, ECCV 2022.
    """

    @torch.inference_mode()
    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        most = max(len(prompt.phrases) for prompt in prompts)
        # Every picture has as many queries; those of no phrase are ignored.
        queries = [text for prompt in prompts for text in (*prompt.phrases, *["a"] * (most - len(prompt.phrases)))]
        limit = self._model.config.text_config.max_position_embeddings
        outputs, boxes = self._ask(images, queries, limit, "max_length")
        found = []
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            scores = outputs.logits[i, :, : len(prompt.phrases)].float().sigmoid().cpu()
            found.append(_detections(boxes[i], scores, self._sides(image), image, prompt))
        return found

    def _sides(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height in pixels that boxes are shares of."""
        return image.width, image.height


class Owlv2Teacher(OwlTeacher):
    """OWL-ViT's successor, which sees a picture padded to a square.

    Source: Minderer et al., Scaling Open-Vocabulary Object Detection, NeurIPS 2023.
    """

    def _sides(self, image: Image.Image) -> tuple[int, int]:
        side = max(image.size)
        return side, side


class OmDetTurboTeacher(OpenSetTeacher):
    """Detects each phrase separately; the prompt is a sentence with all of them.

    Source: Zhao et al., Real-time Transformer-based Open-Vocabulary Detection with Efficient Fusion Head, 2024.
    """

    def divide(self, names: Sequence[str]) -> list[list[int]]:
        """Return which names fit into each sentence; ValueError where one is too long."""
        return chunk_categories(names, self._tokenizer, OMDET_TOKENS - 2)  # "Detect" and the period

    @torch.inference_mode()
    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        pixels = self._images(list(images), return_tensors="pt")["pixel_values"]
        tasks = self._read([f"Detect {', '.join(prompt.phrases)}." for prompt in prompts])
        classes = self._read([phrase for prompt in prompts for phrase in prompt.phrases])
        counts = torch.tensor([len(prompt.phrases) for prompt in prompts], device=self._device)
        with autocast(self._dtype, self._device):
            outputs = self._model(
                pixel_values=pixels.to(self._device),
                classes_input_ids=classes["input_ids"],
                classes_attention_mask=classes["attention_mask"],
                tasks_input_ids=tasks["input_ids"],
                tasks_attention_mask=tasks["attention_mask"],
                classes_structure=counts,
            )
        boxes = outputs.decoder_coord_logits.float().cpu()
        logits = outputs.decoder_class_logits.float().cpu()
        return [
            _detections(boxes[i], logits[i, :, : len(prompt.phrases)].sigmoid(), image.size, image, prompt)
            for i, (image, prompt) in enumerate(zip(images, prompts, strict=True))
        ]

    def _read(self, texts: Sequence[str]) -> Any:
        found = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=OMDET_TOKENS, return_tensors="pt"
        )
        return found.to(self._device)


class Sam3Teacher(OpenSetTeacher):
    """Detects each phrase separately; the image encoder runs once for all phrases of a picture.

    A box scores its query's score times the score that the phrase is there at all.

    Source: Carion et al., SAM 3: Segment Anything with Concepts, 2025.
    """

    architecture = Sam3Model

    @torch.inference_mode()
    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        return [self._look(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _look(self, image: Image.Image, prompt: Prompt) -> Detections:
        pixels = self._images(image, return_tensors="pt")["pixel_values"].to(self._device)
        boxes, scores = [], []
        with autocast(self._dtype, self._device):
            seen = self._model.get_vision_features(pixels)
            for phrase in prompt.phrases:
                text = self._tokenizer(
                    phrase, padding="max_length", truncation=True, max_length=SAM3_TOKENS, return_tensors="pt"
                ).to(self._device)
                outputs = self._model(
                    vision_embeds=seen, input_ids=text["input_ids"], attention_mask=text["attention_mask"]
                )
                is_there = outputs.presence_logits.float().sigmoid().reshape(1)
                scores.append((outputs.pred_logits[0].float().sigmoid() * is_there).cpu())
                boxes.append(outputs.pred_boxes[0].float().cpu())
        corners = torch.cat(boxes)
        centred = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        owner = torch.repeat_interleave(torch.arange(len(scores)), torch.tensor([len(each) for each in scores]))
        # A query belongs to the phrase that it was asked for, and scores less than nothing for the others.
        by_phrase = torch.full((len(corners), len(scores)), -1.0)
        by_phrase[torch.arange(len(corners)), owner] = torch.cat(scores)
        return _detections(centred, by_phrase, image.size, image, prompt)


TEACHERS: dict[str, type[OpenSetTeacher]] = {
    "grounding-dino": GroundingDinoTeacher,
    "mm-grounding-dino": GroundingDinoTeacher,
    "omdet-turbo": OmDetTurboTeacher,
    "owlv2": Owlv2Teacher,
    "owlvit": OwlTeacher,
    "sam3": Sam3Teacher,
}
"""Teacher by the ``model_type`` in its config.json."""


def _ended(prompt: Prompt) -> Prompt:
    """Return a prompt that ends in the period which Grounding DINO was trained to see."""
    text = prompt.text
    return prompt if text.rstrip().endswith(".") else Prompt((f"{text} .",), prompt.char_spans)


def _detections(
    boxes: Tensor, scores: Tensor, sides: tuple[int, int], image: Image.Image, prompt: Prompt
) -> Detections:
    """Turn a model's outputs for one picture into detections.

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
