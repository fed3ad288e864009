"""PseudoLabeller: web pairs and their phrases in, grounding records out. Knows nothing of Ray."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageOps

from glip_model.images import ImageError
from glip_model.prompts import Prompt, caption_prompt
from glip_model.structures import Detections
from pipeline.errors import ShardError
from pipeline.pseudo_labels.progress import Figures
from pipeline.pseudo_labels.selection import select_boxes
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import Teacher
from pipeline.store.records import CaptionRecord, GroundingRecord, ImageRef, Phrase, PhrasesRecord

NOTHING_FOUND = "no_boxes"
"""Reject reason of a row for whose phrases the teacher was asked, and no box of it was kept."""


class PseudoLabeller:
    """A teacher, and what is kept of its output; may be called by several threads.

    Args:
        teacher: grounds phrases; one thread at a time is in it.
        config: thresholds and batch size.
        decode: pictures that records refer to, in order, or why one is none.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: PseudoLabelConfig,
        decode: Callable[[Sequence[ImageRef]], list[Image.Image | ImageError]],
    ) -> None:
        self._teacher, self._config, self._decode = teacher, config, decode
        self._lock = threading.Lock()

    def label(
        self,
        pairs: Sequence[CaptionRecord],
        phrases: Sequence[PhrasesRecord],
        on_batch: Callable[[Figures], None] = lambda figures: None,
    ) -> list[GroundingRecord]:
        """Label the rows of one shard, in order; every row comes back, labelled or with its reason.

        Args:
            pairs: pictures and captions.
            phrases: of the same rows.
            on_batch: told what was done, batch by batch.

        Raises:
            ShardError: the two do not belong together.
        """
        # Captions as well as keys: spans index the caption that was parsed, and no other.
        if [(pair.key, pair.caption) for pair in pairs] != [(row.key, row.caption) for row in phrases]:
            raise ShardError("phrases belong to other rows than the web pairs; run: dvc repro phrases")
        results: list[GroundingRecord] = []
        for start in range(0, len(pairs), self._config.batch_size):
            stop = start + self._config.batch_size
            records, seconds = self._label_batch(pairs[start:stop], phrases[start:stop])
            results += records
            on_batch(_figures(records, seconds))
        return results

    def _label_batch(
        self, pairs: Sequence[CaptionRecord], phrases: Sequence[PhrasesRecord]
    ) -> tuple[list[GroundingRecord], float]:
        """Return the labelled rows, and the seconds that the teacher worked."""
        reasons: list[str | None] = [row.reject_reason for row in phrases]
        asked = [i for i, reason in enumerate(reasons) if reason is None]
        usable: dict[int, Image.Image] = {}
        for i, image in zip(asked, self._decode([pairs[i].image for i in asked]), strict=True):
            if isinstance(image, ImageError):
                reasons[i] = image.reason
            else:
                usable[i] = image
        images = list(usable.values())
        spans = {i: [list(phrase.char_spans) for phrase in phrases[i].phrases] for i in usable}
        prompts = [caption_prompt(pairs[i].caption, spans[i]) for i in usable]
        mirrored: Sequence[Detections | None] = [None] * len(images)
        with self._lock:
            start = time.monotonic()
            found = self._ground(images, prompts)
            if self._config.flip_agreement:
                mirrored = self._ground([ImageOps.mirror(image) for image in images], prompts)
            seconds = time.monotonic() - start
        labelled: dict[int, tuple[Phrase, ...]] = {}
        for (i, image), detections, reflection in zip(usable.items(), found, mirrored, strict=True):
            least = self._config.min_score_by_source.get(pairs[i].source)
            labelled[i] = select_boxes(
                phrases[i].phrases,
                detections,
                (image.height, image.width),
                self._config,
                min_score=least,
                mirrored=reflection,
            )
            if not any(phrase.boxes for phrase in labelled[i]):
                reasons[i] = NOTHING_FOUND
        records = [
            GroundingRecord(**vars(pair), phrases=labelled.get(i, row.phrases), reject_reason=reasons[i])
            for i, (pair, row) in enumerate(zip(pairs, phrases, strict=True))
        ]
        return records, seconds

    def _ground(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Detections]:
        """Ask the teacher, in halves where the device has no room for all at once."""
        if not images:
            return []
        try:
            return self._teacher.ground(images, prompts)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        half = len(images) // 2
        return self._ground(images[:half], prompts[:half]) + self._ground(images[half:], prompts[half:])


def _figures(records: Sequence[GroundingRecord], seconds: float) -> Figures:
    return Figures(
        rows=len(records),
        boxes=sum(len(phrase.boxes) for record in records for phrase in record.phrases),
        busy_s=seconds,
        rejects=Counter(record.reject_reason for record in records if record.reject_reason),
    )
