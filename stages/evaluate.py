"""Evaluate a model on every benchmark that there are records of, each by its own protocol.

Detection is judged as on COCO, or as on LVIS where the vocabulary says how rare its categories are; captions as on
Flickr30k Entities; expressions as on RefCOCO; ODinW's sources get their mean. Predictions that are finished are kept.

Run: python -m stages.evaluate --model models/student --records data/records --out data/predictions/student \
    --metrics metrics/student.json --curves plots/precision_recall_student.csv
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cli import run_stage
from pipeline.config import load_config
from pipeline.evaluation.benchmark import Benchmark, predictions_of
from pipeline.evaluation.job import predict_benchmarks
from pipeline.evaluation.odinw import averages
from pipeline.evaluation.predictions import read_missing, read_predictions
from pipeline.evaluation.published import COLUMNS, PUBLISHED
from pipeline.evaluation.scoring import ALL, Score, leading, score
from pipeline.ray_session import ray_session
from pipeline.store.atomic import write_json
from pipeline.store.storage import Place, to_place

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this stage."""
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, one of the project's own")
    parser.add_argument("--records", required=True, help="folder or URL with dev/ and test/")
    parser.add_argument("--out", required=True, help="folder or URL for predictions")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file for the metrics")
    parser.add_argument("--table", type=Path, help="CSV file for all measures beside the published ones")
    parser.add_argument("--curves", type=Path, help="CSV file for precision over recall at IoU 0.5 on the last split")


def run(args: argparse.Namespace) -> None:
    """Predict, then score."""
    config = load_config(args.params).evaluate
    out = to_place(args.out)
    start = time.monotonic()
    with ray_session():
        found = predict_benchmarks(config, args.model, to_place(args.records), out)
    scores = [(benchmark, _score(benchmark, out)) for benchmark in found]
    metrics = _metrics(scores)
    write_json(args.metrics, metrics)
    if args.table:
        _write_rows(args.table, ["split", "task", "source", "part", "measure", "value", *COLUMNS], _table(metrics))
    last = [(benchmark, each) for benchmark, each in scores if benchmark.split == config.splits[-1]]
    if args.curves:
        _write_curves(args.curves, last)
    logger.info("evaluate %s: %s; %.0f s", args.model.name, _figures(last), time.monotonic() - start)


def _score(benchmark: Benchmark, out: Place) -> Score:
    places = predictions_of(benchmark, out)
    missing = read_missing(places)
    if missing:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(missing.values()).items()))
        logger.warning(
            "%s: %d rows count as empty, for their pictures cannot be read: %s", benchmark.name, len(missing), reasons
        )
    found = score(benchmark, read_predictions(places, benchmark.rows))
    if missing:
        found.metrics["missing"] = {"rows": len(missing)}
    return found


def _metrics(scores: Sequence[tuple[Benchmark, Score]]) -> dict[str, Any]:
    """Return split → task → source → part → measure; the means of ODinW stand among the sources of detection."""
    metrics: dict[str, Any] = {}
    for benchmark, each in scores:
        metrics.setdefault(benchmark.split, {}).setdefault(benchmark.task, {})[benchmark.source] = each.metrics
    for tasks in metrics.values():
        detection = tasks.get("detection", {})
        values = {source: parts[ALL]["AP"] for source, parts in detection.items() if "AP" in parts.get(ALL, {})}
        for name, mean in averages(values).items():
            detection[name] = {ALL: {"AP": round(mean.ap, 2), "data_sets": mean.data_sets}}
    return metrics


def _table(metrics: Mapping[str, Any]) -> list[list[Any]]:
    rows = []
    for split, tasks in metrics.items():
        for task, sources in tasks.items():
            for source, parts in sources.items():
                for part, measures in parts.items():
                    for name, value in measures.items():
                        published = PUBLISHED.get((source, part, name), {})
                        rows.append(
                            [split, task, source, part, name, value, *(published.get(column) for column in COLUMNS)]
                        )
    return rows


def _figures(scores: Sequence[tuple[Benchmark, Score]]) -> str:
    """Return the leading measure of every benchmark, part by part."""
    parts = (
        (benchmark.name, [f"{value:.1f} {part}" for part, value in leading(benchmark.task, each.metrics).items()])
        for benchmark, each in scores
    )
    return "; ".join(f"{name} {', '.join(values)}" for name, values in parts)


def _write_curves(path: Path, scores: Sequence[tuple[Benchmark, Score]]) -> None:
    """Write a column of precision for each part: ``dvc plots`` draws one line a column."""
    detection = [(benchmark, each) for benchmark, each in scores if benchmark.task == "detection"]
    columns = {
        part if len(detection) == 1 else f"{benchmark.source} {part}": curve
        for benchmark, each in detection
        for part, curve in each.curves.items()
    }
    recalls = np.linspace(0, 1, 101).round(2).tolist()
    points = np.stack(list(columns.values()), 1).round(4).tolist() if columns else [[] for _ in recalls]
    _write_rows(path, ["recall", *columns], ([recall, *row] for recall, row in zip(recalls, points, strict=True)))


def _write_rows(path: Path, header: Sequence[str], rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    run_stage(__doc__, add_arguments, run)
