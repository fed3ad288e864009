"""PseudoLabeller: turns rows and their prompts into labelled rows, independently of Ray."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch
from PIL import Image, ImageOps

from glip_model.images import ImageError
from glip_model.prompts import Prompt
from glip_model.resizing import ResizedImage, ResizeRule
from pipeline.pseudo_labels.batching import BatchWindow
from pipeline.pseudo_labels.decoding import Decoded
from pipeline.pseudo_labels.ensemble import EnsembleTeacher
from pipeline.pseudo_labels.passes import Asked, Found, label_batch
from pipeline.pseudo_labels.progress import Figures
from pipeline.pseudo_labels.questions import CaptionQuestions, L, NameQuestions, Questions
from pipeline.pseudo_labels.settings import PseudoLabelConfig
from pipeline.pseudo_labels.teachers import (
    Answer,
    PreparedTeacher,
    Teacher,
    answer_question,
    divide_names,
    prepare_question,
    prepared,
)
from pipeline.pseudo_labels.tiling import TiledTeacher
from pipeline.store.records import CaptionRecord, DetectionRecord, GroundingRecord, ImageRef, PhrasesRecord
from pipeline.store.vocabulary import Vocabulary

CHUNKS_AHEAD = 3
"""Chunks of pictures, each of a batch's length, that are decoded while the teacher works on others."""
CHUNK_PIXELS = 1 << 26
"""Most pixels of a chunk, 200 MB."""
BATCHES_AHEAD = 2
"""Batches that wait for the teacher: a window gives none for a while, and then several."""

T = TypeVar("T")

Decode = Callable[[Sequence[ImageRef], ResizeRule | None], Sequence[Decoded]]
"""Pictures that records refer to, in order, resized by a rule where there is one, or why one is none."""
OnBatch = Callable[[Figures], None]
Picture = CaptionRecord | DetectionRecord


class PseudoLabeller:
    """A teacher, and what is kept of its output; may be called by several threads.

    Pictures are decoded while the teacher works, and wait in a window until there is a batch of one padded size; those
    for a teacher without a ``resize_rule`` come as they are, in the order of their rows.

    Args:
        teacher: grounds phrases; one thread at a time is in it.
        config: thresholds and batch size.
        decode: may be called by several threads.
    """

    def __init__(self, teacher: Teacher | PreparedTeacher, config: PseudoLabelConfig, decode: Decode) -> None:
        self._config, self._decode = config, decode
        self._teacher = prepared(teacher)
        if config.tile:
            # Of several teachers each puts its pieces together first: agreement is about whole pictures.
            whole = self._teacher
            self._teacher = whole.each(self._tiled) if isinstance(whole, EnsembleTeacher) else self._tiled(whole)
        self._preparing, self._answering = threading.Lock(), threading.Lock()

    def _tiled(self, teacher: PreparedTeacher) -> PreparedTeacher:
        config = self._config
        return TiledTeacher(teacher, config.tile, config.batch_size, config.nms_threshold)

    def label(
        self,
        pairs: Sequence[CaptionRecord],
        phrases: Sequence[PhrasesRecord],
        on_batch: OnBatch = lambda figures: None,
        known: frozenset[str] = frozenset(),
    ) -> list[GroundingRecord]:
        """Label the web pairs of one shard, in order; every row comes back, labelled or with its reason.

        Args:
            pairs: pictures and captions.
            phrases: of the same rows.
            on_batch: receives the figures of every batch.
            known: words of human data, see ``CaptionQuestions``.

        Raises:
            ShardError: the two do not belong together.
        """
        return self.answer(CaptionQuestions(pairs, phrases, self._config, known), on_batch)

    def ask_names(self, pictures: Sequence[DetectionRecord], vocabulary: Vocabulary) -> NameQuestions:
        """Return the question for the names of a vocabulary in pictures; ConfigError where one is too long."""
        return NameQuestions(pictures, vocabulary, divide_names(self._teacher, vocabulary.prompts), self._config)

    def answer(self, questions: Questions[L], on_batch: OnBatch = lambda figures: None) -> list[L]:
        """Label the rows of one shard, in order; every row comes back, labelled or with its reason.

        Args:
            questions: rows, and what is asked about each.
            on_batch: receives the figures of every batch.
        """
        labelled: dict[int, L] = {}
        fresh = dict(questions.refused())
        with closing(_ahead(self._batches(questions, frozenset(fresh)), BATCHES_AHEAD)) as batches:
            for batch, unusable in batches:
                fresh |= {i: questions.left_out(i, error.reason) for i, error in unusable.items()}
                labelled_now, seconds = label_batch(questions, batch, self._config, self._ask)
                fresh |= labelled_now
                if fresh:
                    on_batch(_figures(fresh.values(), seconds))
                labelled |= fresh
                fresh = {}
        return [labelled[i] for i in range(len(questions.pictures))]

    def _batches(
        self, questions: Questions[L], refused: Collection[int]
    ) -> Iterator[tuple[list[Asked], dict[int, ImageError]]]:
        """Yield the batches for the teacher, each with the rows since the last one whose pictures could not be read."""
        rule = self._teacher.resize_rule
        window: BatchWindow[Asked] = BatchWindow(self._config.batch_size)
        unusable: dict[int, ImageError] = {}
        asked = [i for i in range(len(questions.pictures)) if i not in refused]
        with closing(self._decoded(questions.pictures, asked, rule)) as decoded:
            for i, image in decoded:
                if isinstance(image, ImageError):
                    unusable[i] = image
                    continue
                shape = rule.padded(image.size) if rule and isinstance(image, ResizedImage) else None
                item = Asked(i, image, tuple(questions.prompts(i)))
                for batch in window.add(shape, math.prod(image.size), item):
                    yield batch, unusable
                    unusable = {}
        for batch in window.rest():
            yield batch, unusable
            unusable = {}
        yield [], unusable  # rows after the last batch that needed no teacher

    def _decoded(
        self, pairs: Sequence[Picture], rows: Sequence[int], rule: ResizeRule | None
    ) -> Generator[tuple[int, Decoded], None, None]:
        """Yield pictures in order, some of them decoded ahead."""
        chunks = list(_chunks(pairs, rows, rule, self._config.batch_size))
        with ThreadPoolExecutor(CHUNKS_AHEAD) as pool:
            pending: deque[tuple[Sequence[int], Future[Sequence[Decoded]]]] = deque()
            for chunk in chunks:
                pending.append((chunk, pool.submit(self._decode, [pairs[i].image for i in chunk], rule)))
                if len(pending) > CHUNKS_AHEAD:
                    done, images = pending.popleft()
                    yield from zip(done, images.result(), strict=True)
            for done, images in pending:
                yield from zip(done, images.result(), strict=True)

    def _ask(self, batch: Sequence[Asked]) -> tuple[list[Found | ImageError], float]:
        """Return what is found in the pictures and in their mirror images, and the seconds that the teacher worked."""
        prompts = [asked.prompts for asked in batch]
        found, seconds = self._ground([asked.image for asked in batch], prompts)
        if not self._config.flip_agreement:
            return [answer if isinstance(answer, ImageError) else (answer, None) for answer in found], seconds
        mirrored, more = self._ground([_mirror(asked.image) for asked in batch], prompts)
        return [_both(*answers) for answers in zip(found, mirrored, strict=True)], seconds + more

    def _ground(
        self, images: Sequence[Image.Image | ResizedImage], prompts: Sequence[Sequence[Prompt]]
    ) -> tuple[list[Answer], float]:
        """Ask the teacher, in halves where the device has no room for all at once."""
        if not images:
            return [], 0.0
        with self._preparing:
            question = prepare_question(self._teacher, images, prompts)
        with self._answering:
            start = time.monotonic()
            try:
                return answer_question(self._teacher, question), time.monotonic() - start
            except torch.OutOfMemoryError:
                if len(images) == 1:
                    raise
                seconds = time.monotonic() - start
        half = len(images) // 2
        (first, mine), (second, more) = (
            self._ground(images[part], prompts[part]) for part in (slice(half), slice(half, None))
        )
        return first + second, seconds + mine + more


def _ahead(results: Iterator[T], count: int) -> Generator[T, None, None]:
    """Yield what an iterator yields, which is so many results further already."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, results, None) for _ in range(count))
        while (result := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, results, None))
            yield result


def _chunks(pairs: Sequence[Picture], rows: Sequence[int], rule: ResizeRule | None, length: int) -> Iterator[list[int]]:
    """Divide rows into what is decoded at once: few enough pixels, by the sizes that the records name."""
    chunk: list[int] = []
    pixels = 0
    for i in rows:
        size = max(pairs[i].height, 1), max(pairs[i].width, 1)
        more = math.prod(size if rule is None else rule.size(size))
        if chunk and (len(chunk) == length or pixels + more > CHUNK_PIXELS):
            yield chunk
            chunk, pixels = [], 0
        chunk.append(i)
        pixels += more
    if chunk:
        yield chunk


def _both(answer: Answer, mirrored: Answer) -> Found | ImageError:
    if isinstance(answer, ImageError):
        return answer
    return mirrored if isinstance(mirrored, ImageError) else (answer, mirrored)


def _mirror(image: Image.Image | ResizedImage) -> Image.Image | ResizedImage:
    return image.mirrored() if isinstance(image, ResizedImage) else ImageOps.mirror(image)


def count_boxes(record: GroundingRecord | DetectionRecord) -> int:
    """Count the boxes of a labelled row."""
    if isinstance(record, DetectionRecord):
        return len(record.objects)
    return sum(len(phrase.boxes) for phrase in record.phrases)


def _figures(records: Collection[GroundingRecord | DetectionRecord], seconds: float) -> Figures:
    return Figures(
        rows=len(records),
        boxes=sum(map(count_boxes, records)),
        busy_s=seconds,
        rejects=Counter(record.reject_reason for record in records if record.reject_reason),
    )
