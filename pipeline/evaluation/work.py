"""The work of an evaluation: the shards of a benchmark, and what their predictions depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.benchmark import Benchmark, is_federated, predict_shard, predictions_of
from pipeline.evaluation.predictions import read_missing, write_predictions
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.store.image_roots import OUTSIDE
from pipeline.store.provenance import code_sha256, with_fingerprint
from pipeline.store.shards import CATEGORIES_KEY, read_metadata, rows_sha256
from pipeline.store.storage import Place


@dataclass(frozen=True)
class ShardTask:
    """A shard of records to run the model over; absolute places, as workers have working folders of their own."""

    task: str
    path: Place
    rows: int
    target: Place
    provenance: dict[str, Any]
    roots: tuple[str, ...]
    """See ``Benchmark``."""

    def __str__(self) -> str:
        return str(self.path)


def plan(config: EvaluateConfig, model: Mapping[str, Any], benchmark: Benchmark, out: Place) -> Iterator[ShardTask]:
    """Yield the shards of a benchmark.

    Args:
        config: section ``evaluate``, its precision settled: ``auto`` is not the same on all machines.
        model: see ``describe_model``.
        benchmark: its shards of records.
        out: see ``predictions_of``.

    Raises:
        ShardError: a shard of records has no readable end.
    """
    common = {
        "model": model,
        "settings": _deciding_settings(config, benchmark),
        "code": code_sha256([predict_shard, write_predictions]),
        "task": benchmark.task,
    }
    for path, rows, target in zip(benchmark.shards, benchmark.rows, predictions_of(benchmark, out), strict=True):
        # The vocabulary stands beside the rows, in the metadata.
        depends_on = {**common, "records": rows_sha256(path), "categories": read_metadata(path).get(CATEGORIES_KEY)}
        yield ShardTask(benchmark.task, path.absolute(), rows, target, with_fingerprint(depends_on), benchmark.roots)


def is_complete(predictions: Place) -> bool | None:
    """Return True for predictions to keep; None where a picture was missing or refused for its place.

    It may have come meanwhile, or its place have been allowed.
    """
    return None if {"image_missing", OUTSIDE} & set(read_missing([predictions]).values()) else True


def _deciding_settings(config: EvaluateConfig, benchmark: Benchmark) -> dict[str, Any]:
    """Return the settings that change a prediction of this benchmark."""
    deciding: dict[str, Any] = {
        "batch_size": config.batch_size,
        "max_detections": config.max_detections,
        "precision": config.precision,
    }
    if benchmark.task == "detection":
        deciding["names_a_prompt"] = config.names_a_prompt(benchmark.source, len(benchmark.categories()))
        if is_federated(benchmark.categories()):
            deciding["max_detections"] = config.max_detections_lvis
    if benchmark.task == "referring":
        deciding["referring_target"] = config.referring_target
    return deciding
