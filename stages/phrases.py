"""Find the noun phrases of web captions with spaCy.

Run: python -m stages.phrases --records data/records/web --out data/phrases --metrics metrics/phrases.json
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from pipeline.cli import run_stage, write_json
from pipeline.config import load_config
from pipeline.phrases.job import extract_phrases
from pipeline.ray_session import ray_session

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--records", type=Path, required=True, help="shards of web pairs")
    parser.add_argument("--out", type=Path, required=True, help="folder for shards of phrases")
    parser.add_argument("--metrics", type=Path, help="JSON file for counts")


def run(args: argparse.Namespace) -> None:
    """Parse every caption."""
    config = load_config(args.params)
    start = time.monotonic()
    with ray_session():
        metrics = extract_phrases(config.phrases, args.records, args.out)
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
