"""Prompts for the pictures of a shard, and labels from the teacher's detections.

There are two kinds of rows, and one way of labelling them: web pairs are asked about the phrases of their captions,
pictures about the names of a vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import torch

from glip_model.prompts import Prompt, caption_prompt, category_prompt
from glip_model.structures import Detections
from pipeline.errors import ShardError
from pipeline.pseudo_labels.selection import select_boxes
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.store.known_words import is_known
from pipeline.store.ontology import Ontology
from pipeline.store.records import (
    NOT_IN_NAMES,
    NOTHING_FOUND,
    NOTHING_NEW,
    NOTHING_NEW_FOUND,
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


@dataclass(frozen=True)
class Look:
    """What was found in a picture in one pass over it.

    Attributes:
        size: height and width that boxes count in.
        detections: of all phrases of the row, or of some; they count the row's phrases.
        mirrored: in the mirrored picture, where that was asked about.
        min_score: where boxes are kept from lower scores than usual.
        in_pass: the number of the pass; None where there is one.
    """

    size: tuple[int, int]
    detections: Detections
    mirrored: Detections | None
    min_score: float = 1.0
    in_pass: int | None = None


class Questions(Protocol, Generic[L_co]):
    """The rows of one shard."""

    @property
    def pictures(self) -> Sequence[CaptionRecord | DetectionRecord]:
        """All rows, in order."""
        ...

    def refused(self) -> Mapping[int, L_co]:
        """Return the rows that need no teacher, as they are written."""
        ...

    def prompts(self, row: int) -> Sequence[Prompt]:
        """Return the prompts of a row, the same number for each row; answers count phrases over all prompts."""
        ...

    def left_out(self, row: int, reason: str) -> L_co:
        """Return a row whose picture cannot be read, as it is written."""
        ...

    def by_phrase(self, found: Detections) -> Detections:
        """Return answers to ``prompts``, which count phrases of prompts, so that they count those of the row."""
        ...

    def alone(self, row: int, number: int) -> Prompt:
        """Return the prompt with only one of a row's phrases; all detections for it belong to this phrase."""
        ...

    def select(self, row: int, look: Look, phrases: Sequence[Phrase] | None = None) -> tuple[Phrase, ...]:
        """Return the phrases of a row with what is kept of the answers.

        Args:
            row: its place.
            look: what was found.
            phrases: those of the pass before, whose boxes they keep; None in the first one.
        """
        ...

    def labelled(self, row: int, phrases: Sequence[Phrase]) -> L_co:
        """Return a row with the boxes of its phrases, as it is written."""
        ...


class CaptionQuestions:
    """Web pairs; the prompt of each is its caption.

    Args:
        pairs: pictures and captions.
        phrases: of the same rows.
        config: what is kept.
        known: words that human data has, see ``known_words``; rows that say or show nothing else are rejected.

    Raises:
        ShardError: the two do not belong together.
    """

    def __init__(
        self,
        pairs: Sequence[CaptionRecord],
        phrases: Sequence[PhrasesRecord],
        config: PseudoLabelConfig,
        known: frozenset[str] = frozenset(),
    ) -> None:
        # Captions as well as keys: spans index the caption that was parsed, and no other.
        if [(pair.key, pair.caption) for pair in pairs] != [(row.key, row.caption) for row in phrases]:
            raise ShardError("phrases belong to other rows than the web pairs; run: dvc repro phrases")
        self.pictures, self._config = pairs, config
        self._ontology = Ontology.of_settings(config.names)
        self._known = known
        if self._ontology is not None:
            phrases = [self._mapped(row, self._ontology) for row in phrases]
        self._phrases = [self._with_something_new(row) for row in phrases] if known else phrases

    def _mapped(self, row: PhrasesRecord, ontology: Ontology) -> PhrasesRecord:
        """Return a row whose phrases say which class each means; refused where none does and others are dropped."""
        phrases = tuple(replace(phrase, category=ontology.category(phrase.text)) for phrase in row.phrases)
        mapped = replace(row, phrases=phrases)
        if row.reject_reason or self._config.other_phrases == "keep" or any(phrase.category for phrase in phrases):
            return mapped
        return replace(mapped, phrases=self._without_others(phrases), reject_reason=NOT_IN_NAMES)

    def _with_something_new(self, row: PhrasesRecord) -> PhrasesRecord:
        """Return a row, refused where human data has all its words."""
        if row.reject_reason or self._has_new(row.phrases):
            return row
        return replace(row, phrases=_without_boxes(row.phrases, NOTHING_NEW), reject_reason=NOTHING_NEW)

    def _has_new(self, phrases: Iterable[Phrase]) -> bool:
        return any(not is_known(phrase.text, self._known) for phrase in phrases)

    def refused(self) -> dict[int, GroundingRecord]:
        """Return the rows whose captions have no phrases that are asked for."""
        return {
            i: self.left_out(i, row.reject_reason)
            for i, row in enumerate(self._phrases)
            if row.reject_reason is not None
        }

    def prompts(self, row: int) -> tuple[Prompt]:
        """Return the caption, with all of its phrases: those that are dropped later compete for boxes until then."""
        spans = [list(phrase.char_spans) for phrase in self._phrases[row].phrases]
        return (caption_prompt(self.pictures[row].caption, spans),)

    def by_phrase(self, found: Detections) -> Detections:
        """Return answers as they are: the prompt has the phrases of the row."""
        return found

    def alone(self, row: int, number: int) -> Prompt:
        """Return a phrase as a caption of its own."""
        text = self._phrases[row].phrases[number].text
        return caption_prompt(text, [[(0, len(text))]])

    def left_out(self, row: int, reason: str) -> GroundingRecord:
        """Return the row without boxes."""
        return GroundingRecord(**vars(self.pictures[row]), phrases=self._phrases[row].phrases, reject_reason=reason)

    def select(self, row: int, look: Look, phrases: Sequence[Phrase] | None = None) -> tuple[Phrase, ...]:
        """Return the phrases of a row with what is kept of the answers."""
        least = self._config.min_score_by_source.get(self.pictures[row].source, self._config.min_score)
        return select_boxes(
            self._phrases[row].phrases if phrases is None else phrases,
            look.detections,
            look.size,
            self._config,
            min_score=min(least, look.min_score),
            mirrored=look.mirrored,
            in_pass=look.in_pass,
        )

    def labelled(self, row: int, phrases: Sequence[Phrase]) -> GroundingRecord:
        """Return the row with the boxes of its phrases."""
        kept = tuple(phrases)
        if self._ontology is not None and self._config.other_phrases == "drop":
            kept = self._without_others(kept)
        found = [phrase for phrase in kept if phrase.boxes]
        reason = None if found else NOTHING_FOUND
        if found and self._known and not self._has_new(found):
            # Often what was found is the new thing, under a name that the teacher knows.
            kept, reason = _without_boxes(kept, NOTHING_NEW_FOUND), NOTHING_NEW_FOUND
        return GroundingRecord(**vars(self.pictures[row]), phrases=kept, reject_reason=reason)

    @staticmethod
    def _without_others(phrases: Sequence[Phrase]) -> tuple[Phrase, ...]:
        """Return phrases without the boxes of those that mean no class."""
        return tuple(
            phrase if phrase.category else replace(phrase, boxes=(), reject_reason=NOT_IN_NAMES) for phrase in phrases
        )


def _without_boxes(phrases: Sequence[Phrase], reason: str) -> tuple[Phrase, ...]:
    """Return phrases without boxes, for a reason where they have none yet."""
    return tuple(replace(phrase, boxes=(), reject_reason=phrase.reject_reason or reason) for phrase in phrases)


class NameQuestions:
    """Pictures; the prompts of all are the names of a vocabulary.

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
        """Return nothing: every row with a picture goes to the teacher."""
        return {}

    def prompts(self, row: int) -> tuple[Prompt, ...]:
        """Return the names, in as many prompts as the teacher needs."""
        return self._prompts

    def left_out(self, row: int, reason: str) -> DetectionRecord:
        """Return the row without boxes."""
        return replace(self.pictures[row], objects=(), reject_reason=reason)

    def by_phrase(self, found: Detections) -> Detections:
        """Return answers with classes in place of prompts."""
        return replace(found, phrase_index=self._class_of[found.phrase_index])

    def alone(self, row: int, number: int) -> Prompt:
        """Return the prompts of a class."""
        mine = [
            prompt
            for prompt, owner in zip(self._vocabulary.prompts, self._vocabulary.class_of, strict=True)
            if owner == number
        ]
        return category_prompt(mine)

    def select(self, row: int, look: Look, phrases: Sequence[Phrase] | None = None) -> tuple[Phrase, ...]:
        """Return the classes with what is kept of the answers, those of a class's prompts together."""
        least = self._config.min_score_by_source.get(self.pictures[row].source, self._config.min_score)
        each = self._vocabulary.min_scores or (least,) * len(self._phrases)
        return select_boxes(
            self._phrases if phrases is None else phrases,
            look.detections,
            look.size,
            self._config,
            min_score=[min(score, look.min_score) for score in each],
            mirrored=look.mirrored,
            in_pass=look.in_pass,
        )

    def labelled(self, row: int, phrases: Sequence[Phrase]) -> DetectionRecord:
        """Return the row with the boxes of its classes."""
        self.phrase_rejects.update(phrase.reject_reason for phrase in phrases if phrase.reject_reason)
        objects = tuple(
            DetectedObject(category_id=number, **vars(box))
            for number, phrase in enumerate(phrases, 1)
            for box in phrase.boxes
        )
        return replace(self.pictures[row], objects=objects, reject_reason=None if objects else NOTHING_FOUND)
