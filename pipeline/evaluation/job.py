"""Inference for evaluation over Ray: every shard of every benchmark is asked of one of a few model processes.

The predictions of a shard are a file of their own, with a fingerprint over the model, the settings, the code and the
records. A stage that is run again asks only for what is not there or was made by something else.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch

import glip_model
from glip_model.predictor import GLIPPredictor
from pipeline.cli import progress, quiet_libraries
from pipeline.errors import BenchmarkError, PipelineError, ShardError
from pipeline.evaluation import benchmark as benchmarks
from pipeline.evaluation import predictions
from pipeline.evaluation.benchmark import (
    TASKS,
    Benchmark,
    is_federated,
    list_benchmarks,
    predict_shard,
    predictions_of,
)
from pipeline.evaluation.predictions import read_missing, write_predictions
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.ray_session import RESTARTS, WorkerDeath, results, share_cluster
from pipeline.store import images
from pipeline.store.provenance import FINGERPRINT, code_sha256, describe_model, fingerprint
from pipeline.store.shards import CATEGORIES_KEY, read_fingerprint, read_metadata, rows_sha256
from pipeline.store.storage import Place, exists, list_files, remove

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard of records to run the model over."""

    task: str
    path: Place
    rows: int
    target: Place
    provenance: dict[str, Any]


class PredictActor:
    """Keeps a model loaded in its process."""

    def __init__(self, model: Path, config: EvaluateConfig, num_threads: int) -> None:
        quiet_libraries()
        torch.set_num_threads(num_threads)
        self._model, self._config = model, config

    @cached_property
    def _predictor(self) -> GLIPPredictor:
        # Not in __init__: an error there would reach the stage as the death of an actor, without its message.
        try:
            return GLIPPredictor.from_pretrained(self._model, "cuda" if torch.cuda.is_available() else "cpu")
        except (ValueError, OSError) as error:
            raise BenchmarkError(
                f"{self._model}: not a usable model ({error}); run: dvc repro train@{self._model.name}"
            ) from error

    def predict(self, shard: _Shard) -> _Shard | PipelineError:
        """Write the predictions of one shard; return it, or what went wrong."""
        try:
            found = predict_shard(self._predictor, shard.path, shard.task, self._config)
            write_predictions(shard.target, found.table, shard.provenance, found.missing)
        except PipelineError as error:
            return error  # crosses the process border as data: the others are finished first
        except ValueError as error:
            return BenchmarkError(f"{shard.path}: the model cannot be asked about it ({error})")
        except torch.AcceleratorError:
            logger.exception("%s: the device is of no use to this process any more", shard.path)
            os._exit(1)  # Ray starts another one
        return shard


def predict_benchmarks(config: EvaluateConfig, model: Path, records: Place, out: Place) -> list[Benchmark]:
    """Write the model's predictions for every benchmark below ``out``; Ray must be running.

    Predictions of the same splits whose records are no more are removed.

    Returns:
        The benchmarks; ``predictions_of`` says where the predictions of one are.

    Raises:
        MissingInputError: the model, or every task of a split, is not there.
        ShardError: a shard of records is broken; the others are finished first.
        BenchmarkError: the model cannot be loaded, its worker dies each time, or records do not make a benchmark.
    """
    described = describe_model(model)
    found, absent = list_benchmarks(records, config.splits)
    if absent:
        logger.info("evaluate: no records of %s; their metrics are left out", ", ".join(absent))
    work = [shard for benchmark in found for shard in _plan(config, described, benchmark, out)]
    _remove_foreign(out, config.splits, {str(shard.target) for shard in work})
    todo = [shard for shard in work if not _is_finished(shard)]
    if len(todo) < len(work):
        logger.info("evaluate: %d of %d shards are finished already", len(work) - len(todo), len(work))
    errors: list[PipelineError] = []
    bar = progress(sum(shard.rows for shard in todo), f"evaluate {model.name}", "rows")
    with bar, _actor_pool(config, model, len(todo)) as pool:
        for shard in todo:
            pool.submit(lambda actor, shard: actor.predict.remote(shard), shard)
        for result in results(pool):
            if isinstance(result, WorkerDeath):
                errors.append(BenchmarkError(f"{records}: a worker died {RESTARTS + 1} times over a shard ({result})"))
            elif isinstance(result, PipelineError):
                errors.append(result)
            else:
                bar.update(result.rows)
    if errors:
        raise min(errors, key=str)  # the same one whichever came first
    return found


def _plan(config: EvaluateConfig, model: dict[str, Any], benchmark: Benchmark, out: Place) -> Iterator[_Shard]:
    model_code = Path(str(glip_model.__file__)).parent.glob("*.py")
    common = {
        "model": model,
        "settings": _deciding_settings(config, benchmark),
        "code": code_sha256(
            [*(Path(str(module.__file__)) for module in (benchmarks, images, predictions)), *model_code]
        ),
        "task": benchmark.task,
    }
    for path, rows, target in zip(benchmark.shards, benchmark.rows, predictions_of(benchmark, out), strict=True):
        # The vocabulary stands beside the rows, in the metadata.
        entry = {**common, "records": rows_sha256(path), "categories": read_metadata(path).get(CATEGORIES_KEY)}
        provenance = {**entry, FINGERPRINT: fingerprint(entry)}
        yield _Shard(benchmark.task, _absolute(path), rows, _absolute(target), provenance)


def _deciding_settings(config: EvaluateConfig, benchmark: Benchmark) -> dict[str, Any]:
    """Return the settings that change a prediction of this benchmark."""
    deciding: dict[str, Any] = {"batch_size": config.batch_size, "max_detections": config.max_detections}
    if benchmark.task == "detection":
        deciding["names_a_prompt"] = config.names_a_prompt(benchmark.source)
        if is_federated(benchmark.categories()):
            deciding["max_detections"] = config.max_detections_lvis
    if benchmark.task == "referring":
        deciding["referring_target"] = config.referring_target
    return deciding


def _absolute(place: Place) -> Place:
    """Return a place that workers find too, which have a working folder of their own; links stay links."""
    return place.absolute() if isinstance(place, Path) else place


def _is_finished(shard: _Shard) -> bool:
    """Tell whether the predictions are there; pictures that were missing may have come meanwhile."""
    try:
        if not exists(shard.target) or read_fingerprint(shard.target) != shard.provenance[FINGERPRINT]:
            return False
        return "image_missing" not in read_missing([shard.target]).values()
    except ShardError:
        return False


def _remove_foreign(out: Place, splits: Sequence[str], wanted: set[str]) -> None:
    for split, task in itertools.product(splits, TASKS):
        for path in list_files(out / split / task, "part-*.parquet"):
            if str(_absolute(path)) not in wanted:
                remove(path)


@contextmanager
def _actor_pool(config: EvaluateConfig, model: Path, num_shards: int) -> Iterator[Any]:
    """Start model processes that share the CPU threads, or hold a GPU each; end them with the ``with`` block."""
    share = share_cluster(min(config.num_actors, num_shards))
    actor = ray.remote(max_restarts=-1, max_task_retries=RESTARTS, **share.per_worker())(PredictActor)
    workers = share.workers if num_shards else 0
    actors: list[Any] = [actor.remote(model.resolve(), config, share.threads) for _ in range(workers)]
    try:
        yield ray.util.ActorPool(actors)
    finally:
        for each in actors:
            ray.kill(each)  # now, rather than when the last reference goes: whoever comes next needs the cores
