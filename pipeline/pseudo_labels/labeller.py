"""PseudoLabeller: web pairs and their phrases in, grounding records out. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from glip_model.images import ImageError
from glip_model.prompts import Prompt, caption_prompt
from glip_model.structures import Detections
from pipeline.config import PseudoLabelConfig
from pipeline.data.images import load_image
from pipeline.data.records import CaptionRecord, GroundingRecord, Phrase, PhrasesRecord
from pipeline.errors import ShardError
from pipeline.pseudo_labels.selection import select_boxes


class Teacher(Protocol):
    """What labels; ``GLIPPredictor`` is one."""

    def ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Find each prompt's phrases in its picture."""
        ...


@dataclass(frozen=True)
class _Usable:
    """A row that the teacher is asked about."""

    place: int
    image: Image.Image
    prompt: Prompt


class PseudoLabeller:
    """A teacher, and what is kept of its output.

    Args:
        teacher: grounds phrases.
        config: thresholds and batch size.
        max_image_pixels: larger pictures are rejected before they are decoded.
    """

    def __init__(self, teacher: Teacher, config: PseudoLabelConfig, max_image_pixels: int) -> None:
        self._teacher, self._config, self._max_pixels = teacher, config, max_image_pixels

    def label(
        self,
        pairs: Sequence[CaptionRecord],
        phrases: Sequence[PhrasesRecord],
        on_rows: Callable[[int], None] = lambda count: None,
    ) -> list[GroundingRecord]:
        """Label the rows of one shard, in order; every row comes back, labelled or with its reason.

        Args:
            pairs: pictures and captions.
            phrases: of the same rows.
            on_rows: told how many rows were done.

        Raises:
            ShardError: the two do not belong together.
        """
        # Captions as well as keys: spans index the caption that was parsed, and no other.
        if [(pair.key, pair.caption) for pair in pairs] != [(row.key, row.caption) for row in phrases]:
            raise ShardError("phrases belong to other rows than the web pairs; run: dvc repro phrases")
        results: list[GroundingRecord] = []
        for start in range(0, len(pairs), self._config.batch_size):
            stop = start + self._config.batch_size
            results += self._label_batch(pairs[start:stop], phrases[start:stop])
            on_rows(len(pairs[start:stop]))
        return results

    def _label_batch(self, pairs: Sequence[CaptionRecord], phrases: Sequence[PhrasesRecord]) -> list[GroundingRecord]:
        reasons: list[str | None] = [row.reject_reason for row in phrases]
        usable: list[_Usable] = []
        for i, (pair, row) in enumerate(zip(pairs, phrases, strict=True)):
            if reasons[i] is None:
                try:
                    image = load_image(pair.image, self._max_pixels)
                except ImageError as error:
                    reasons[i] = error.reason
                    continue
                prompt = caption_prompt(pair.caption, [list(phrase.char_spans) for phrase in row.phrases])
                usable.append(_Usable(i, image, prompt))
        labelled: dict[int, tuple[Phrase, ...]] = {}
        found = self._teacher.ground([row.image for row in usable], [row.prompt for row in usable]) if usable else []
        for row_of, detections in zip(usable, found, strict=True):
            size = (row_of.image.height, row_of.image.width)
            selected = select_boxes(phrases[row_of.place].phrases, detections, size, self._config)
            labelled[row_of.place] = selected
            if not any(phrase.boxes for phrase in selected):
                reasons[row_of.place] = "no_boxes"
        return [
            _record(pair, labelled.get(i, row.phrases), reasons[i])
            for i, (pair, row) in enumerate(zip(pairs, phrases, strict=True))
        ]


def _record(pair: CaptionRecord, phrases: tuple[Phrase, ...], reason: str | None) -> GroundingRecord:
    return GroundingRecord(
        key=pair.key,
        image=pair.image,
        height=pair.height,
        width=pair.width,
        caption=pair.caption,
        source=pair.source,
        phrases=phrases,
        reject_reason=reason,
    )
