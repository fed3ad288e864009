"""The evaluate stage against the bare model: reading, decoding, writing and scoring should cost next to nothing.

Run: make bench, or: python tests/benchmarks/evaluate_speed.py --json out.json

    evaluate  detection over pictures of the embedded run, from shards to numbers, by one worker
    bare      the same model in one process over pictures that are decoded already

Twice: the model on one core of two, so that reading, decoding and Ray itself have the other, as they have beside a GPU;
and on both, where the model's threads wait for one another whenever one of them gives way to something else.

The small model of the embedded run makes it hard: it looks at a picture in milliseconds, a published one in a second.
Every figure is taken in a process of its own; the best of several counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from label_speed import CORES, MAX_PIXELS, in_rounds, local_ray, rows_of, seconds_of, steady_speed, write_inputs

from glip_model.predictor import GLIPPredictor
from pipeline.evaluation.benchmark import predictions_of
from pipeline.evaluation.job import predict_benchmarks
from pipeline.evaluation.predictions import read_predictions
from pipeline.evaluation.scoring import score
from pipeline.evaluation.settings import EvaluateConfig
from pipeline.settings import load_all
from pipeline.store.images import load_image
from pipeline.store.records import DetectionRecord
from pipeline.store.shards import list_shards, read_categories

ROWS, SHARDS = 128, 14
PICTURES = ROWS * SHARDS


def settings(folder: Path) -> EvaluateConfig:
    """Return the settings of the embedded run, for one worker and the dev split."""
    config = load_all(folder / "params.yaml").evaluate
    return dataclasses.replace(config, splits=("dev",), num_actors=1)


def run_stage(folder: Path, cores: int) -> float:
    """Return pictures per second of the stage: of its steady part, with the scoring."""
    with local_ray(cores), tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        found = predict_benchmarks(settings(folder), folder / "teacher", folder / "records", out)
        benchmark = next(each for each in found if each.task == "detection")
        speed = steady_speed(out / "dev" / "detection", ROWS)
        start = time.perf_counter()
        score(benchmark, read_predictions(predictions_of(benchmark, out), benchmark.rows))
        return 1 / (1 / speed + (time.perf_counter() - start) / PICTURES)


def run_bare(folder: Path, cores: int) -> float:
    """Return pictures per second of the model alone."""
    config, place = settings(folder), folder / "records" / "dev" / "detection"
    torch.set_num_threads(cores)
    predictor = GLIPPredictor.from_pretrained(folder / "teacher", "cpu")
    names = [category.name for category in read_categories(list_shards(place)[0])]
    images = [load_image(record.image, MAX_PIXELS, []) for record in rows_of(place, DetectionRecord)]

    def look(chosen: list[Any]) -> None:
        for start in range(0, len(chosen), config.batch_size):
            predictor.detect(chosen[start : start + config.batch_size], names, config.max_prompt_categories)

    look(images[: 4 * config.batch_size])
    return len(images) / seconds_of(lambda: look(images))


TASKS = {
    f"{name}-{cores}": partial(run, cores=cores)
    for cores in (1, CORES)
    for name, run in (("bare", run_bare), ("evaluate", run_stage))
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", choices=sorted(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(TASKS[args.only](args.folder))
        return
    with tempfile.TemporaryDirectory(prefix="evaluate-speed-") as scratch:
        folder = Path(scratch)
        write_inputs(folder, ROWS, web=8, dev=PICTURES)
        for task in ("grounding", "referring"):
            shutil.rmtree(folder / "records" / "dev" / task)
        rounds = in_rounds(__file__, folder, TASKS, args.repeats)
    speeds = {task: max(figures[task] for figures in rounds) for task in TASKS}
    for cores in (1, CORES):
        bare, stage = speeds[f"bare-{cores}"], speeds[f"evaluate-{cores}"]
        print(f"{cores} of {CORES} cores: evaluate {stage:6.1f} pictures/s, {stage / bare:.3f} × of bare, {bare:.1f}")
    if args.json:
        args.json.write_text(json.dumps(speeds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
