"""Train a model without a dev set: what dvc.yaml runs, so that no training depends on how models are judged.

See ``stages.train``, which is this and ``--dev``.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import TYPE_CHECKING

from pipeline.cli import add_params, run_if_program
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.training.judge import Validate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("name", help="key of train.runs in params.yaml")
    parser.add_argument("--human", help="folder or URL with detection/ and grounding/ records")
    parser.add_argument("--pseudo-labels", help="folder or URL of pseudo-label shards")
    parser.add_argument("--calibration", help="CSV file of calibrate, where train.samples.pseudo_weight is precision")
    parser.add_argument("--replay", help="folder or URL of shards not to be forgotten, where the mixture has replay")
    parser.add_argument("--other-names", help="file of names of other data, where train.runs.NAME.other_names is set")
    parser.add_argument("--teacher", help="model, a folder or URL, to start from where train.runs.NAME.init is teacher")
    parser.add_argument("--out", help="folder or URL for the model")
    parser.add_argument("--checkpoints", help="folder or URL for checkpoints of this training (OUT/checkpoints)")
    parser.add_argument("--metrics", help="JSON file for the last losses and the speed")
    parser.add_argument("--log", help="CSV file for the losses over time")
    parser.add_argument(
        "--dry-run", action="store_true", help="check settings, say what the training takes, train nothing"
    )
    parser.add_argument("--images-per-s", type=float, help="with --dry-run: speed of one worker, for the time it takes")
    add_params(parser)


def run(args: argparse.Namespace, validate: Validate | None = None) -> str | None:
    """Train to the end.

    Args:
        args: of the command line.
        validate: judges the model now and then.
    """
    from pipeline.ray_session import ray_session
    from pipeline.settings import load, load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.resume import alone_in
    from pipeline.store.storage import to_place
    from pipeline.store.vocabulary import read_names
    from pipeline.training.dry_run import describe_run
    from pipeline.training.job import Paths, train
    from pipeline.training.settings import TrainingSettings

    config = load(args.params, TrainingSettings)
    if args.name not in config.train.runs:
        raise ConfigError(f"{args.params}: train.runs has no {args.name!r}; runs: {', '.join(config.train.runs)}")
    human, pseudo_labels, teacher, out, checkpoints, replay = (
        None if text is None else to_place(text).resolve()
        for text in (args.human, args.pseudo_labels, args.teacher, args.out, args.checkpoints, args.replay)
    )
    if args.dry_run:
        print(describe_run(args.name, args.params, human, pseudo_labels, teacher, args.images_per_s, replay))
        return None
    if human is None or out is None:
        raise ConfigError("training needs --human and --out; only --dry-run does without")
    paths = Paths(
        human=human,
        pseudo_labels=pseudo_labels,
        teacher=teacher,
        out=out,
        checkpoints_elsewhere=checkpoints,
        allowed=allowed_roots(load_all(args.params).image_roots),
        calibration=to_place(args.calibration).resolve() if args.calibration else None,
        replay=replay,
        other_names=read_names(args.other_names).prompts if args.other_names else (),
    )
    with alone_in(out), ray_session() if config.train.num_workers else nullcontext():
        metrics = train(args.name, config, paths, to_place(args.log) if args.log else None, validate)
    if args.metrics:
        write_json(to_place(args.metrics), metrics)
    figures = f"{metrics['steps']} steps, loss {metrics['losses']['loss']:.3f}, {metrics['images_per_s']:.0f} images/s"
    return f"train {args.name}: {figures} → {args.out}"


run_if_program(__name__)
