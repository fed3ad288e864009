"""The benchmarks of a split: the records that they need, and inference on them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from glip_model.images import ImageError, decode_image
from glip_model.predictor import GLIPPredictor
from glip_model.prompts import caption_prompt
from glip_model.structures import Detections
from pipeline.errors import BenchmarkError, MissingInputError
from pipeline.evaluation.predictions import to_table
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.store.images import read_encoded
from pipeline.store.records import Category, DetectionRecord, GroundingRecord, ImageRef
from pipeline.store.shards import list_shards, read_annotations, read_categories, read_shard, read_table
from pipeline.store.storage import Place

TASKS: dict[str, type] = {"detection": DetectionRecord, "grounding": GroundingRecord, "referring": GroundingRecord}
MAX_PIXELS = 1_000_000_000
"""Benchmark pictures were checked when their records were made."""
BATCHES_AHEAD = 2
"""Batches whose pictures are read and decoded while the model works on another."""


@dataclass(frozen=True)
class Benchmark:
    """The rows of one source in one task of a split: what one protocol judges at a time."""

    split: str
    task: str
    source: str
    shards: tuple[Place, ...]
    rows: tuple[int, ...]
    """Numbers of rows, one per shard."""
    roots: tuple[str, ...]
    """Folders and URLs that pictures must lie below."""

    @property
    def name(self) -> str:
        """Where its metrics stand."""
        return f"{self.split}/{self.task}/{self.source}"

    def read(self) -> list[Any]:
        """Return all records, without their pictures."""
        return [record for path in self.shards for record in read_annotations(path, TASKS[self.task])]

    def categories(self) -> list[Category]:
        """Return the vocabulary of detection; of other tasks there is none."""
        return read_categories(self.shards[0]) if self.task == "detection" else []

    def pictures(self, numbers: Sequence[int]) -> Iterator[Image.Image | ImageError]:
        """Yield the pictures of some rows, counted over all shards, or why one cannot be; a shard is read once."""
        refs: dict[int, ImageRef] = {}
        start = 0
        for path, rows in zip(self.shards, self.rows, strict=True):
            mine = {number for number in numbers if start <= number < start + rows}
            if mine:
                column = read_table(path, ["image"])["image"]
                refs |= {number: ImageRef(**column[number - start].as_py()) for number in mine}
            start += rows
        for number in numbers:
            if number not in refs:
                raise IndexError(f"{self.name} has {start} rows, none of them number {number}")
        # Decoded one by one: encoded they are small.
        return (_decode(data) for data in read_encoded([refs[number] for number in numbers], self.roots))

    def picture_numbers(self) -> np.ndarray:
        """Return (rows,) int64, which picture each row is about, counted in the order of their first rows.

        Pictures are the same whose bytes, or else whose places, are the same.
        """
        numbers: dict[bytes | str, int] = {}
        found = []
        for path in self.shards:
            for chunk in read_table(path, ["image"])["image"].chunks:
                for data, place in zip(chunk.field("bytes"), chunk.field("path"), strict=True):
                    picture = hashlib.sha256(data.as_buffer()).digest() if data.is_valid else place.as_py()
                    found.append(numbers.setdefault(picture, len(numbers)))
        return np.array(found, np.int64)


@dataclass(frozen=True)
class ShardPredictions:
    """What a model finds in the pictures of one shard."""

    table: pa.Table
    """Predictions with the columns of ``predictions.PREDICTION_SCHEMA``."""
    missing: dict[str, str]
    """Key to reason of the rows whose picture cannot be read; they count as if nothing had been found."""


def list_benchmarks(
    records: Place, splits: Sequence[str], allowed: Sequence[str] = ()
) -> tuple[list[Benchmark], list[str]]:
    """Return the benchmarks that there are records for, and the ``SPLIT/TASK`` that have none.

    Args:
        records: folder of SPLIT/TASK.
        splits: to look for.
        allowed: where pictures may be besides ``records``, see ``allowed_roots``.

    Raises:
        MissingInputError: a split has no records at all.
        BenchmarkError: a task has no rows, or a shard mixes sources.
    """
    found: list[Benchmark] = []
    absent = []
    roots = (str(records), *allowed)
    for split in splits:
        of_split = []
        for task in TASKS:
            try:
                of_split += _benchmarks_of(records, split, task, roots)
            except MissingInputError:
                absent.append(f"{split}/{task}")
        if not of_split:
            raise MissingInputError(f"{records / split}: no {', '.join(TASKS)} records; run: dvc repro prepare")
        found += of_split
    return found, absent


def _benchmarks_of(records: Place, split: str, task: str, roots: tuple[str, ...]) -> list[Benchmark]:
    shards: dict[str, list[tuple[Place, int]]] = {}
    for path in list_shards(records / split / task):
        sources = read_table(path, ["source"])["source"]
        names = sources.unique().to_pylist()
        if len(names) > 1:
            raise BenchmarkError(f"{path}: rows of {', '.join(names)} in one shard; run: dvc repro prepare")
        for name in names:
            shards.setdefault(name, []).append((path, len(sources)))
    if not shards:
        raise BenchmarkError(
            f"{records / split / task}: no rows to judge a model by; give prepare some and run: dvc repro"
        )
    return [
        Benchmark(split, task, source, tuple(path for path, _ in parts), tuple(rows for _, rows in parts), roots)
        for source, parts in shards.items()
    ]


def predictions_of(benchmark: Benchmark, out: Place) -> list[Place]:
    """Return where the predictions of a benchmark's shards are, in order."""
    return [out / benchmark.split / benchmark.task / path.name for path in benchmark.shards]


def predict_shard(
    predictor: GLIPPredictor, path: Place, task: str, config: EvaluateConfig, roots: Sequence[str]
) -> ShardPredictions:
    """Run a model over one shard of a task, all of one source; pictures, below the roots, are decoded ahead of it."""
    records: list[Any] = read_shard(path, TASKS[task])
    categories = read_categories(path) if task == "detection" else []
    batches = [records[start : start + config.batch_size] for start in range(0, len(records), config.batch_size)]
    found: list[Detections] = []
    missing: dict[str, str] = {}
    for batch, images in zip(batches, _loaded_ahead(batches, roots), strict=True):
        usable = {i: image for i, image in enumerate(images) if isinstance(image, Image.Image)}
        asked = [batch[i] for i in usable]
        answers = _ask(predictor, task, list(usable.values()), asked, categories, config) if usable else []
        by_place = dict(zip(usable, answers, strict=True))
        found += [by_place.get(i, Detections.none()) for i in range(len(batch))]
        for record, image in zip(batch, images, strict=True):
            if isinstance(image, ImageError):
                missing[record.key] = image.reason
    ids = [category.id for category in categories] if task == "detection" else None
    return ShardPredictions(to_table([record.key for record in records], found, ids), missing)


def is_federated(categories: Iterable[Category]) -> bool:
    """Tell whether LVIS's protocol judges a vocabulary: one that says how rare its categories are."""
    return any(category.frequency for category in categories)


def _ask(
    predictor: GLIPPredictor,
    task: str,
    images: Sequence[Image.Image],
    records: Sequence[Any],
    categories: Sequence[Category],
    config: EvaluateConfig,
) -> list[Detections]:
    """Return what a model finds in pictures: the names of a vocabulary, or what their own records ask for."""
    if task == "detection":
        names, federated = [category.name for category in categories], is_federated(categories)
        limit = config.max_detections_lvis if federated else config.max_detections
        most_names = config.names_a_prompt(records[0].source, len(names))
        return predictor.detect(images, names, most_names, limit_total=not federated, max_detections=limit)
    is_whole = task == "referring" and config.referring_target == "expression"
    prompts = [
        caption_prompt(
            record.caption,
            [[(0, len(record.caption))]] if is_whole else [list(phrase.char_spans) for phrase in record.phrases],
        )
        for record in records
    ]
    return [replace(found, char_spans=()) for found in predictor.ground(images, prompts, config.max_detections)]


def _load_images(records: Sequence[Any], roots: Sequence[str]) -> list[Image.Image | ImageError]:
    return [_decode(data) for data in read_encoded([record.image for record in records], roots)]


def _decode(data: bytes | ImageError) -> Image.Image | ImageError:
    if isinstance(data, ImageError):
        return data
    try:
        return decode_image(data, MAX_PIXELS)
    except ImageError as error:
        return error


def _loaded_ahead(batches: Sequence[Sequence[Any]], roots: Sequence[str]) -> Iterator[list[Image.Image | ImageError]]:
    """Yield the pictures of batches in order; those of the next ones are read meanwhile."""
    with ThreadPoolExecutor(BATCHES_AHEAD) as pool:
        pending: deque[Future[list[Image.Image | ImageError]]] = deque()
        for batch in batches:
            pending.append(pool.submit(_load_images, batch, roots))
            if len(pending) > BATCHES_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
