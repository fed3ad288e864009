"""Find the noun phrases of web captions with spaCy, and count what all captions together speak of.

Interrupted, it keeps its finished shards; run again, it makes only what is missing.

Run: python -m stages.phrases --records data/records/web --out data/phrases --metrics metrics/phrases.json \
    --curve plots/phrase_frequency.csv
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from pipeline.cli import run_stage
from pipeline.config import load_config
from pipeline.phrases.job import extract_phrases
from pipeline.phrases.statistics import count_phrases, write_curve
from pipeline.ray_session import ray_session
from pipeline.store.atomic import write_json
from pipeline.store.storage import to_place

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", required=True, help="shards of web pairs: a folder or a URL such as s3://…")
    parser.add_argument("--out", required=True, help="place for shards of phrases")
    parser.add_argument("--metrics", type=Path, help="JSON file for counts")
    parser.add_argument("--curve", type=Path, help="CSV file for how often phrases are said, by rank")
    parser.add_argument("--names", type=Path, help="count how many of these names captions cover: LVIS or COCO JSON")


def run(args: argparse.Namespace) -> None:
    """Parse every caption."""
    config = load_config(args.params)
    start = time.monotonic()
    with ray_session():
        metrics = extract_phrases(config.phrases, to_place(args.records), to_place(args.out))
    stats = count_phrases(to_place(args.out), args.names)
    metrics |= {"unique_phrases": stats.unique, "phrases_said_once": stats.said_once}
    if args.names:
        metrics |= {"names": stats.names, "names_covered": stats.names_covered}
    if args.curve:
        write_curve(stats, args.curve)
    if args.metrics:
        write_json(args.metrics, metrics)
    logger.info(
        "phrases: %d captions, %d phrases, %d unique, %d rejected, %.0f s → %s",
        metrics["rows"],
        metrics["phrases"],
        metrics["unique_phrases"],
        sum(metrics["rejects"].values()),
        time.monotonic() - start,
        args.out,
    )


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
