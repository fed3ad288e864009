"""What a teacher is asked about the pictures of a shard, and what becomes of its answers.

There are two kinds of rows, and one way of labelling them: web pairs are asked about the phrases of their captions,
pictures about the names of a vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import torch

from glip_model.prompts import Prompt, caption_prompt, category_prompt
from glip_model.structures import Detections
from pipeline.errors import ShardError
from pipeline.pseudo_labels.selection import select_boxes
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.records import (
    NOTHING_FOUND,
    CaptionRecord,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    Phrase,
    PhrasesRecord,
)
from pipeline.store.vocabulary import Vocabulary

L = TypeVar("L", GroundingRecord, DetectionRecord)
L_co = TypeVar("L_co", GroundingRecord, DetectionRecord, covariant=True)


class Questions(Protocol, Generic[L_co]):
    """The rows of one shard."""

    @property
    def pictures(self) -> Sequence[CaptionRecord | DetectionRecord]:
        """All rows, in order."""
        ...

    def refused(self) -> Mapping[int, L_co]:
        """Return the rows that the teacher is not asked about, as they are written."""
        ...

    def prompts(self, row: int) -> Sequence[Prompt]:
        """Return what is asked about a row, as many prompts for each; answers count their phrases through."""
        ...

    def left_out(self, row: int, reason: str) -> L_co:
        """Return a row whose picture cannot be looked at, as it is written."""
        ...

    def select(self, row: int, size: tuple[int, int], detections: Detections, mirrored: Detections | None) -> L_co:
        """Return a row with what is kept of the answers; ``size`` is the height and width that boxes count in."""
        ...


class CaptionQuestions:
    """Web pairs, each asked about the phrases of its caption.

    Args:
        pairs: pictures and captions.
        phrases: of the same rows.
        config: what is kept.

    Raises:
        ShardError: the two do not belong together.
    """

    def __init__(
        self, pairs: Sequence[CaptionRecord], phrases: Sequence[PhrasesRecord], config: PseudoLabelConfig
    ) -> None:
        # Captions as well as keys: spans index the caption that was parsed, and no other.
        if [(pair.key, pair.caption) for pair in pairs] != [(row.key, row.caption) for row in phrases]:
            raise ShardError("phrases belong to other rows than the web pairs; run: dvc repro phrases")
        self.pictures, self._phrases, self._config = pairs, phrases, config

    def refused(self) -> dict[int, GroundingRecord]:
        """Return the rows whose captions have no phrases."""
        return {
            i: self.left_out(i, row.reject_reason)
            for i, row in enumerate(self._phrases)
            if row.reject_reason is not None
        }

    def prompts(self, row: int) -> tuple[Prompt]:
        """Return the caption."""
        spans = [list(phrase.char_spans) for phrase in self._phrases[row].phrases]
        return (caption_prompt(self.pictures[row].caption, spans),)

    def left_out(self, row: int, reason: str) -> GroundingRecord:
        """Return the row without boxes."""
        return GroundingRecord(**vars(self.pictures[row]), phrases=self._phrases[row].phrases, reject_reason=reason)

    def select(
        self, row: int, size: tuple[int, int], detections: Detections, mirrored: Detections | None
    ) -> GroundingRecord:
        """Return the row with the boxes of its phrases."""
        pair = self.pictures[row]
        least = self._config.min_score_by_source.get(pair.source)
        phrases = self._phrases[row].phrases
        kept = select_boxes(phrases, detections, size, self._config, min_score=least, mirrored=mirrored)
        reason = None if any(phrase.boxes for phrase in kept) else NOTHING_FOUND
        return GroundingRecord(**vars(pair), phrases=kept, reject_reason=reason)


class NameQuestions:
    """Pictures, all asked about the names of a vocabulary.

    Args:
        pictures: what boxes they have is of no account.
        vocabulary: what they are asked about.
        chunks: places of prompts of the vocabulary that the teacher reads at once, see ``divide_names``.
        config: what is kept.

    Attributes:
        phrase_rejects: of the rows that were selected, how often a class has no box, by the reason.
    """

    def __init__(
        self,
        pictures: Sequence[DetectionRecord],
        vocabulary: Vocabulary,
        chunks: Sequence[Sequence[int]],
        config: PseudoLabelConfig,
    ) -> None:
        self.pictures, self._vocabulary, self._config = pictures, vocabulary, config
        self._prompts = tuple(category_prompt([vocabulary.prompts[i] for i in chunk]) for chunk in chunks)
        self._class_of = torch.tensor([vocabulary.class_of[i] for chunk in chunks for i in chunk])
        self._phrases = tuple(Phrase(text=name, char_spans=()) for name in vocabulary.classes)
        self.phrase_rejects: Counter[str] = Counter()

    def refused(self) -> dict[int, DetectionRecord]:
        """Return nothing: whatever has a picture is asked about."""
        return {}

    def prompts(self, row: int) -> tuple[Prompt, ...]:
        """Return the names, in as many prompts as the teacher needs."""
        return self._prompts

    def left_out(self, row: int, reason: str) -> DetectionRecord:
        """Return the row without boxes."""
        return replace(self.pictures[row], objects=(), reject_reason=reason)

    def select(
        self, row: int, size: tuple[int, int], detections: Detections, mirrored: Detections | None
    ) -> DetectionRecord:
        """Return the row with the boxes of its classes, those of a class's prompts together."""
        record = self.pictures[row]
        least = self._vocabulary.min_scores or self._config.min_score_by_source.get(record.source)
        kept = select_boxes(
            self._phrases,
            self._by_class(detections),
            size,
            self._config,
            min_score=least,
            mirrored=None if mirrored is None else self._by_class(mirrored),
        )
        self.phrase_rejects.update(phrase.reject_reason for phrase in kept if phrase.reject_reason)
        objects = tuple(
            DetectedObject(category_id=number, xyxy=box.xyxy, score=box.score)
            for number, phrase in enumerate(kept, 1)
            for box in phrase.boxes
        )
        return replace(record, objects=objects, reject_reason=None if objects else NOTHING_FOUND)

    def _by_class(self, detections: Detections) -> Detections:
        return replace(detections, phrase_index=self._class_of[detections.phrase_index])
