"""Evaluate a model: category prompts (COCO AP), phrase grounding (R@k) and referring expressions (P@1).

Run: python -m stages.evaluate --model models/student --records data/records --out data/predictions/student \
    --metrics metrics/student.json --curves plots/precision_recall_student.csv
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cli import run_stage, write_json
from pipeline.config import load_config
from pipeline.evaluation.benchmark import score_split
from pipeline.evaluation.coco import CocoResult
from pipeline.evaluation.job import predict_splits
from pipeline.evaluation.predictions import read_predictions
from pipeline.ray_session import ray_session

logger = logging.getLogger(__name__)

CURVES = ("base", "novel")
"""Parts of the vocabulary that get a precision-recall curve."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--records", type=Path, required=True, help="folder with dev/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="folder for predictions")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file for the metrics")
    parser.add_argument("--curves", type=Path, help="CSV file for precision over recall at IoU 0.5 on the last split")


def run(args: argparse.Namespace) -> None:
    """Predict, then score."""
    config = load_config(args.params).evaluate
    start = time.monotonic()
    with ray_session():
        tasks = predict_splits(config, args.model, args.records, args.out)
    metrics: dict[str, Any] = {}
    detection = None
    for split, names in tasks.items():
        found = {name: read_predictions(args.out / split / f"{name}.parquet") for name in names}
        metrics[split], detection = score_split(args.records / split, found)
    write_json(args.metrics, metrics)
    if args.curves:
        _write_curves(args.curves, detection)
    last = config.splits[-1]
    logger.info(
        "evaluate %s on %s: %s; %.0f s", args.model.name, last, _figures(metrics[last]), time.monotonic() - start
    )


def _figures(metrics: Mapping[str, Any]) -> str:
    """Return the leading measure of every task, for base and novel."""
    leading = {"detection": "AP", "grounding": "R@1", "referring": "P@1"}
    return ", ".join(
        f"{name} {metrics[task]['base'][name]:.1f} base {metrics[task]['novel'][name]:.1f} novel"
        for task, name in leading.items()
        if task in metrics
    )


def _write_curves(path: Path, detection: CocoResult | None) -> None:
    """Write a column of precision for each part: ``dvc plots`` draws one line a column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["recall", *CURVES])
        if detection is not None:
            for i, row in enumerate(zip(*(detection.curve(part) for part in CURVES), strict=True)):
                writer.writerow([i / 100, *(round(float(precision), 4) for precision in row)])


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
