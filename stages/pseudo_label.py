"""Let the teacher ground the noun phrases of web captions; write self-describing Parquet shards.

Interrupted, it keeps its finished shards; run again, it makes only what is missing.

Run: python -m stages.pseudo_label --records data/records/web --phrases data/phrases --teacher models/teacher \
    --out data/pseudo_labels --metrics metrics/pseudo_label.json
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.config import load_config
from pipeline.pseudo_labels.job import Inputs, pseudo_label
from pipeline.ray_session import ray_session
from pipeline.store.atomic import write_json
from pipeline.store.storage import to_place

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of web pairs: a folder or a URL such as s3://…")
    parser.add_argument("--phrases", required=True, help="shards of their phrases")
    parser.add_argument("--teacher", required=True, help="folder of a GLIP model, or module:function of your own")
    parser.add_argument("--out", required=True, help="place for shards of pseudo-labels")
    parser.add_argument("--metrics", type=Path, help="JSON file for counts")


def run(args: argparse.Namespace) -> None:
    """Label every shard that is not finished."""
    config = load_config(args.params)
    inputs = Inputs(
        records=to_place(args.records),
        phrases=to_place(args.phrases),
        teacher=args.teacher,
        out=to_place(args.out),
    )
    with ray_session():
        metrics = pseudo_label(inputs, config.pseudo_label, config.prepare.max_image_pixels)
    if args.metrics:
        write_json(args.metrics, metrics)
    logger.info(
        "pseudo_label: %d shards, %d of %d rows labelled, %d phrases, %d boxes, %s images/s → %s",
        metrics["shards"],
        metrics["rows_labelled"],
        metrics["rows"],
        metrics["phrases"],
        metrics["boxes"],
        metrics["images_per_s"] or "no",
        args.out,
    )


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
