"""Training under Ray Train: the same loop in one or several worker processes, watched from the driver."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm.contrib.logging import logging_redirect_tqdm

from glip_model.checkpoint import WEIGHTS_FILE
from glip_model.glip import GLIP
from glip_model.precision import allow_tf32
from pipeline.cli import progress, quiet_libraries
from pipeline.errors import MissingInputError, PipelineError, TrainingError
from pipeline.ray_session import cores_per_worker
from pipeline.settings import to_yaml
from pipeline.store.storage import Place, exists, is_folder, remove_folder
from pipeline.training.batches import Worker, share_of_batch
from pipeline.training.checkpoints import Checkpoints, discard_checkpoints, has_checkpoints
from pipeline.training.counting import count_rows, with_steps
from pipeline.training.distillation import Distillation
from pipeline.training.divergence import DIVERGED_FILE
from pipeline.training.dry_run import flat_settings
from pipeline.training.judge import Judge, Validate
from pipeline.training.loop import Trainer
from pipeline.training.memory import free_memory, recompute_where_needed
from pipeline.training.model_folder import (
    AVERAGE_FOLDER,
    SCRATCH_FOLDER,
    remove_unfinished,
    save_model,
    starting_model,
)
from pipeline.training.progress import Board, Progress, run_metrics, write_log
from pipeline.training.prompts import OtherNames
from pipeline.training.rows import make_sources
from pipeline.training.seen import seen
from pipeline.training.settings import RunConfig, TrainingSettings
from pipeline.training.trackers import Trackers
from pipeline.training.tuning import freeze_for

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
WORKER_RESTARTS = 2
"""Number of times that Ray restarts failed workers, which resume from the last checkpoint."""


@dataclass(frozen=True)
class Paths:
    """What a training reads and writes; absolute, and the same on every node: folders that all see, or URLs."""

    human: Place
    pseudo_labels: Place | None
    teacher: Place | None
    out: Place
    checkpoints_elsewhere: Place | None = None
    allowed: tuple[str, ...] = ()
    """Folders and URLs besides the records' folders that pictures may lie below, see ``allowed_roots``."""
    calibration: Place | None = None
    """CSV file of ``calibrate``, where pseudo-labels are weighed by it."""
    replay: Place | None = None
    """Shards of other data that a tuned model is not to forget."""
    other_names: tuple[str, ...] = ()
    """Names of other data, see ``RunConfig.other_names``."""

    @property
    def checkpoints(self) -> Place:
        """Place of the checkpoints that an interrupted run resumes from."""
        return self.checkpoints_elsewhere or self.out / "checkpoints"


class _BoardElsewhere:
    """A board in an actor, which workers on any node reach."""

    def __init__(self) -> None:
        # On the driver's node, for others may come and go.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()

    def pin(self, entry: Progress | str) -> None:
        """See ``Board``, likewise the others."""
        ray.get(self._actor.pin.remote(entry))

    def fail(self, message: str) -> None:
        ray.get(self._actor.fail.remote(message))

    def read(self, start: int) -> list[Progress | str]:
        entries: list[Progress | str] = ray.get(self._actor.read.remote(start))
        return entries

    def error(self) -> str | None:
        message: str | None = ray.get(self._actor.error.remote())
        return message


class _BoardHandler(logging.Handler):
    """Sends log lines of a worker to the driver, because Ray is configured to suppress workers' output."""

    def __init__(self, board: _BoardElsewhere) -> None:
        super().__init__(logging.INFO)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line."""
        self._board.pin(self.format(record))


def train(
    name: str, config: TrainingSettings, paths: Paths, log: Place | None, validate: Validate | None = None
) -> dict[str, Any]:
    """Train one of the runs of params.yaml; Ray must be running where there are workers.

    Args:
        name: key of ``train.runs``.
        config: its settings.
        paths: inputs and the folder of the model.
        log: CSV file for the losses, for DVC plots.
        validate: judges the model by a dev set, where the settings ask for that.

    Returns:
        Metrics of the last report; ``seconds`` of an interrupted training count from its resumption.

    Raises:
        MissingInputError: data or teacher are not there.
        ConfigError: a tracker is not installed.
        TrainingError: settings and data do not fit, or training diverged.
    """
    _check(name, config, paths, validate)
    config, run = _with_steps(name, config, paths)
    scaling, threads = _scaling(config.train.num_workers)
    is_resumed = has_checkpoints(paths.checkpoints)
    remove_unfinished(paths.out, is_resumed)
    trackers = Trackers(config.train.trackers, paths.out, name, dict(flat_settings(config)), is_resumed)
    board = _BoardElsewhere() if config.train.num_workers else Board()
    quiet_libraries()  # Ray Train logs how it trains
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "name": name,
            "config": config,
            "paths": paths,
            "board": board,
            "threads": threads,
            "validate": validate,
        },
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            **_notes_of_ray(paths.out / SCRATCH_FOLDER),
            failure_config=ray.train.FailureConfig(max_failures=WORKER_RESTARTS),
        ),
    )
    start = time.monotonic()
    try:
        entries = _watch(trainer, board, name, run.steps, trackers)
    finally:
        trackers.close()
        remove_folder(paths.out / SCRATCH_FOLDER)
    if log is not None:
        write_log(log, entries)
    discard_checkpoints(paths.checkpoints)
    metrics = run_metrics(entries, time.monotonic() - start)
    if unreadable := metrics["unreadable_pictures"]:
        logger.warning("train %s: %d pictures could not be read; other rows took their place", name, unreadable)
    return metrics


def _with_steps(name: str, config: TrainingSettings, paths: Paths) -> tuple[TrainingSettings, RunConfig]:
    """Put the number of steps into a run that is given in epochs, and between its evaluations."""
    run = config.train.runs[name]
    if not run.steps:
        sizes = count_rows(paths.human, paths.pseudo_labels, run.mixture, paths.replay)
        epochs, run = run.epochs, with_steps(run, sizes, config.train.optim.batch_size)
        settings: dict[str, Any] = {"runs": {name: run}}
        if config.train.evaluate_epochs:
            every = max(1, round(run.steps * config.train.evaluate_epochs / epochs))
            settings |= {"evaluate_every": every, "evaluate_epochs": 0.0}
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))
    return config, run


def _check(name: str, config: TrainingSettings, paths: Paths, validate: Validate | None) -> None:
    """Find what is missing, or does not fit, before any process starts."""
    run = config.train.runs[name]
    share_of_batch(config.train.optim, max(1, config.train.num_workers))
    is_judged = bool(config.train.evaluate_every or config.train.evaluate_epochs)
    if is_judged and validate is None:
        raise TrainingError("train.evaluate_every or evaluate_epochs asks for evaluations; pass --dev FOLDER")
    if validate is not None and not is_judged:
        raise TrainingError("--dev names a dev set; set train.evaluate_every or train.evaluate_epochs")
    if not is_folder(paths.human):
        raise MissingInputError(f"{paths.human}: no such folder; run: dvc repro prepare")
    if run.learns_from_labels and paths.pseudo_labels is None:
        raise TrainingError(f"train.runs.{name}.mixture gives pseudo-labels weight; pass --pseudo-labels FOLDER")
    if run.mixture.get("replay", 0) > 0 and paths.replay is None:
        raise TrainingError(f"train.runs.{name}.mixture gives replay weight; pass --replay FOLDER")
    if run.other_names and not paths.other_names:
        raise TrainingError(f"train.runs.{name}.other_names is {run.other_names}; pass --other-names FILE")
    if run.tuning == "lora" and config.train.distribution == "fsdp":
        raise TrainingError(f"train.runs.{name}.tuning is lora; set train.distribution to ddp")
    if run.init == "teacher" and (paths.teacher is None or not exists(paths.teacher / WEIGHTS_FILE)):
        raise MissingInputError(f"train.runs.{name}.init is teacher, but {paths.teacher} holds no model")


def _scaling(workers: int) -> tuple[ray.train.ScalingConfig, int]:
    """Return what Ray shall give every worker, and its number of threads; without workers, this process keeps its own.

    Raises:
        TrainingError: Ray has too few cores; it would silently wait for more.
    """
    if not workers:
        return ray.train.ScalingConfig(num_workers=0), torch.get_num_threads()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if sum(int(node.get("GPU", 0)) for node in nodes) >= workers:
        resources = {"GPU": 1.0}
        threads = max(1, min(int(node.get("CPU", 1) / node["GPU"]) for node in nodes if node.get("GPU")))
        return ray.train.ScalingConfig(num_workers=workers, use_gpu=True, resources_per_worker=resources), threads
    share = cores_per_worker(workers)
    if not share:
        cores = sum(int(node.get("CPU", 0)) for node in nodes)
        raise TrainingError(f"train.num_workers is {workers}, but Ray has {cores} CPU cores; set it to that at most")
    resources = {"CPU": float(share)}
    return ray.train.ScalingConfig(num_workers=workers, resources_per_worker=resources), share


def _notes_of_ray(folder: Place) -> dict[str, Any]:
    """Return the settings that say where Ray Train keeps its files."""
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    # Not Arrow's own for S3, which leaves an empty object in the place of every folder.
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


def _watch(
    trainer: TorchTrainer, board: Board | _BoardElsewhere, name: str, steps: int, trackers: Trackers
) -> list[Progress]:
    """Run the trainer, show its progress and pass it on to trackers until it ends."""
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    # By step, because workers that Ray starts again report steps a second time.
    entries: dict[int, Progress] = {}
    seen = 0
    with progress(steps, f"train {name}", "steps") as bar, logging_redirect_tqdm():
        while True:
            thread.join(POLL_SECONDS)
            is_over = not thread.is_alive()
            pinned = board.read(seen)
            seen += len(pinned)
            for entry in pinned:
                if isinstance(entry, str):
                    logger.warning("train %s: %s", name, entry)
                else:
                    entries[entry.step] = entry
                    _show(bar, entry)
                    trackers.log(entry)
            if is_over:
                break
    message = board.error()
    if message:
        raise TrainingError(message)
    if failure:
        raise failure[0]
    return [entries[step] for step in sorted(entries)]


def _show(bar: Any, entry: Progress) -> None:
    losses = " ".join(f"{key.removeprefix('loss_')} {value:.3f}" for key, value in entry.losses.items())
    parts = [
        losses,
        *(f"{name} {value:.1f}" for name, value in entry.scores.items()),
        f"{entry.images_per_s:.0f} images/s",
        f"wait {100 * entry.data_wait_share:.0f} %",
        f"{entry.memory_gb:.1f} GB",
        f"rate {entry.learning_rate:.2g}",
        f"{datetime.timedelta(seconds=round(entry.seconds_left))} left",
    ]
    bar.set_postfix_str(" · ".join(parts), refresh=False)
    bar.update(entry.step - bar.n)


def _work(settings: Mapping[str, Any]) -> None:
    """Train in one worker process."""
    quiet_libraries()
    board = settings["board"]
    if board.error():
        return  # Ray started the workers again, but what failed would fail again.
    try:
        _train_worker(**settings)
    except PipelineError as error:
        board.fail(str(error))
        if ray.train.get_context().get_world_size() > 1:
            raise  # ends the other workers, which would wait for this one


def _train_worker(
    name: str,
    config: TrainingSettings,
    paths: Paths,
    board: Board | _BoardElsewhere,
    threads: int,
    validate: Validate | None,
) -> None:
    torch.set_num_threads(threads)
    context = ray.train.get_context()
    worker = Worker(rank=context.get_world_rank(), world_size=context.get_world_size())
    report = _reporter(board) if worker.rank == 0 else None  # first of all: from here on log lines reach the driver
    run = config.train.runs[name]
    model, tokenizer = starting_model(config, paths.teacher if run.init == "teacher" else None)
    distillation = Distillation(model, run.distillation) if run.distillation else None
    if worker.rank == 0:  # which writes the model
        shown = seen(paths.human, paths.pseudo_labels, run.mixture, paths.replay)
        model.trained_on = shown if model.trained_on is None else model.trained_on.joined(shown)
    freeze_for(run, model)
    if torch.cuda.is_available():
        _move_to_gpu(model, distillation)
    recompute_where_needed(model, config.train, worker.world_size, free_memory(context.get_local_world_size()))
    sources = make_sources(
        paths.human,
        paths.pseudo_labels,
        run.mixture,
        config.train.samples,
        tokenizer,
        paths.allowed,
        paths.calibration,
        replay=paths.replay,
        others=OtherNames(paths.other_names, run.other_names, are_unknown=run.distillation > 0),
    )
    checkpoints = Checkpoints(paths.checkpoints, to_yaml(config), config.train.keep_last)
    judge = None if validate is None else Judge(validate, tokenizer, paths.out, worker)
    trainer = Trainer(
        model,
        tokenizer,
        sources,
        config.train,
        run,
        config.seed,
        checkpoints=checkpoints,
        worker=worker,
        judge=judge,
        diverged=paths.out / DIVERGED_FILE,
        distillation=distillation,
    )
    trainer.run(report)
    _save(trainer, tokenizer, worker, paths.out)
    if config.train.optim.saved_weights == "raw" and trainer.load_average():
        _save(trainer, tokenizer, worker, paths.out / AVERAGE_FOLDER)


def _reporter(board: Board | _BoardElsewhere) -> Callable[[Progress], None]:
    """Return what takes the progress of the first worker, whose log lines go the same way to the driver."""
    if isinstance(board, _BoardElsewhere):
        notes = logging.getLogger("pipeline")
        notes.setLevel(logging.INFO)
        notes.handlers = [_BoardHandler(board)]
    return board.pin


def _move_to_gpu(model: GLIP, distillation: Distillation | None) -> None:
    """Move what this worker computes with to the GPU that Ray gave it."""
    device = ray.train.torch.get_device()
    torch.cuda.set_device(device)  # where objects pass through when workers exchange them
    model.to(device)
    if distillation is not None:
        distillation.to(device)
    allow_tf32()


def _save(trainer: Trainer, tokenizer: Any, worker: Worker, out: Place) -> None:
    model = trainer.whole_model()  # on every worker: what is spread over them comes together
    if worker.rank == 0 and model is not None:
        save_model(model, tokenizer, out)
