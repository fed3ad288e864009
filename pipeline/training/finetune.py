"""Settings for tuning a model on data of one's own, worked out from the model and from how much there is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from glip_model.config import GLIPConfig
from pipeline.training.settings import RunConfig, TrainConfig, TrainingSettings

RUN = "finetune"
"""Key of ``train.runs`` for it."""
BATCH_SIZE = 8
EPOCHS = 24
MIN_STEPS, MAX_STEPS = 200, 5000
SCALES = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the size that the model is tested at; 480 to 800 where that is 800, as published."""
WEIGHT_DECAY = 0.05
RATES = {"full": 1e-4, "linear": 1e-4, "prompt": 0.05}
"""Learning rate by way of tuning; the text encoder learns at a tenth. As published for ODinW, like the decay."""


@dataclass(frozen=True)
class Choices:
    """What people may decide for themselves; None leaves it to the data."""

    tuning: Literal["full", "linear", "prompt"] = "full"
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = BATCH_SIZE
    workers: int = 1


def steps_for(rows: int, batch_size: int) -> int:
    """Return how many steps suit so many pictures: some passes over them, neither too few nor endless."""
    return min(max(EPOCHS * rows // batch_size, MIN_STEPS), MAX_STEPS)


def finetune_config(base: TrainingSettings, model: GLIPConfig, choices: Choices) -> TrainingSettings:
    """Return settings that tune a model.

    Args:
        base: where all other settings come from.
        model: of the model to start from.
        choices: of the user; where the steps are left open, the run is one of ``EPOCHS`` until ``with_length``.
    """
    return replace(base, train=_train(base.train, model, choices))


def with_length(config: TrainingSettings, rows: int) -> TrainingSettings:
    """Settle the number of steps when it is known how many pictures there are to learn from."""
    run, optim = config.train.runs[RUN], config.train.optim
    steps = run.steps or steps_for(rows, optim.batch_size)
    run = replace(run, steps=steps, epochs=0.0)
    optim = replace(optim, warmup_steps=min(100, steps // 10))
    return replace(config, train=replace(config.train, runs={RUN: run}, optim=optim, log_every=max(1, steps // 40)))


def _train(base: TrainConfig, model: GLIPConfig, choices: Choices) -> TrainConfig:
    rate = choices.learning_rate or RATES[choices.tuning]
    optim = replace(
        base.optim,
        batch_size=choices.batch_size,
        learning_rate=rate,
        backbone_learning_rate=rate,
        text_learning_rate=rate / 10,
        weight_decay=WEIGHT_DECAY,
        schedule="cosine",
        ema_decay=0.0,
    )
    samples = replace(
        base.samples,
        short_sides=tuple(round(model.test_short_side * scale / 8) * 8 for scale in SCALES),
        long_side=model.test_long_side,
        max_prompt_tokens=model.text.max_tokens,
        detection_prompts="all",
    )
    run = RunConfig(
        init="teacher",
        steps=choices.steps or 0,
        epochs=0.0 if choices.steps else EPOCHS,
        mixture={"detection": 1.0},
        tuning=choices.tuning,
        frozen_stages=max(1, model.backbone.frozen_stages),
    )
    return replace(
        base,
        optim=optim,
        samples=samples,
        runs={RUN: run},
        num_workers=choices.workers,
        checkpoint_every=100,
        evaluate_every=0,  # what is held out judges the tuned model: it must not choose among its stages
        evaluate_epochs=0.0,
    )
