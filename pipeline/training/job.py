"""Training under Ray Train: the same loop in one or several worker processes, watched from the driver."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from glip_model.checkpoint import initialise_pretrained
from glip_model.glip import GLIP
from glip_model.text_encoder import load_tokenizer
from pipeline.cli import progress, quiet_libraries
from pipeline.config import Config
from pipeline.errors import MissingInputError, PipelineError, TrainingError
from pipeline.training.batches import Worker
from pipeline.training.checkpoints import discard_checkpoints
from pipeline.training.loop import Progress, Trainer
from pipeline.training.samples import make_sources

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
WORKER_RESTARTS = 2
"""How often Ray starts failed workers again; they go on from the last checkpoint."""


@dataclass(frozen=True)
class Paths:
    """What a training reads and writes; absolute, and the same on every node."""

    human: Path
    pseudo_labels: Path | None
    teacher: Path | None
    out: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints that an interrupted run resumes from."""
        return self.out / "checkpoints"


class Board:
    """Where the first worker pins its progress and the driver reads it."""

    def __init__(self) -> None:
        self._entries: list[Progress] = []
        self._error: str | None = None

    def pin(self, entry: Progress) -> None:
        """Add an entry."""
        self._entries.append(entry)

    def fail(self, message: str) -> None:
        """Note a mistake of the user's, so that it reaches the driver as such."""
        self._error = message

    def read(self, start: int) -> list[Progress]:
        """Return the entries from number ``start`` on."""
        return self._entries[start:]

    def error(self) -> str | None:
        """Return the noted mistake."""
        return self._error


def train(name: str, config: Config, paths: Paths, log: Path | None) -> dict[str, Any]:
    """Train one of the runs of params.yaml; Ray must be running.

    Args:
        name: key of ``train.runs``.
        config: all settings.
        paths: inputs and the folder of the model.
        log: CSV file for the losses, for DVC plots.

    Returns:
        Metrics of the last report.

    Raises:
        MissingInputError: data or teacher are not there.
        TrainingError: settings and data do not fit, or training diverged.
    """
    run = config.train.runs[name]
    _check(name, config, paths)
    for stale in ("config.json", "model.safetensors"):
        (paths.out / stale).unlink(missing_ok=True)
    board = ray.remote(num_cpus=0)(Board).remote()
    workers = config.train.num_workers
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    storage = tempfile.mkdtemp(prefix="glip-train-")
    settings = {"name": name, "config": config, "paths": paths, "board": board, "threads": cores}
    trainer = TorchTrainer(
        _work,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus >= workers,
            resources_per_worker={"GPU": 1} if gpus >= workers else {"CPU": cores},
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=WORKER_RESTARTS),
        ),
    )
    entries = _watch(trainer, board, name, run.steps)
    shutil.rmtree(storage, ignore_errors=True)
    if log is not None:
        _write_log(log, entries)
    discard_checkpoints(paths.checkpoints)
    last = entries[-1]
    return {
        "steps": last.step,
        "losses": {key: round(value, 4) for key, value in last.losses.items()},
        "images_per_s": round(sum(entry.images_per_s for entry in entries) / len(entries), 1),
        "data_wait_share": round(sum(entry.data_wait_share for entry in entries) / len(entries), 3),
        "skipped_steps": last.skipped_steps,
    }


def _check(name: str, config: Config, paths: Paths) -> None:
    """Find what is missing before any process starts."""
    run = config.train.runs[name]
    if not paths.human.is_dir():
        raise MissingInputError(f"{paths.human}: no such folder; run: dvc repro prepare")
    if run.mixture.get("pseudo", 0) > 0 and paths.pseudo_labels is None:
        raise TrainingError(f"train.runs.{name}.mixture gives pseudo-labels weight; pass --pseudo-labels FOLDER")
    if run.init == "teacher" and (paths.teacher is None or not (paths.teacher / "model.safetensors").is_file()):
        raise MissingInputError(f"train.runs.{name}.init is teacher, but {paths.teacher} holds no model")


def _watch(trainer: TorchTrainer, board: Any, name: str, steps: int) -> list[Progress]:
    """Run the trainer and show its progress until it ends."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    entries: list[Progress] = []
    with progress(steps, f"train {name}", "steps") as bar:
        while True:
            thread.join(POLL_SECONDS)
            for entry in ray.get(board.read.remote(len(entries))):
                entries.append(entry)
                bar.update(entry.step - bar.n)
                losses = " ".join(f"{key.removeprefix('loss_')} {value:.3f}" for key, value in entry.losses.items())
                bar.set_postfix_str(f"{losses} · {entry.images_per_s:.0f} images/s")
            if not thread.is_alive() and not ray.get(board.read.remote(len(entries))):
                break
    message = ray.get(board.error.remote())
    if message:
        raise TrainingError(message)
    if failure:
        raise failure[0]
    return entries


def _work(settings: Mapping[str, Any]) -> None:
    """Train in one worker process."""
    quiet_libraries()
    try:
        _train_worker(**settings)
    except PipelineError as error:
        ray.get(settings["board"].fail.remote(str(error)))


def _train_worker(name: str, config: Config, paths: Paths, board: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    context = ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size())
    run = config.train.runs[name]
    model, tokenizer = starting_model(config, paths.teacher if run.init == "teacher" else None)
    if torch.cuda.is_available():
        model.to(ray.train.torch.get_device())
    sources = make_sources(paths.human, paths.pseudo_labels, run.mixture, config.train.samples, tokenizer)
    trainer = Trainer(
        model, tokenizer, sources, config.train, run, config.seed, checkpoints=paths.checkpoints, worker=worker
    )
    trainer.run(lambda entry: ray.get(board.pin.remote(entry)) if worker.rank == 0 else None)
    if worker.rank == 0:
        save_whole(model, tokenizer, paths.out)


def starting_model(config: Config, teacher: Path | None) -> tuple[GLIP, Any]:
    """Return the model to start from, and its tokenizer: the teacher's, or a fresh one with pretrained parts."""
    if teacher is not None:
        return GLIP.from_pretrained(teacher), load_tokenizer(teacher)
    torch.manual_seed(config.seed)  # the same start in every worker
    model = GLIP(config.model.glip_config())
    initialise_pretrained(model, config.model.backbone_weights, config.model.text_weights)
    source = config.model.text_weights
    return model, load_tokenizer(config.model.glip_config().text.name if source in (None, "hub") else str(source))


def save_whole(model: GLIP, tokenizer: Any, out: Path) -> None:
    """Write the model into its folder file by file, weights last, so that weights mean a finished training."""
    aside = out / f".saving-{os.getpid()}"
    model.save_pretrained(aside, tokenizer)
    files = sorted(aside.iterdir(), key=lambda path: path.suffix == ".safetensors")
    for path in files:
        os.replace(path, out / path.name)
    aside.rmdir()


def _write_log(path: Path, entries: list[Progress]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {**dataclasses.asdict(entry), **{key: round(value, 5) for key, value in entry.losses.items()}}
        for entry in entries
    ]
    names = ["step", *entries[0].losses, "learning_rate", "images_per_s", "data_wait_share"]
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, path)
