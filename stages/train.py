"""Train one of the models that params.yaml describes under train.runs: teacher, student or control.

Interrupted, it goes on from its last checkpoint when it is run again.

Run: python -m stages.train student --human data/records/human --pseudo-labels data/pseudo_labels \
    --teacher models/teacher --out models/student --metrics metrics/train_student.json --log plots/train_student.csv
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.cli import run_stage, write_json
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.ray_session import ray_session
from pipeline.training.job import Paths, train

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("name", help="key of train.runs in params.yaml")
    parser.add_argument("--human", type=Path, required=True, help="folder with detection/ and grounding/ records")
    parser.add_argument("--pseudo-labels", type=Path, help="folder of pseudo-label shards")
    parser.add_argument("--teacher", type=Path, help="model to start from where train.runs.NAME.init is teacher")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--metrics", type=Path, help="JSON file for the last losses and the speed")
    parser.add_argument("--log", type=Path, help="CSV file for the losses over time")


def run(args: argparse.Namespace) -> None:
    """Train to the end."""
    config = load_config(args.params)
    if args.name not in config.train.runs:
        raise ConfigError(f"{args.params}: train.runs has no {args.name!r}; runs: {', '.join(config.train.runs)}")
    args.out.mkdir(parents=True, exist_ok=True)
    paths = Paths(
        human=args.human.resolve(),
        pseudo_labels=args.pseudo_labels.resolve() if args.pseudo_labels else None,
        teacher=args.teacher.resolve() if args.teacher else None,
        out=args.out.resolve(),
    )
    with ray_session():
        metrics = train(args.name, config, paths, args.log)
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


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
