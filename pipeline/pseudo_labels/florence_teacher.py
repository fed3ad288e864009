"""Florence-2 as a teacher: a model that writes boxes as words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from glip_model.precision import Precision, autocast
from glip_model.prompts import Prompt
from glip_model.structures import Detections
from pipeline.pseudo_labels.open_set_teachers import OpenSetTeacher

TASK = "<OPEN_VOCABULARY_DETECTION>"
BINS = 1000
"""Places that a side of a picture is divided into; each has a word."""
MOST_WORDS, PHRASES_AT_ONCE = 192, 8
"""Most words of an answer, and phrases in a batch: every generated word holds scores of the whole vocabulary."""


class Florence2Teacher(OpenSetTeacher):
    """Runs each phrase as a prompt of its own.

    The score of a box is the mean probability of the four words that it is written with.

    Source: Xiao et al., Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks, CVPR 2024.
    """

    architecture = Florence2ForConditionalGeneration

    def __init__(self, folder: Path, device: str, precision: Precision) -> None:
        super().__init__(folder, device, precision)
        self._processor = AutoProcessor.from_pretrained(folder)
        words: Any = self._tokenizer
        self._first, last, self._polygon = words.convert_tokens_to_ids(["<loc_0>", f"<loc_{BINS - 1}>", "<poly>"])
        if self._first is None or last is None or last - self._first != BINS - 1:
            raise ValueError(f"its tokenizer has no words <loc_0> to <loc_{BINS - 1}> for places")

    @torch.inference_mode()
    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture; boxes in pixels of the picture."""
        asked = [(i, number) for i, prompt in enumerate(prompts) for number in range(len(prompt.phrases))]
        found: list[list[tuple[list[float], float, int]]] = [[] for _ in images]
        for start in range(0, len(asked), PHRASES_AT_ONCE):
            some = asked[start : start + PHRASES_AT_ONCE]
            phrases = [prompts[i].phrases[number] for i, number in some]
            words, scores = self._write([images[i] for i, _ in some], phrases)
            for (i, number), said, sure in zip(some, words.tolist(), scores.tolist(), strict=True):
                size = images[i].width, images[i].height
                found[i] += [(box, score, number) for box, score in self._boxes(said, sure, size)]
        return [_detections(rows, prompt) for rows, prompt in zip(found, prompts, strict=True)]

    def _write(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the words that the model answers with, (P, W), and the probability of each."""
        texts = [TASK + phrase for phrase in phrases]
        inputs = self._processor(text=texts, images=list(images), padding=True, return_tensors="pt").to(self._device)
        with autocast(self._dtype, self._device):
            answer = self._model.generate(
                **inputs,
                max_new_tokens=MOST_WORDS,
                do_sample=False,
                num_beams=1,
                output_scores=True,
                return_dict_in_generate=True,
            )
        scores = self._model.compute_transition_scores(answer.sequences, answer.scores, normalize_logits=True)
        return answer.sequences[:, -scores.shape[1] :].cpu(), scores.float().exp().cpu()

    def _boxes(
        self, words: Sequence[int], scores: Sequence[float], size: tuple[int, int]
    ) -> Iterator[tuple[list[float], float]]:
        """Yield the boxes of an answer and their scores: words for places, four by four; outlines are passed over."""
        places: list[tuple[int, float]] = []
        is_outline = False
        for word, score in zip(words, scores, strict=True):
            place = word - self._first
            if not 0 <= place < BINS:
                places, is_outline = [], word == self._polygon
                continue
            places.append((place, score))
            if len(places) == 4 and not is_outline:
                (x1, y1, x2, y2), sure = zip(*places, strict=True)
                places = []
                if x1 < x2 and y1 < y2:
                    width, height = (side / BINS for side in size)
                    corners = [(x1 + 0.5) * width, (y1 + 0.5) * height, (x2 + 0.5) * width, (y2 + 0.5) * height]
                    yield corners, sum(sure) / 4


def _detections(rows: Sequence[tuple[list[float], float, int]], prompt: Prompt) -> Detections:
    ordered = sorted(rows, key=lambda row: -row[1])
    return Detections(
        torch.tensor([box for box, _, _ in ordered], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, score, _ in ordered], dtype=torch.float32),
        torch.tensor([number for _, _, number in ordered], dtype=torch.int64),
        prompt.phrases,
        prompt.char_spans,
    )
