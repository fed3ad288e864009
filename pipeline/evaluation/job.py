"""Inference for evaluation over Ray: every shard of every split and task is asked of one of a few model processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch

from glip_model.predictor import GLIPPredictor
from pipeline.cli import progress, quiet_libraries
from pipeline.config import EvaluateConfig
from pipeline.data.shards import list_shards, read_table
from pipeline.errors import MissingInputError
from pipeline.evaluation.benchmark import TASKS, predict_shard
from pipeline.evaluation.predictions import write_predictions


class PredictActor:
    """Keeps a model loaded in its process."""

    def __init__(self, model: Path, config: EvaluateConfig, num_threads: int) -> None:
        quiet_libraries()
        torch.set_num_threads(num_threads)
        self._predictor = GLIPPredictor.from_pretrained(model, "cuda" if torch.cuda.is_available() else "cpu")
        self._predictor.model.config = _with_limit(self._predictor.model.config, config.max_detections)
        self._config = config

    def predict(self, path: Path, task: str, first_number: int) -> Any:
        """Return the predictions of one shard."""
        return predict_shard(self._predictor, path, task, first_number, self._config)


def predict_splits(config: EvaluateConfig, model: Path, records: Path, out: Path) -> dict[str, list[str]]:
    """Write the model's predictions for every split and task below ``out``; Ray must be running.

    Returns:
        Split to the tasks that it has records for.

    Raises:
        MissingInputError: the model, or every task of a split, is not there.
    """
    if not (model / "model.safetensors").is_file():
        raise MissingInputError(f"{model}: no model there; run: dvc repro train")
    work: list[tuple[str, str, Path, int, int]] = []
    tasks: dict[str, list[str]] = {}
    for split in config.splits:
        tasks[split] = [task for task in TASKS if (records / split / task).is_dir()]
        if not tasks[split]:
            raise MissingInputError(f"{records / split}: no detection, grounding or referring records; run: dvc repro")
        for task in tasks[split]:
            number = 0
            for path in list_shards(records / split / task):
                rows = len(read_table(path, ["key"]))
                work.append((split, task, path, number, rows))
                number += rows
    gpus, cpus = int(ray.cluster_resources().get("GPU", 0)), int(ray.cluster_resources().get("CPU", 1))
    count = max(1, min(config.num_actors, len(work), gpus or cpus))
    threads = max(1, min(cpus, os.cpu_count() or 1) // count)
    actor = ray.remote(num_cpus=0 if gpus else threads, num_gpus=1 if gpus else 0)(PredictActor)
    pool = ray.util.ActorPool([actor.remote(model.resolve(), config, threads) for _ in range(count)])
    tables: dict[tuple[str, str], list[Any]] = {}
    with progress(sum(item[-1] for item in work), f"evaluate {model.name}", "rows") as bar:
        results = pool.map(lambda actor, item: actor.predict.remote(item[2].resolve(), item[1], item[3]), work)
        for (split, task, _, _, rows), table in zip(work, results, strict=True):
            tables.setdefault((split, task), []).append(table)
            bar.update(rows)
    for (split, task), parts in tables.items():
        write_predictions(out / split / f"{task}.parquet", parts)
    return tasks


def _with_limit(config: Any, max_detections: int) -> Any:
    import dataclasses

    return dataclasses.replace(config, max_detections=max_detections)
