"""The tasks of a split: which records they need, how a model is asked, and what its answers score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from glip_model.images import ImageError
from glip_model.predictor import GLIPPredictor
from glip_model.prompts import caption_prompt
from pipeline.config import EvaluateConfig
from pipeline.data.images import load_image
from pipeline.data.records import DetectionRecord, GroundingRecord
from pipeline.data.shards import list_shards, read_categories, read_shard
from pipeline.errors import BenchmarkError
from pipeline.evaluation import coco, flickr30k, refcoco
from pipeline.evaluation.predictions import Predictions, to_table

TASKS = {"detection": DetectionRecord, "grounding": GroundingRecord, "referring": GroundingRecord}
SPLITS = (None, "base", "novel")
MAX_PIXELS = 1_000_000_000
"""Benchmark pictures were checked when their records were made."""


def read_task(folder: Path, task: str) -> list[Any]:
    """Return all records of a task.

    Raises:
        MissingInputError: the split has no such task.
        BenchmarkError: it has no rows; a score over nothing would mislead.
    """
    records = [record for path in list_shards(folder / task) for record in read_shard(path, TASKS[task])]
    if not records:
        raise BenchmarkError(f"{folder / task}: no rows to judge a model by; give prepare some and run: dvc repro")
    return records


def predict_shard(
    predictor: GLIPPredictor,
    path: Path,
    task: str,
    first_number: int,
    config: EvaluateConfig,
    on_rows: Callable[[int], None] = lambda count: None,
) -> pa.Table:
    """Run a model over one shard of a task.

    Args:
        predictor: the model.
        path: shard of records.
        task: ``detection``, ``grounding`` or ``referring``.
        first_number: number of the shard's first row within the task.
        config: batch size and prompt limits.
        on_rows: told how many rows were done.

    Returns:
        Predictions as ``predictions.PREDICTION_SCHEMA``.

    Raises:
        BenchmarkError: a picture is missing or broken; leaving it out would change the benchmark.
    """
    records: list[Any] = read_shard(path, TASKS[task])
    categories = read_categories(path) if task == "detection" else []
    names, ids = [category.name for category in categories], [category.id for category in categories]
    keys, found = [record.key for record in records], []
    for start in range(0, len(records), config.batch_size):
        batch = records[start : start + config.batch_size]
        images = _load_images(batch, path)
        if task == "detection":
            found += predictor.detect(images, names, config.max_prompt_categories)
        else:
            found += _ground(predictor, images, batch)
        on_rows(len(batch))
    numbers = range(first_number, first_number + len(records))
    return to_table(keys, list(numbers), found, ids if task == "detection" else None)


def score_split(folder: Path, predictions: dict[str, Predictions]) -> tuple[dict[str, Any], coco.CocoResult | None]:
    """Compute the metrics of every task that there are predictions for.

    Returns:
        Task → ``all``, ``base`` and ``novel`` → measure in percent, two digits; and the detection result for curves.
    """
    metrics: dict[str, Any] = {}
    detection = None
    if "detection" in predictions:
        records = read_task(folder, "detection")
        categories = read_categories(list_shards(folder / "detection")[0])
        detection = coco.evaluate_detection(records, categories, predictions["detection"])
        metrics["detection"] = {
            split or "all": {
                "AP": detection.average_precision(split),
                "AP50": detection.average_precision(split, iou=0.5),
            }
            for split in SPLITS
        }
    if "grounding" in predictions:
        ranks, splits = flickr30k.evaluate_grounding(read_task(folder, "grounding"), predictions["grounding"])
        metrics["grounding"] = {split or "all": flickr30k.recalls(ranks, splits, split) for split in SPLITS}
    if "referring" in predictions:
        hits, splits = refcoco.evaluate_referring(read_task(folder, "referring"), predictions["referring"])
        metrics["referring"] = {split or "all": refcoco.precision(hits, splits, split) for split in SPLITS}
    return _rounded(metrics), detection


def _load_images(records: Sequence[Any], path: Path) -> list[Image.Image]:
    images = []
    for record in records:
        try:
            images.append(load_image(record.image, MAX_PIXELS))
        except ImageError as error:
            raise BenchmarkError(
                f"{path}: the picture of row {record.key!r} cannot be read ({error}); every picture "
                "of a benchmark counts: put it back, or run: dvc repro prepare"
            ) from error
    return images


def _ground(predictor: GLIPPredictor, images: Sequence[Image.Image], records: Sequence[GroundingRecord]) -> list[Any]:
    prompts = [caption_prompt(r.caption, [list(phrase.char_spans) for phrase in r.phrases]) for r in records]
    return [replace(found, char_spans=()) for found in predictor.ground(images, prompts)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(float(np.nan_to_num(value)), 2)
