"""Pictures with names or captions to a model's inputs, and its outputs to labelled boxes, as transformers has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from glip_model.alignment import TokenizedPrompt, tokenize_prompt
from glip_model.hugging_face.image_processing_glip import as_list
from glip_model.preprocess import pad_prompts
from glip_model.prompts import Prompt, caption_prompt, category_prompt, phrases_between_periods
from glip_model.text_encoder import SEPARATOR


class GLIPProcessor(ProcessorMixin):
    """A ``GLIPImageProcessor`` and a tokenizer as one.

    Args:
        image_processor: prepares pictures and reads off boxes.
        tokenizer: the model's; a fast one.
        max_tokens: of a prompt that the model reads.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, max_tokens: int = 256) -> None:
        super().__init__(image_processor, tokenizer)  # type: ignore[no-untyped-call]
        self.max_tokens = max_tokens

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        annotations: Any = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a batch.

        Args:
            images: one or several pictures.
            text: names, as a list; or a text like "a cat. a remote control.", whose phrases stand between periods. For
                several pictures a list of these, or one for all.
            annotations: see ``GLIPImageProcessor.preprocess``.
            return_tensors: "pt".
            kwargs: what else transformers passes along, not looked at.

        Returns:
            What ``GLIPForZeroShotObjectDetection.forward`` takes.

        Raises:
            ValueError: there are more prompts than pictures, one asks for nothing or is too long for the model.
        """
        made: dict[str, Any] = {}
        count = None
        if images is not None:
            pictures = as_list(images)
            count = len(pictures)
            made |= self.image_processor(pictures, annotations, return_tensors)
        if text is not None:
            prompts = _prompts(text)
            if len(prompts) == 1 and count:
                prompts *= count
            if count is not None and len(prompts) != count:
                raise ValueError(f"{count} pictures need a prompt each, or one for all; got {len(prompts)}")
            made |= self._tokens(prompts)
        return BatchFeature(made)

    def _tokens(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        tokenized = [tokenize_prompt(self.tokenizer, prompt, self.max_tokens) for prompt in prompts]
        for each in tokenized:
            for phrase, tokens in zip(each.prompt.phrases, each.positive_map, strict=True):
                if not tokens.any():
                    raise ValueError(
                        f"{phrase[:60]!r} lies beyond the {self.max_tokens} tokens that the model reads; ask for fewer "
                        "names at a time"
                    )
        input_ids, mask = pad_prompts(tokenized)
        most = max(len(each.positive_map) for each in tokenized)
        positive_map = torch.zeros(len(prompts), most, input_ids.shape[1], dtype=torch.bool)
        segment_ids = torch.zeros_like(input_ids)
        for i, each in enumerate(tokenized):
            positive_map[i, : len(each.positive_map), : len(each.input_ids)] = each.positive_map
            segment_ids[i, : len(each.input_ids)] = self._segments(each)
        tokens = {"input_ids": input_ids, "attention_mask": mask.long()}
        return {**tokens, "positive_map": positive_map, "segment_ids": segment_ids}

    def _segments(self, tokenized: TokenizedPrompt) -> Tensor:
        """Return (T,) int64, the segment of each token; a period belongs to the segment that it ends."""
        ends, end = [], 0
        for segment in tokenized.prompt.segments:
            end += len(segment) + len(SEPARATOR)
            ends.append(end)
        options = {"truncation": True, "max_length": self.max_tokens, "return_offsets_mapping": True}
        offsets = self.tokenizer(tokenized.prompt.text, **options)["offset_mapping"]
        starts = torch.tensor([start for start, _ in offsets])
        return torch.bucketize(starts, torch.tensor(ends[:-1], dtype=torch.int64), right=True)

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        input_ids: Tensor | None = None,
        threshold: float = 0.25,
        text_threshold: float | None = None,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        text_labels: Sequence[Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Turn the model's outputs into labelled boxes.

        Args:
            outputs: of the model.
            input_ids: (B, T) that the model was given; None: as they stand in ``outputs``.
            threshold: boxes that score no more are left out, 0 to 1.
            text_threshold: phrase score that candidates must pass before centerness counts; None is the model's own.
                GLIP scores a phrase as a whole, and not token by token.
            target_sizes: (height, width) of the original pictures; None gives boxes as shares of them.
            text_labels: names that were asked for, of all pictures or of each; None: their tokens, decoded.

        Returns:
            Per picture ``scores``, ``labels``, ``boxes`` as of ``GLIPImageProcessor.post_process_object_detection``,
            and ``text_labels``, the names of the boxes.
        """
        results: list[dict[str, Any]] = self.image_processor.post_process_object_detection(
            outputs, threshold, target_sizes, text_threshold
        )
        ids = outputs.input_ids if input_ids is None else input_ids
        for i, result in enumerate(results):
            if text_labels:
                names = text_labels if isinstance(text_labels[0], str) else text_labels[i]
            elif outputs.positive_map is None:
                names = [self.tokenizer.decode(ids[i], skip_special_tokens=True)]
            else:
                names = [self.tokenizer.decode(ids[i][each.to(ids.device)]) for each in outputs.positive_map[i]]
            result["text_labels"] = [names[label] for label in result["labels"].tolist()]
        return results


def _prompts(text: str | Sequence[str] | Sequence[Sequence[str]]) -> list[Prompt]:
    """Return the prompts that are asked for: of names, of texts with periods, or of a list of either."""
    if isinstance(text, str):
        return [_caption(text)]
    names = [each for each in text if isinstance(each, str)]
    if len(names) < len(text):
        return [prompt for each in text for prompt in _prompts(each)]
    return [_caption(each) for each in names] if any("." in each for each in names) else [category_prompt(names)]


def _caption(text: str) -> Prompt:
    prompt = caption_prompt(text, phrases_between_periods(text))
    if not prompt.char_spans:
        raise ValueError(f"no phrases in the text {text[:60]!r}; write what to find, divided by periods")
    return prompt
