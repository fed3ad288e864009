"""Measure pseudo-labels against human boxes at every score threshold, to choose `pseudo_label.min_score` from.

The curves give precision and recall for base and novel phrases, and how often the teacher finds what is not there.

Run: python -m stages.calibrate --records data/records/dev/grounding --teacher models/teacher \
    --out plots/calibration.csv --metrics metrics/calibration.json
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
from pathlib import Path

import torch

from pipeline.cli import progress, run_stage
from pipeline.config import PseudoLabelConfig, load_config
from pipeline.errors import MissingInputError
from pipeline.pseudo_labels.calibration import collect_samples, curves, summarise, write_curves
from pipeline.pseudo_labels.decoding import PictureDecoder
from pipeline.pseudo_labels.labeller import PseudoLabeller
from pipeline.pseudo_labels.teachers import open_teacher
from pipeline.store.atomic import write_json
from pipeline.store.records import GroundingRecord
from pipeline.store.shards import list_shards, read_shard
from pipeline.store.storage import to_place

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of human grounding data: a folder or a URL")
    parser.add_argument("--teacher", required=True, help="see pseudo_label")
    parser.add_argument("--out", type=Path, required=True, help="CSV file for the curves")
    parser.add_argument("--metrics", type=Path, help="JSON file for the figures at the threshold in use")
    parser.add_argument("--limit", type=int, default=2000, help="rows to look at (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Label human data and compare."""
    config = load_config(args.params)
    shards = (read_shard(path, GroundingRecord) for path in list_shards(to_place(args.records)))
    records = list(itertools.islice(itertools.chain.from_iterable(shards), args.limit))
    with PictureDecoder(
        config.prepare.max_image_pixels, config.pseudo_label.decode_timeout_s, os.cpu_count() or 1
    ) as decoder:

        def make_labeller(settings: PseudoLabelConfig) -> PseudoLabeller:
            teacher = open_teacher(args.teacher, "cuda" if torch.cuda.is_available() else "cpu")
            return PseudoLabeller(teacher, settings, decoder.decode)

        with progress(len(records), "calibrate", "rows") as bar:
            positive, negative = collect_samples(records, make_labeller, config.pseudo_label, bar.update)
    if not positive:
        raise MissingInputError(f"{args.records}: no phrase has a true box to compare with")
    rows = curves(positive, negative)
    write_curves(rows, args.out)
    summary = summarise(rows, config.pseudo_label.min_score) | {"rows": len(records), "phrases": len(positive)}
    if args.metrics:
        write_json(args.metrics, summary)
    used = summary["at_min_score"]
    logger.info(
        "calibrate: at min_score %.2f precision %s, recall %s, false alarms %s; best F1 at %.2f → %s",
        config.pseudo_label.min_score,
        *(_percent(used[name]) for name in ("precision_all", "recall_all", "false_alarms")),
        summary["best_f1_at"]["all"],
        args.out,
    )


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
