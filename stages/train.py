"""Train one of the models that params.yaml describes under train.runs: teacher, student or control.

Interrupted, it goes on from its last checkpoint when it is run again. pipeline/training/recipes has settings of the
published models and tunings; --dry-run says what a training comes to, with data or without.

glip train pretrain --params pipeline/training/recipes/glip_t_c.yaml --dry-run --images-per-s 1.62

With --dev and train.evaluate_every (or evaluate_epochs) the model is judged while it trains: scores join the log,
sample pictures lie in OUT/samples, the model that scored best in OUT/best. train.trackers follow along.

Run: glip train round_1 --human data/records/human --pseudo-labels data/pseudo_labels/round_1 \
    --teacher models/teacher --out models/round_1 --metrics metrics/train/round_1.json --log plots/train/round_1.csv
"""

from __future__ import annotations

import argparse

from pipeline.cli import run_if_program
from stages import train_only


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    train_only.add_arguments(parser)
    parser.add_argument("--dev", help="records, a folder or URL, of the split that judges the model now and then")


def run(args: argparse.Namespace) -> str | None:
    """Train to the end, judged by the dev set if there is one."""
    if args.dev is None or args.dry_run:
        return train_only.run(args)
    from pipeline.evaluation.dev_set import DevSet
    from pipeline.settings import load_all
    from pipeline.store.image_roots import allowed_roots
    from pipeline.store.storage import to_place

    settings = load_all(args.params)
    dev_set = DevSet(
        to_place(args.dev).resolve(),
        settings.evaluate,
        settings.train.evaluate_rows,
        settings.train.sample_pictures,
        allowed_roots(settings.image_roots),
    )
    dev_set.benchmarks()  # fails early where there are none
    return train_only.run(args, dev_set)


run_if_program(__name__)
