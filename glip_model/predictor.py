"""GLIPPredictor: turns pictures and prompts into detections in pixels of the originals."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glip_model.alignment import TokenizedPrompt, tokenize_prompt
from glip_model.boxes import clip_boxes, to_exclusive
from glip_model.config import GLIPConfig
from glip_model.glip import GLIP
from glip_model.images import ImageLike, open_image
from glip_model.postprocess import postprocess
from glip_model.precision import Precision, autocast, best_device, dtype_of, usable_device
from glip_model.preprocess import PictureBatch, pad_prompts
from glip_model.pretrained import resolve_folder
from glip_model.prompts import (
    Prompt,
    caption_prompt,
    category_prompt,
    chunk_categories,
    distinct_names,
    phrases_between_periods,
)
from glip_model.resizing import ResizedImage, ResizeRule
from glip_model.structures import CharSpans, Detections, join_detections, merge_chunks
from glip_model.text_encoder import TextStateCache, load_tokenizer
from glip_model.tiling import find_in_tiles
from glip_model.transfer import send

Picture = Image.Image | ResizedImage
"""RGB of any size, or resized by ``GLIPPredictor.resize_rule`` already."""
PhraseParser = Callable[[str], Sequence[CharSpans]]
"""Finds the phrases of a caption: per phrase its half-open character pieces."""


@dataclass(frozen=True)
class Question:
    """A batch of pictures of one padded size with their prompts, preprocessed as far as that needs no device."""

    pictures: PictureBatch
    prompts: tuple[tuple[TokenizedPrompt, ...], ...]
    """Prompts of each picture; all have the same number."""
    asked: tuple[tuple[Prompt, ...], ...]
    """The prompts as they were given."""


class GLIPPredictor:
    """A model with everything around it: opening, resizing, tokenising, batching, postprocessing.

    Detections in a picture do not depend on the rest of its batch, because all of it has one padded size.

    Args:
        model: put into eval mode and moved to ``device``.
        tokenizer: a fast tokenizer of the model's vocabulary.
        device: torch device; None takes the first GPU, or the CPU where there is none.
        precision: ``bf16`` runs under autocast, weights, logits and box arithmetic stay float32; ``auto`` is that on a
            GPU which computes in it, otherwise ``float32``.
        compile_model: compile the model with ``torch.compile``, on the first picture of every padded size and token
            count. That takes minutes each time: for pictures of one size, and many of them.
    """

    def __init__(
        self,
        model: GLIP,
        tokenizer: Any,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        compile_model: bool = False,
    ) -> None:
        self.device = usable_device(device or best_device())
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.tokenizer = tokenizer
        self.dtype = dtype_of(precision, self.device)
        self._features, self._ground = self.model.features, self.model.ground
        if compile_model:
            self._features = torch.compile(self._features, dynamic=False)
            self._ground = torch.compile(self._ground, dynamic=False)
        config = self.model.config
        self.resize_rule = ResizeRule(config.test_short_side, config.test_long_side, config.size_divisor)
        """Resizing that comes first; a caller that resizes elsewhere passes ``ResizedImage`` in place of a picture."""
        # Inference never changes the encoder, so its states can be kept whether or not it was trained. The tokenizer is
        # a copy: one that ``prepare`` uses in another thread at the same time raises "Already borrowed".
        self._text_states = TextStateCache(self.model.text_encoder, copy.deepcopy(tokenizer))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        compile_model: bool = False,
        *,
        variant: str | None = None,
        revision: str | None = None,
    ) -> GLIPPredictor:
        """Load model and tokenizer.

        Args:
            name: folder or hub id.
            device: likewise ``precision`` and ``compile_model``, see the class.
            precision: see the class.
            compile_model: see the class.
            variant: of the published models, ``name`` being the hub id that holds them: ``glip_t`` of
                "GLIPModel/GLIP". It is fetched and converted once, see ``published_hub.converted``.
            revision: branch, tag or commit of a hub id.

        Raises:
            ValueError: something is missing there, or broken.
        """
        if variant is not None:
            from glip_model.published_hub import converted

            folder = converted(str(name), variant, revision)
        else:
            folder = resolve_folder(name, revision)
        model = GLIP.from_pretrained(folder)
        return cls(model, load_tokenizer(folder, model.config.text.vocab_size), device, precision, compile_model)

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: Sequence[str] | str,
        *,
        spans: Sequence[CharSpans] | None = None,
        parser: PhraseParser | None = None,
        min_score: float = 0.0,
        compete_threshold: float = 1.0,
        tile: int = 0,
        max_detections: int | None = None,
        batch_size: int = 8,
    ) -> list[Detections]:
        """Find what the prompt names.

        Args:
            images: one picture or any number of them, of any sizes; ``images.open_image`` says what a picture may be.
                They are opened batch by batch. An array or tensor of four dimensions is a sequence of pictures.
            prompt: category names, as many as you like, each asked for once; or a caption.
            spans: with a caption, the character pieces of each phrase to find.
            parser: with a caption, finds the phrases. With neither, they are what stands between its periods:
                ``"a cat. a remote control."`` asks for two.
            min_score: boxes below are left out, 0 to 1.
            compete_threshold: of boxes of different names that overlap by more, the best stays; 1 keeps all.
            tile: side in pixels of overlapping pieces that larger pictures are looked at in, besides whole; 0 looks at
                them whole alone.
            max_detections: best boxes of a picture, or of each piece, that are kept; None is the model's own limit.
            batch_size: pictures that are open at a time.

        Returns:
            Per picture its detections, best first; of one picture a list of one.

        Raises:
            ValueError: the prompt is empty or asks for nothing, a name or caption is too long for the model, or a
                picture cannot be opened (``ImageError``).
        """
        sources = cast(Sequence[ImageLike], [images] if _is_single(images) else images)
        asked = self._read_prompt(prompt, spans, parser)
        find = partial(self._find, asked=asked, max_detections=max_detections)
        results: list[Detections] = []
        for start in range(0, len(sources), batch_size):
            given = sources[start : start + batch_size]
            opened = [open_image(source) for source in given]
            if tile:
                nms = self.model.config.nms_threshold
                batch = [find_in_tiles(find, image, tile, batch_size, nms) for image in opened]
            else:
                batch = find(opened)
            kept = (replace(d.above(min_score), source=source) for d, source in zip(batch, given, strict=True))
            results += [each if compete_threshold >= 1 else each.without_rivals(compete_threshold) for each in kept]
        return results

    def _find(
        self, images: Sequence[Image.Image], asked: Prompt | Sequence[str], max_detections: int | None
    ) -> list[Detections]:
        if isinstance(asked, Prompt):
            return self.ground(images, [asked] * len(images), max_detections)
        return self.detect(images, asked, max_detections=max_detections)

    def _read_prompt(
        self, prompt: Sequence[str] | str, spans: Sequence[CharSpans] | None, parser: PhraseParser | None
    ) -> Prompt | list[str]:
        """Return the prompt of a caption, or different names; ValueError as ``predict``."""
        if isinstance(prompt, str):
            return self._read_caption(prompt, spans, parser)
        if spans is not None or parser is not None:
            raise ValueError("spans and parser belong to a caption, but the prompt is a list of names")
        names = distinct_names(prompt)
        if len(names) < len(prompt):
            # The warning names the line that called ``predict``.
            warnings.warn(f"{len(prompt)} names are {len(names)} different ones; each is asked for once", stacklevel=3)
        return names

    def _read_caption(self, text: str, spans: Sequence[CharSpans] | None, parser: PhraseParser | None) -> Prompt:
        if spans is not None and parser is not None:
            raise ValueError("give spans or a parser, not both")
        if spans is None:
            spans = parser(text) if parser is not None else phrases_between_periods(text)
        prompt = caption_prompt(text, spans)
        if not prompt.char_spans:
            raise ValueError(f"no phrases in the caption {text[:60]!r}; name some by spans")
        limit = self.model.config.text.max_tokens
        for phrase, tokens in zip(prompt.phrases, self.tokenize(prompt).positive_map, strict=True):
            if not tokens.any():
                raise ValueError(
                    f"phrase {phrase[:60]!r} lies beyond the {limit} tokens that the model reads; "
                    "shorten the caption, or pass a list of names, which is divided"
                )
        return prompt

    def ground(
        self, images: Sequence[Picture], prompts: Sequence[Prompt], max_detections: int | None = None
    ) -> list[Detections]:
        """Find each prompt's phrases in its picture, all pictures of one padded size in one batch.

        Args:
            images: RGB pictures of any sizes.
            prompts: one per picture.
            max_detections: best boxes of a picture that are kept; None is the model's own limit.

        Returns:
            Per picture detections whose ``phrase_index`` counts the prompt's phrases.

        Raises:
            ValueError: the lists differ in length.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} pictures need as many prompts, got {len(prompts)}")
        config, found = self._config(max_detections), [Detections.none()] * len(images)
        for rows, resized in self._by_padded_size(images):
            question = self.prepare(resized, [prompts[i] for i in rows])
            for i, detections in zip(rows, self.answer(question, config), strict=True):
                found[i] = detections
        return found

    def prepare(self, images: Sequence[ResizedImage], prompts: Sequence[Prompt]) -> Question:
        """Preprocess without the device. One thread at a time may be here while another one is in ``answer``.

        Args:
            images: resized by ``resize_rule``, all of one padded size.
            prompts: one per picture.
        """
        pictures = PictureBatch.of(images, self.resize_rule.size_divisor, self.device.type == "cuda")
        return Question(pictures, tuple((self.tokenize(prompt),) for prompt in prompts), tuple((p,) for p in prompts))

    def prepare_several(self, images: Sequence[ResizedImage], prompts: Sequence[Sequence[Prompt]]) -> Question:
        """Do as ``prepare`` with several prompts a picture, the same number for each; the backbone runs once."""
        pictures = PictureBatch.of(images, self.resize_rule.size_divisor, self.device.type == "cuda")
        tokenized = tuple(tuple(map(self.tokenize, each)) for each in prompts)
        return Question(pictures, tokenized, tuple(map(tuple, prompts)))

    def answer(self, question: Question, config: GLIPConfig | None = None) -> list[Detections]:
        """Run the model on a question; return detections as ``ground`` does.

        ``config`` may have another limit of detections than the model's own. Phrases of several prompts count
        through, and each prompt has its own limit.
        """
        answers = self._run(question.pictures, question.prompts, 1, config or self.model.config)
        named = [
            [replace(part, phrases=p.phrases, char_spans=p.char_spans) for part, p in zip(found, asked, strict=True)]
            for found, asked in zip(answers, question.asked, strict=True)
        ]
        return [
            found[0] if len(found) == 1 else join_detections(found, [len(prompt.phrases) for prompt in asked])
            for found, asked in zip(named, question.asked, strict=True)
        ]

    def divide(self, names: Sequence[str]) -> list[list[int]]:
        """Return which names go into each of as few prompts as hold them; ValueError where one is too long."""
        return chunk_categories(names, self.tokenizer, self.model.config.text.max_tokens)

    def detect(
        self,
        images: Sequence[Picture],
        names: Sequence[str],
        max_prompt_categories: int | None = None,
        limit_total: bool = True,
        max_detections: int | None = None,
    ) -> list[Detections]:
        """Find categories in every picture, with names packed into as few prompts as possible.

        The backbone's features of a picture are computed once, whatever the number of prompts.

        Args:
            images: RGB pictures of any sizes, one batch.
            names: any number of category names.
            max_prompt_categories: names in one prompt at most; None leaves it to the token limit.
            limit_total: keep ``max_detections`` of all prompts together; otherwise of each, as GLIP was judged on LVIS.
            max_detections: best boxes of a picture that are kept; None is the model's own limit.

        Returns:
            Per picture the best boxes over all prompts; ``phrase_index`` counts ``names``.

        Raises:
            ValueError: there are no names, or one is empty or alone too long for a prompt.
        """
        if not names:
            raise ValueError("detect needs at least one category name, got none")
        config = self._config(max_detections)
        chunks = chunk_categories(names, self.tokenizer, config.text.max_tokens, max_prompt_categories)
        prompts = [self.tokenize(category_prompt([names[i] for i in chunk])) for chunk in chunks]
        limit = config.max_detections if limit_total else None
        merged = [Detections.none()] * len(images)
        for rows, resized in self._by_padded_size(images):
            pictures = PictureBatch.of(resized, config.size_divisor, self.device.type == "cuda")
            # No more pictures with a prompt each run together than there are pictures.
            found = self._run(pictures, [prompts] * len(rows), len(images) // len(rows), config)
            for i, parts in zip(rows, found, strict=True):
                merged[i] = replace(merge_chunks(parts, chunks, limit), phrases=tuple(names))
        return merged

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """Tokenise a prompt with the model's token limit."""
        return tokenize_prompt(self.tokenizer, prompt, self.model.config.text.max_tokens)

    def _config(self, max_detections: int | None) -> GLIPConfig:
        """Return the model's settings, with another limit where one is given; the model keeps its own."""
        config = self.model.config
        if max_detections is None:
            return config
        if max_detections < 1:
            raise ValueError(f"max_detections is {max_detections}; expected at least 1")
        return replace(config, max_detections=max_detections)

    def _by_padded_size(self, images: Sequence[Picture]) -> Iterator[tuple[list[int], list[ResizedImage]]]:
        """Yield the indices of pictures of one padded size, and these pictures resized."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            size = image.size if isinstance(image, ResizedImage) else self.resize_rule.size((image.height, image.width))
            groups.setdefault(self.resize_rule.padded(size), []).append(i)
        for rows in groups.values():
            chosen = [images[i] for i in rows]
            yield rows, [each if isinstance(each, ResizedImage) else self.resize_rule(each) for each in chosen]

    @torch.inference_mode()
    def _run(
        self,
        pictures: PictureBatch,
        prompts: Sequence[Sequence[TokenizedPrompt]],
        at_once: int,
        config: GLIPConfig,
    ) -> list[list[Detections]]:
        """Return detections per picture and prompt; ``at_once`` prompts of each picture run in one batch."""
        count = len(pictures.sizes)
        found: list[list[Detections]] = [[] for _ in range(count)]
        with autocast(self.dtype, self.device):
            features = self._features(pictures.to_device(self.device, config.backbone))
            for start in range(0, len(prompts[0]), at_once):
                turns = list(zip(*(each[start : start + at_once] for each in prompts), strict=True))
                asked = [prompt for turn in turns for prompt in turn]
                detections = postprocess(
                    self._ground([torch.cat([level] * len(turns)) for level in features], *self._encode(asked)),
                    pictures.sizes * len(turns),
                    [prompt.positive_map for prompt in asked],
                    pictures.original_sizes * len(turns),
                    config,
                )
                for place, answer in enumerate(detections):
                    i = place % count
                    size = pictures.original_sizes[i]
                    found[i].append(_whole_pixels(answer, size) if config.inclusive_corners else answer)
        return found

    def _encode(self, prompts: Sequence[TokenizedPrompt]) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, mask and encoder states of prompts as ``GLIP.ground`` takes them."""
        states = pad_sequence(self._text_states([prompt.prompt.segments for prompt in prompts]), batch_first=True)
        input_ids, mask = pad_prompts(prompts)
        return send(input_ids, self.device), send(mask, self.device), states


def _whole_pixels(found: Detections, size: tuple[int, int]) -> Detections:
    """Return detections with inclusive corners as boxes that end where the next pixel begins, as all data has them."""
    # Of pictures that were enlarged for the model, the last pixel there is less than one of theirs.
    return replace(found, boxes_xyxy=clip_boxes(to_exclusive(found.boxes_xyxy), size))


def _is_single(images: Any) -> bool:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, Image.Image | str | Path)
