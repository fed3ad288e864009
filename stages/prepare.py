"""Turn raw data sets into records: human data, web pairs, dev and test.

Run: glip prepare --out data/records --metrics metrics/prepare.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cli import add_params, run_if_program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--out", type=Path, required=True, help="folder for human/, web/, dev/ and test/")
    parser.add_argument("--metrics", type=Path, help="JSON file for counts and reject reasons")
    add_params(parser)


def run(args: argparse.Namespace) -> str:
    """Prepare all sources that params.yaml names."""
    from pipeline.prepare.job import prepare
    from pipeline.ray_session import ray_session
    from pipeline.settings import load_all
    from pipeline.store.atomic import write_json
    from pipeline.store.resume import alone_in

    settings = load_all(args.params)
    with alone_in(args.out), ray_session():
        metrics = prepare(settings.prepare, settings.seed, args.out)
    if args.metrics:
        write_json(args.metrics, metrics)
    rows = sum(folder["rows"] for folder in metrics.values())
    held_out = sum(folder["rejects"].get("held_out", 0) for folder in metrics.values())
    rejects = sum(sum(folder["rejects"].values()) for folder in metrics.values()) - held_out
    boxes = sum(folder["boxes"] for folder in metrics.values())
    dropped = sum(sum(folder["dropped_boxes"].values()) for folder in metrics.values())
    figures = f"{rows} rows, {rejects} rejected, {boxes} boxes, {dropped} dropped"
    if held_out:
        figures += f", {held_out} held out because models are judged by their pictures"
    return f"prepare: {figures} → {args.out}"


run_if_program(__name__)
