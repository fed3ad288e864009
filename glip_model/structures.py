"""The dataclasses that cross module borders.

Letters of all shapes: B pictures, N boxes, A anchors over all levels, P phrases, T tokens, D text width, H W pixels.
Masks are True where the data is real. Boxes are ``xyxy`` corners in pixels; sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glip_model.boxes import pairwise_iou
from glip_model.drawing import LabelledBox, draw_boxes
from glip_model.images import ImageLike, open_image
from glip_model.notebook import picture_html

CharSpans = list[tuple[int, int]]
"""The half-open character pieces of one phrase in its caption, for example ``[(0, 5)]``."""


@dataclass(frozen=True)
class GroundingTarget:
    """What one picture should produce; coordinates are those of the resized picture that the model sees."""

    boxes_xyxy: Tensor
    """(N, 4) float32; N may be 0."""
    positive_map: Tensor
    """(N, T) bool: token t names box n. A row may be empty when truncation took its phrase."""
    token_mask: Tensor | None = None
    """(T,) bool, tokens that take part in the token loss; None means every real token. Off for phrases of which it
    is unknown where they are, such as pseudo-labels below the threshold."""
    box_weights: Tensor | None = None
    """(N,) float32 in (0, 1], how much each box counts in the losses; None means 1, as for boxes that people drew."""
    shape_weight: float = 1.0
    """How much the boxes count in the losses of shape and centerness besides; 0 where only their place is trusted."""

    def map(self, change: Callable[[Tensor], Tensor]) -> GroundingTarget:
        """Change every tensor."""
        mask = None if self.token_mask is None else change(self.token_mask)
        weights = None if self.box_weights is None else change(self.box_weights)
        return GroundingTarget(change(self.boxes_xyxy), change(self.positive_map), mask, weights, self.shape_weight)

    def weights(self) -> Tensor:
        """Return (N,) float32, how much each box counts in the losses."""
        return self.boxes_xyxy.new_ones(len(self.boxes_xyxy)) if self.box_weights is None else self.box_weights


@dataclass(frozen=True)
class GroundingBatch:
    """Pictures and their captions, padded to common sizes."""

    pixel_values: Tensor
    """(B, 3, H, W) float32, normalised, zero-padded at the bottom and right to a multiple of ``size_divisor``."""
    image_sizes: tuple[tuple[int, int], ...]
    """Per picture (height, width) without padding."""
    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) bool, True on real tokens including [CLS] and [SEP]."""
    text_states: Tensor | None = None
    """(B, T, D) encoder states where a frozen encoder has computed them already; None lets the model encode."""
    targets: tuple[GroundingTarget, ...] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GroundingBatch:
        """Copy every tensor to a device; ``non_blocking`` returns while pinned memory is being copied to a GPU."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GroundingBatch:
        """Copy every tensor to memory from which a GPU can fetch it by itself."""
        return self.map(Tensor.pin_memory)

    def map(self, change: Callable[[Tensor], Tensor]) -> GroundingBatch:
        """Change every tensor."""
        return replace(
            self,
            pixel_values=change(self.pixel_values),
            input_ids=change(self.input_ids),
            attention_mask=change(self.attention_mask),
            text_states=None if self.text_states is None else change(self.text_states),
            targets=None if self.targets is None else tuple(target.map(change) for target in self.targets),
        )

    def split(self, parts: int) -> list[GroundingBatch]:
        """Return parts of equal size, padded as the whole; ValueError when B cannot be divided so."""
        size, rest = divmod(len(self.input_ids), parts)
        if rest:
            raise ValueError(f"a batch of {len(self.input_ids)} pictures cannot be split into {parts} equal parts")
        return [self] if parts == 1 else [self._cut(slice(i * size, (i + 1) * size)) for i in range(parts)]

    def _cut(self, rows: slice) -> GroundingBatch:
        return GroundingBatch(
            pixel_values=self.pixel_values[rows],
            image_sizes=self.image_sizes[rows],
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            text_states=None if self.text_states is None else self.text_states[rows],
            targets=None if self.targets is None else self.targets[rows],
        )


@dataclass(frozen=True)
class GLIPOutput:
    """Raw predictions; anchors of all levels are concatenated from P3 to the coarsest, row-major."""

    token_logits: Tensor
    """(B, A, T) anchor-token alignment before the sigmoid; meaningless where the attention mask is False."""
    box_deltas: Tensor
    """(B, A, 4) as ``boxes.decode_boxes`` reads them."""
    centerness: Tensor
    """(B, A) before the sigmoid."""
    level_sizes: tuple[tuple[int, int], ...]
    """(height, width) in cells of each level; their products sum to A."""


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, best score first."""

    boxes_xyxy: Tensor
    """(N, 4) float32, pixels of the original picture."""
    scores: Tensor
    """(N,) float32 in [0, 1]: square root of phrase score times centerness; not a calibrated probability."""
    phrase_index: Tensor
    """(N,) int64 into ``phrases``."""
    phrases: tuple[str, ...] = ()
    """The phrases that were asked for, found or not."""
    char_spans: tuple[CharSpans, ...] = field(default=())
    """Per phrase, where it stands in the caption."""
    source: ImageLike | None = field(default=None, repr=False, compare=False, kw_only=True)
    """The picture as ``GLIPPredictor.predict`` was given it, for notebooks; None from other methods."""

    @classmethod
    def none(cls) -> Detections:
        """Return what is found in a picture where nothing is."""
        return cls(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Count the boxes."""
        return int(self.scores.shape[0])

    @property
    def labels(self) -> tuple[str, ...]:
        """Per box the phrase that it answers."""
        return tuple(self.phrases[i] for i in self.phrase_index.tolist())

    @property
    def spans(self) -> tuple[CharSpans, ...]:
        """Per box where its phrase stands in the caption; empty pieces where categories were asked for."""
        return tuple(self.char_spans[i] if self.char_spans else [] for i in self.phrase_index.tolist())

    def above(self, min_score: float) -> Detections:
        """Return the boxes that score at least ``min_score``, 0 to 1."""
        kept = self.scores >= min_score
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[kept],
            scores=self.scores[kept],
            phrase_index=self.phrase_index[kept],
        )

    def without_rivals(self, iou_threshold: float) -> Detections:
        """Return the boxes without those that overlap a better box of another phrase by more than ``iou_threshold``.

        What is asked for by several names, "ball" and "red ball", gives the same box for each; the best of them stays.
        """
        order = self.scores.argsort(descending=True, stable=True)
        boxes, phrases = self.boxes_xyxy[order], self.phrase_index[order]
        rivals = (pairwise_iou(boxes, boxes) > iou_threshold) & (phrases[:, None] != phrases[None, :])
        kept = torch.ones(len(order), dtype=torch.bool)
        for i in range(len(order)):
            if kept[i]:
                kept[i + 1 :] &= ~rivals[i, i + 1 :]
        stays = order[kept].sort().values
        return replace(
            self, boxes_xyxy=self.boxes_xyxy[stays], scores=self.scores[stays], phrase_index=self.phrase_index[stays]
        )

    def to_coco(self, image_id: int = 0, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return the boxes as entries of a COCO results file.

        Args:
            image_id: written into every entry.
            category_ids: per phrase its category; None counts the phrases from 1, as COCO does.

        Raises:
            ValueError: there are fewer categories than phrases.
        """
        ids = range(1, len(self.phrases) + 1) if category_ids is None else category_ids
        if len(ids) < len(self.phrases):
            raise ValueError(f"{len(self.phrases)} phrases need a category each, got {len(ids)}")
        return [
            {"image_id": image_id, "category_id": ids[i], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), score, i in zip(
                self.boxes_xyxy.tolist(), self.scores.tolist(), self.phrase_index.tolist(), strict=True
            )
        ]

    def to_supervision(self) -> Any:
        """Return a ``supervision.Detections``; ImportError when that library is not installed."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision needs supervision; run: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.phrase_index.numpy().astype(int),
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def draw(self, image: ImageLike, caption: str = "") -> Image.Image:
        """Return the picture with the boxes, a colour for every phrase, and a caption beneath unless it is empty.

        Raises:
            ValueError: as of ``images.open_image``, by which the picture is opened.
        """
        boxes = [
            LabelledBox((x1, y1, x2, y2), label, score, group)
            for (x1, y1, x2, y2), label, score, group in zip(
                self.boxes_xyxy.tolist(), self.labels, self.scores.tolist(), self.phrase_index.tolist(), strict=True
            )
        ]
        return draw_boxes(open_image(image), boxes, caption)

    def _repr_html_(self) -> str:
        """Show the picture with the boxes, where it is known and still there, above a table, in notebooks."""
        picture, note = None, "" if len(self) else f"nothing found of: {', '.join(self.phrases)}"
        if self.source is not None:
            try:
                picture = self.draw(self.source)
            except ValueError as error:
                note = str(error)
        boxes = (" ".join(f"{side:.0f}" for side in box) for box in self.boxes_xyxy.tolist())
        found = zip(self.labels, (f"{score:.2f}" for score in self.scores.tolist()), boxes, strict=True)
        return picture_html(picture, [("label", "score", "box x1 y1 x2 y2"), *found], note)


def join_detections(parts: Sequence[Detections], counts: Sequence[int]) -> Detections:
    """Join the detections of several prompts in one picture, best first; ``counts`` are their numbers of phrases."""
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    scores = torch.cat([part.scores for part in parts])
    order = scores.argsort(descending=True, stable=True)
    index = torch.cat([part.phrase_index + start for part, start in zip(parts, starts, strict=True)])
    return Detections(
        torch.cat([part.boxes_xyxy for part in parts])[order],
        scores[order],
        index[order],
        tuple(phrase for part in parts for phrase in part.phrases),
        tuple(spans for part in parts for spans in part.char_spans),
    )


def merge_chunks(parts: Sequence[Detections], chunks: Sequence[Sequence[int]], limit: int | None) -> Detections:
    """Merge the detections of prompts that share out one list of names, best first.

    Args:
        parts: detections in one image, one entry a prompt; ``phrase_index`` counts the prompt's own names.
        chunks: per prompt, the places of its names in the whole list; see ``prompts.chunk_categories``.
        limit: detections that are kept; None keeps all.

    Returns:
        Detections whose ``phrase_index`` counts the whole list.
    """
    scores = torch.cat([part.scores for part in parts])
    order = scores.argsort(descending=True, stable=True)[:limit]
    boxes = torch.cat([part.boxes_xyxy for part in parts])
    index = torch.cat([torch.tensor(chunk)[part.phrase_index] for part, chunk in zip(parts, chunks, strict=True)])
    return Detections(boxes[order], scores[order], index[order])
