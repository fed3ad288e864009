"""Settings for tuning a model on custom data, derived from the model and from the number of images."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from glip_model.checkpoint import WEIGHTS_FILE
from glip_model.config import GLIPConfig
from pipeline.settings import to_yaml
from pipeline.store.atomic import write_json
from pipeline.store.folders import local_folder
from pipeline.store.provenance import describe_model, fingerprint
from pipeline.store.shards import list_shards, rows_sha256
from pipeline.store.storage import Place, exists, read_text, remove
from pipeline.training.job import Paths, train
from pipeline.training.judge import Validate
from pipeline.training.settings import AugmentConfig, RunConfig, TrainConfig, TrainingSettings

RUN = "finetune"
"""Key of the run in ``train.runs``."""
BATCH_SIZE = 8
EPOCHS = 24
MIN_STEPS, MAX_STEPS = 200, 5000
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Training sizes as shares of the test size; 480 to 800 where that is 800, as published."""
WEIGHT_DECAY = 0.05
RATES = {"full": 1e-4, "linear": 1e-4, "prompt": 0.05, "lora": 1e-3}
"""Learning rate by way of tuning; the text encoder learns at a tenth. As published for ODinW, like the decay, but for
low-rank changes, which learn at ten times the rate of the weights themselves as is usual."""
EVALUATIONS = 20
"""Number of evaluations of a training that may stop early."""
PATIENCE, STOP = 2, 4
"""See ``OptimConfig.plateau_patience`` and ``plateau_stop``; as published for ODinW."""
OTHER_NAMES = 20
"""Names of other data in a prompt, where the starting model says what is to be kept of them."""
DONE_FILE = "trained.json"
"""File in the folder of a finished model: a fingerprint of its inputs, and its metrics."""
AUGMENT = AugmentConfig(colour=0.3, crop=0.5, shrink=1.5, mosaic=0.0)
"""What ``--augment`` switches on."""


@dataclass(frozen=True)
class Choices:
    """Settings of ``glip finetune``; None means that a value is derived from the data."""

    tuning: Literal["full", "linear", "prompt", "lora"] = "full"
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = BATCH_SIZE
    workers: int = 1
    replay_share: float = 0.0
    """Share of the samples that come from other data."""
    other_names: int = 0
    distillation: float = 0.0
    """See ``RunConfig``."""
    is_augmented: bool = False
    """Use ``AUGMENT``; otherwise the settings' own augmentation."""
    stops_early: bool = True


def steps_for(rows: int, batch_size: int) -> int:
    """Return how many steps suit so many pictures: some passes over them, neither too few nor endless."""
    return min(max(EPOCHS * rows // batch_size, MIN_STEPS), MAX_STEPS)


def finetune_config(base: TrainingSettings, model: GLIPConfig, choices: Choices) -> TrainingSettings:
    """Return settings that tune a model.

    Args:
        base: source of all other settings.
        model: of the model to start from.
        choices: of the user; without steps the run has ``EPOCHS`` until ``with_length`` sets them.
    """
    return replace(base, train=_train(base.train, model, choices))


def with_length(config: TrainingSettings, rows: int) -> TrainingSettings:
    """Set the number of steps, once the number of training images is known."""
    run, optim = config.train.runs[RUN], config.train.optim
    steps = run.steps or steps_for(rows, optim.batch_size)
    run = replace(run, steps=steps, epochs=0.0)
    optim = replace(optim, warmup_steps=min(100, steps // 10))
    settings: dict[str, Any] = {"runs": {RUN: run}, "optim": optim, "log_every": max(1, steps // 40)}
    if config.train.evaluate_every:
        settings["evaluate_every"] = max(1, steps // EVALUATIONS)
    return replace(config, train=replace(config.train, **settings))


def train_once(config: TrainingSettings, paths: Paths, log: Place, validate: Validate | None = None) -> dict[str, Any]:
    """Train as ``job.train`` does, unless the same training is already finished; the best checkpoint becomes the model.

    Args:
        config: settings of the run, with its number of steps.
        paths: inputs and the folder of the model.
        log: CSV file for the losses.
        validate: evaluates the model during training, where the settings ask for that.

    Returns:
        Metrics of the training.
    """
    assert paths.teacher is not None
    with local_folder(paths.teacher) as folder:
        start = describe_model(folder)["sha256"]
    kinds = [paths.human / "detection", *([paths.replay] if paths.replay else [])]
    rows = [rows_sha256(path) for folder in kinds for path in list_shards(folder)]
    made_of = fingerprint({"settings": to_yaml(config), "start": start, "rows": rows, "others": paths.other_names})
    done = json.loads(read_text(paths.out / DONE_FILE) or "{}")
    if done.get("made_of") == made_of and exists(paths.out / WEIGHTS_FILE):
        return dict(done["metrics"])
    remove(paths.out / DONE_FILE)
    metrics = train(RUN, config, paths, log, validate)
    write_json(paths.out / DONE_FILE, {"made_of": made_of, "metrics": metrics})
    return metrics


def _train(base: TrainConfig, model: GLIPConfig, choices: Choices) -> TrainConfig:
    rate = choices.learning_rate or RATES[choices.tuning]
    optim = replace(
        base.optim,
        batch_size=choices.batch_size,
        learning_rate=rate,
        backbone_learning_rate=rate,
        text_learning_rate=rate / 10,
        weight_decay=WEIGHT_DECAY,
        schedule="plateau" if choices.stops_early else "cosine",
        plateau_patience=PATIENCE,
        plateau_stop=STOP,
        ema_decay=0.0,
    )
    samples = replace(
        base.samples,
        short_sides=tuple(round(model.test_short_side * scale / 8) * 8 for scale in SCALES),
        long_side=model.test_long_side,
        max_prompt_tokens=model.text.max_tokens,
        detection_prompts="all",
        augment=AUGMENT if choices.is_augmented else base.samples.augment,
    )
    run = RunConfig(
        init="teacher",
        steps=choices.steps or 0,
        epochs=0.0 if choices.steps else EPOCHS,
        mixture={"detection": 1.0 - choices.replay_share, "replay": choices.replay_share},
        tuning=choices.tuning,
        other_names=choices.other_names,
        distillation=choices.distillation,
        frozen_stages=max(1, model.backbone.frozen_stages),
    )
    return replace(
        base,
        optim=optim,
        samples=samples,
        runs={RUN: run},
        num_workers=choices.workers,
        checkpoint_every=100,
        evaluate_every=1 if choices.stops_early else 0,  # settled with the steps
        evaluate_epochs=0.0,
    )
