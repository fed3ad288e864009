"""Train one of the models that params.yaml describes under train.runs: teacher, student or control.

Interrupted, it goes on from its last checkpoint when it is run again. pipeline/training/recipes has settings of the
published models and tunings; --dry-run says what a training comes to, with data or without.

python -m stages.train pretrain --params pipeline/training/recipes/glip_t_c.yaml --dry-run --images-per-s 1.62

With --dev and train.evaluate_every (or evaluate_epochs) the model is judged while it trains: scores join the log,
sample pictures lie in OUT/samples, the model that scored best in OUT/best. train.trackers follow along.

Run: python -m stages.train student --human data/records/human --pseudo-labels data/pseudo_labels \
    --teacher models/teacher --out models/student --metrics metrics/train_student.json --log plots/train_student.csv
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.cli import run_stage
from pipeline.config import Config, extended_files, load_config
from pipeline.errors import ConfigError
from pipeline.ray_session import ray_session
from pipeline.store.atomic import write_json
from pipeline.store.storage import to_place
from pipeline.training.dry_run import Outlook, differences, work_out
from pipeline.training.job import Paths, train
from pipeline.training.judge import Validate

logger = logging.getLogger(__name__)

SHOWN_CHARS = 100
"""Of the value of a setting."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("name", help="key of train.runs in params.yaml")
    parser.add_argument("--human", type=Path, help="folder with detection/ and grounding/ records")
    parser.add_argument("--pseudo-labels", type=Path, help="folder of pseudo-label shards")
    parser.add_argument("--teacher", type=Path, help="model to start from where train.runs.NAME.init is teacher")
    parser.add_argument("--out", type=Path, help="folder for the model")
    parser.add_argument("--checkpoints", help="folder or URL for checkpoints of this training (OUT/checkpoints)")
    parser.add_argument("--dev", type=Path, help="records of the split that judges the model now and then")
    parser.add_argument("--metrics", type=Path, help="JSON file for the last losses and the speed")
    parser.add_argument("--log", type=Path, help="CSV file for the losses over time")
    parser.add_argument(
        "--dry-run", action="store_true", help="check settings, say what the training takes, train nothing"
    )
    parser.add_argument("--images-per-s", type=float, help="with --dry-run: speed of one worker, for the time it takes")


def run(args: argparse.Namespace) -> None:
    """Train to the end."""
    config = load_config(args.params)
    if args.name not in config.train.runs:
        raise ConfigError(f"{args.params}: train.runs has no {args.name!r}; runs: {', '.join(config.train.runs)}")
    if args.dry_run:
        found = work_out(args.name, config, args.human, args.pseudo_labels, args.teacher)
        print("\n".join([*_lines(found, args.images_per_s), *_changed(config, args.params)]))
        return
    if args.human is None or args.out is None:
        raise ConfigError("training needs --human and --out; only --dry-run does without")
    args.out.mkdir(parents=True, exist_ok=True)
    paths = Paths(
        human=args.human.resolve(),
        pseudo_labels=args.pseudo_labels.resolve() if args.pseudo_labels else None,
        teacher=args.teacher.resolve() if args.teacher else None,
        out=args.out.resolve(),
        checkpoints_elsewhere=to_place(args.checkpoints).absolute() if args.checkpoints else None,
    )
    validate = None if args.dev is None else _dev_set(args.dev.resolve(), config)
    with ray_session():
        metrics = train(args.name, config, paths, args.log, validate)
    if args.metrics:
        write_json(args.metrics, metrics)
    logger.info(
        "train %s: %d steps, loss %.3f, %.0f images/s → %s",
        args.name,
        metrics["steps"],
        metrics["losses"]["loss"],
        metrics["images_per_s"],
        args.out,
    )


def _dev_set(folder: Path, config: Config) -> Validate:
    """Return what judges the model during training; MissingInputError where there are no records."""
    # By name, not by an import: stages of dvc.yaml without --dev do not depend on evaluation, and must not be run anew
    # when it changes. One with --dev lists pipeline/evaluation, the records and train.evaluate_every.
    module: Any = importlib.import_module("pipeline.evaluation.dev_set")
    dev_set = module.DevSet(folder, config.evaluate, config.train.evaluate_rows, config.train.sample_pictures)
    dev_set.benchmarks()
    validate: Validate = dev_set
    return validate


def _lines(found: Outlook, images_per_s: float | None) -> Iterator[str]:
    """Say what a training comes to."""
    trained = sum(part.parameters for part in found.trained)
    yield f"model     {found.parameters:,} parameters, {trained:,} of them trained"
    yield f"          {'part':16} {'parameters':>13} {'learning rate':>14} {'weight decay':>13}"
    for part in found.trained:
        yield f"          {part.name:16} {part.parameters:>13,} {part.learning_rate:>14g} {part.weight_decay:>13g}"
    for source in found.sources:
        rows = "rows unknown without --human" if source.rows is None else f"{source.rows:,} rows"
        share = "" if source.share is None else f", {100 * source.share:.1f} % of the samples"
        passes = "" if source.passes is None else f", {source.passes:.2f} epochs"
        yield f"data      {source.name}: {rows}{share}{passes}"
    length = f"{found.epochs:g} epochs" if found.steps is None else f"{found.steps:,} steps, {found.images:,} pictures"
    limit = "at most " if found.may_stop else ""
    yield f"length    {limit}{length}; {found.batch_size} pictures a step on {found.workers} workers"
    for i, (step, rate, decay) in enumerate(found.schedule):
        yield f"{'' if i else 'schedule':9} step {step:>9,}: learning rate {rate:g}, weight decay {decay:g}"
    if found.may_stop:
        yield f"{'':9} evaluations that bring no gain lower the rate further, and may end training earlier"
    hours = found.hours(images_per_s) if images_per_s else None
    if hours is not None:
        yield f"time      {hours:,.1f} h, {hours / 24:,.1f} days, at {images_per_s:g} images/s a worker"


def _changed(config: Config, params: Path) -> Iterator[str]:
    """Say which settings differ from the file that all others extend."""
    base = extended_files(params)[-1]
    if base != params:
        yield f"settings  that differ from {os.path.relpath(base)}:"
        for name, (value, other) in differences(config, load_config(base)).items():
            yield f"          {name}: {_short(value)} instead of {_short(other)}"


def _short(value: Any) -> str:
    """Write a setting on one line."""
    text = json.dumps(value, ensure_ascii=False, default=dataclasses.asdict)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
