"""Inference for evaluation over Ray: every shard of every split and task is asked of one of a few model processes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch

from glip_model.predictor import GLIPPredictor
from pipeline.cli import progress, quiet_libraries
from pipeline.config import EvaluateConfig
from pipeline.data.shards import list_shards, read_table
from pipeline.errors import BenchmarkError, MissingInputError, PipelineError
from pipeline.evaluation.benchmark import TASKS, predict_shard
from pipeline.evaluation.predictions import write_predictions
from pipeline.ray_session import share_cluster

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard of records to run the model over."""

    split: str
    task: str
    path: Path
    number: int
    """Number of its first row within the task."""
    rows: int


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
            predictor = GLIPPredictor.from_pretrained(self._model, "cuda" if torch.cuda.is_available() else "cpu")
        except (ValueError, OSError) as error:
            raise BenchmarkError(
                f"{self._model}: not a usable model ({error}); run: dvc repro train@{self._model.name}"
            ) from error
        model_config = predictor.model.config
        predictor.model.config = dataclasses.replace(model_config, max_detections=self._config.max_detections)
        return predictor

    def predict(self, path: Path, task: str, first_number: int) -> Any:
        """Return the predictions of one shard."""
        return predict_shard(self._predictor, path, task, first_number, self._config)


def predict_splits(config: EvaluateConfig, model: Path, records: Path, out: Path) -> dict[str, list[str]]:
    """Write the model's predictions for every split and task below ``out``; Ray must be running.

    Predictions of splits and tasks that there are no records for any more are removed.

    Returns:
        Split to the tasks that it has records for.

    Raises:
        MissingInputError: the model, or every task of a split, is not there.
        ShardError: a shard of records is broken.
        BenchmarkError: the model cannot be loaded, or a picture is missing or broken.
    """
    if not (model / "model.safetensors").is_file():
        raise MissingInputError(f"{model}: no model there; run: dvc repro train")
    work = _plan(config, records)
    tables: dict[Path, list[Any]] = {}
    tasks: dict[str, list[str]] = {}
    bar = progress(sum(shard.rows for shard in work), f"evaluate {model.name}", "rows")
    with bar, _errors_as_raised(), _actor_pool(config, model, len(work)) as pool:
        results = pool.map(lambda actor, shard: actor.predict.remote(shard.path, shard.task, shard.number), work)
        for shard, table in zip(work, results, strict=True):
            tables.setdefault(out / shard.split / f"{shard.task}.parquet", []).append(table)
            if shard.task not in tasks.setdefault(shard.split, []):
                tasks[shard.split].append(shard.task)
            bar.update(shard.rows)
    for path, parts in tables.items():
        write_predictions(path, parts)
    for path in out.glob("*/*.parquet"):
        if path not in tables:
            path.unlink()
    return tasks


def _plan(config: EvaluateConfig, records: Path) -> list[_Shard]:
    work = []
    for split in config.splits:
        present = [task for task in TASKS if (records / split / task).is_dir()]
        if not present:
            raise MissingInputError(f"{records / split}: no {', '.join(TASKS)} records; run: dvc repro prepare")
        if len(present) < len(TASKS):
            absent = ", ".join(task for task in TASKS if task not in present)
            logger.info("%s: no %s records; their metrics are left out", records / split, absent)
        for task in present:
            number = 0
            for path in list_shards(records / split / task):
                rows = len(read_table(path, ["key"]))
                work.append(_Shard(split, task, path.resolve(), number, rows))
                number += rows
    return work


@contextmanager
def _actor_pool(config: EvaluateConfig, model: Path, num_shards: int) -> Iterator[Any]:
    """Start model processes that share the CPU threads, or hold a GPU each; end them with the ``with`` block."""
    share = share_cluster(min(config.num_actors, num_shards))
    actor = ray.remote(**share.per_worker())(PredictActor)
    actors: list[Any] = [actor.remote(model.resolve(), config, share.threads) for _ in range(share.workers)]
    try:
        yield ray.util.ActorPool(actors)
    finally:
        for each in actors:
            ray.kill(each)  # now, rather than when the last reference goes: whoever comes next needs the cores


@contextmanager
def _errors_as_raised() -> Iterator[None]:
    """Take the wrapping off errors that cross from an actor, so that a stage shows their message alone."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from None
        raise
