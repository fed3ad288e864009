"""Inference for evaluation over Ray: each shard of a benchmark goes to one of a few model processes.

The predictions of a shard are a file of their own. A stage that is run again asks only for what is not there or was
made by something else.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import ray
import torch

from glip_model.precision import allow_tf32, resolve_precision
from glip_model.predictor import GLIPPredictor
from pipeline.cli import progress, quiet_libraries
from pipeline.errors import BenchmarkError, PipelineError
from pipeline.evaluation.benchmark import TASKS, Benchmark, list_benchmarks, predict_shard
from pipeline.evaluation.predictions import write_predictions
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.evaluation.work import ShardTask, is_complete, plan
from pipeline.ray_session import RESTARTS, on_gpu_machines, run_pool, share_cluster
from pipeline.store.folders import local_folder
from pipeline.store.provenance import describe_model
from pipeline.store.resume import keep_apart, keep_finished
from pipeline.store.storage import Place, side_by_side

logger = logging.getLogger(__name__)


class PredictActor:
    """Keeps a model loaded in its process."""

    def __init__(self, model: Place, config: EvaluateConfig, num_threads: int) -> None:
        quiet_libraries()
        torch.set_num_threads(num_threads)
        allow_tf32()
        self._model, self._config = model, config

    @cached_property
    def _predictor(self) -> GLIPPredictor:
        # Not in __init__: an error there would reach the stage as the death of an actor, without its message.
        try:
            with local_folder(self._model) as folder:
                return GLIPPredictor.from_pretrained(folder, precision=self._config.precision)
        except (ValueError, OSError) as error:
            raise BenchmarkError(f"{self._model}: not a usable model ({error}); run: dvc repro") from error

    def predict(self, shard: ShardTask) -> PipelineError | None:
        """Write the predictions of one shard; return what went wrong."""
        try:
            found = predict_shard(self._predictor, shard.path, shard.task, self._config, shard.roots)
            write_predictions(shard.target, found.table, shard.provenance, found.missing)
        except PipelineError as error:
            return error  # crosses the process border as data: the others are finished first
        except ValueError as error:
            return BenchmarkError(f"{shard.path}: the model cannot be asked about it ({error})")
        except torch.AcceleratorError:
            logger.exception("%s: the device is of no use to this process any more", shard.path)
            os._exit(1)  # Ray starts another one
        return None


def predict_benchmarks(
    config: EvaluateConfig, model: Place, records: Place, out: Place, allowed: Sequence[str] = ()
) -> list[Benchmark]:
    """Write the model's predictions for every benchmark below ``out``; Ray must be running.

    Predictions of the same splits whose records are no more are removed.

    Args:
        config: section ``evaluate``.
        model: its folder.
        records: folder of SPLIT/TASK.
        out: folder of predictions.
        allowed: where pictures may be besides ``records``, see ``allowed_roots``.

    Returns:
        The benchmarks; ``predictions_of`` says where the predictions of one are.

    Raises:
        ConfigError: ``out`` is ``records``.
        MissingInputError: the model, or every task of a split, is not there.
        ShardError: a shard of records is broken, or a worker dies over it each time; the others are finished first.
        BenchmarkError: the model cannot be loaded, or records do not make a benchmark.
    """
    keep_apart(out, records)
    with local_folder(model) as folder:
        described = describe_model(folder)
    config = replace(config, precision=resolve_precision(config.precision, on_gpu_machines))
    found, absent = list_benchmarks(records.absolute(), config.splits, allowed)
    if absent:
        logger.info("evaluate: no records of %s; their metrics are left out", ", ".join(absent))
    work = {shard.target: shard for benchmark in found for shard in plan(config, described, benchmark, out.absolute())}
    folders = [out.absolute() / split / task for split in config.splits for task in TASKS]
    wanted = {target: shard.provenance for target, shard in work.items()}
    kept = keep_finished("evaluate", folders, wanted, partial(side_by_side, is_complete))
    todo = [shard for target, shard in work.items() if target not in kept]
    share = share_cluster(min(config.num_actors, len(todo)))
    actor = ray.remote(max_restarts=-1, max_task_retries=RESTARTS, **share.per_worker())(PredictActor)
    # They share the CPU threads, or hold a GPU each.
    actors: list[Any] = [
        actor.remote(model.resolve(), config, share.threads) for _ in range(share.workers if todo else 0)
    ]
    with progress(sum(shard.rows for shard in todo), f"evaluate {model.name}", "rows") as bar:
        for shard, _ in run_pool(actors, lambda actor, shard: actor.predict.remote(shard), todo):
            bar.update(shard.rows)
    return found
