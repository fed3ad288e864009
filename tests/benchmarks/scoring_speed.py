"""Scoring of detections against the evaluators whose numbers it reproduces, from the same JSON files on.

Run: make bench, or: python tests/benchmarks/scoring_speed.py --json out.json

    coco        5,000 pictures with 300 detections each in 80 categories, against pycocotools
    lvis-fixed  500 pictures with 300 detections each in 1,203 categories, fixed AP, against lvis-api, which is not in
                the environment: pip install --target /tmp/lvis --no-deps lvis

Every figure is taken in a process of its own; ours is the best of several, the others run once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from pipeline.evaluation.coco import evaluate_coco
from pipeline.evaluation.lvis import FIXED_AP, evaluate_federated
from pipeline.evaluation.results_json import read_annotations, read_results

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"coco": (5_000, 80), "lvis-fixed": (500, 1_203)}
"""Pictures and categories."""
DETECTIONS = 300
"""Of a picture."""


def write_files(folder: Path, pictures: int, categories: int) -> None:
    """Write annotations and detections: a third around objects, a third of checked categories, a third of any."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, categories + 1)
    shares /= shares.sum()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with (folder / "predictions.json").open("w") as file:
        for number in range(pictures):
            labels = rng.choice(categories, int(rng.integers(1, 15)), p=shares)
            boxes = random_boxes(rng, len(labels))
            checked = np.concatenate([labels, rng.choice(categories, 8)])
            images.append(
                {
                    "id": number,
                    "neg_category_ids": np.setdiff1d(checked, labels).tolist(),
                    "not_exhaustive_category_ids": labels[:1].tolist() if number % 4 == 0 else [],
                }
            )
            for label, box in zip(labels.tolist(), boxes.tolist(), strict=True):
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box}
                annotations.append({**entry, "area": 0.7 * box[2] * box[3], "iscrowd": 0})
            write_detections(file, rng, number, labels, boxes, checked, categories)
        file.write("]")
    names = [{"id": k, "name": f"thing {k}", "frequency": "rcf"[k % 3]} for k in range(categories)]
    truth = {"images": images, "annotations": annotations, "categories": names}
    (folder / "annotations.json").write_text(json.dumps(truth), encoding="utf-8")


def write_detections(
    file: io.TextIOBase | Any,
    rng: np.random.Generator,
    number: int,
    labels: np.ndarray,
    boxes: np.ndarray,
    checked: np.ndarray,
    categories: int,
) -> None:
    """Append one picture's detections to a JSON list."""
    third = DETECTIONS // 3
    meant = rng.integers(len(labels), size=third)
    found = np.concatenate([boxes[meant] * rng.normal(1, 0.1, (third, 4)), random_boxes(rng, 2 * third)])
    guesses = [labels[meant], rng.choice(checked, third), rng.choice(categories, third)]
    scores = rng.random(3 * third) * np.repeat([1, 0.6, 0.5], third)
    rows = [
        {"image_id": number, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(
            np.concatenate(guesses).tolist(), np.round(found, 2).tolist(), np.round(scores, 4).tolist(), strict=True
        )
    ]
    file.write(("[" if number == 0 else ", ") + json.dumps(rows)[1:-1])


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return (count, 4) left, top, width and height in a picture of 640 × 480."""
    sides = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
    return np.round(np.concatenate([rng.random((count, 2)) * (400, 300), sides], 1), 2)


def coco_ours(folder: Path) -> dict[str, float | None]:
    """Score by this project."""
    truth = read_annotations(folder / "annotations.json")
    return evaluate_coco(truth.detection_set, read_results(folder / "predictions.json", truth)).metrics()


def coco_official(folder: Path) -> dict[str, float | None]:
    """Score by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "predictions.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@1", "AR@10", "AR@100", "ARs", "ARm", "ARl"]
    return dict(zip(names, evaluation.stats.tolist(), strict=True))


def lvis_ours(folder: Path) -> dict[str, float | None]:
    """Score by this project."""
    truth = read_annotations(folder / "annotations.json", federated=True)
    found = read_results(folder / "predictions.json", truth)
    return evaluate_federated(truth.detection_set, found, FIXED_AP).metrics()


def lvis_official(folder: Path) -> dict[str, float | None]:
    """Score by lvis-api, of as many detections as fixed AP counts; what it draws pictures with is not needed."""
    logging.disable(logging.CRITICAL)
    np.float = float  # type: ignore[attr-defined]  # NumPy 1.24 dropped it
    drawing = ("cv2", "matplotlib", "matplotlib.pyplot", "matplotlib.figure", "matplotlib.collections")
    drawing += ("matplotlib.backends", "matplotlib.backends.backend_agg", "matplotlib.lines", "matplotlib.patches")
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in drawing}):
        lvis = importlib.import_module("lvis")
    by_category: dict[int, list[dict[str, Any]]] = {}
    for row in json.loads((folder / "predictions.json").read_bytes()):
        by_category.setdefault(row["category_id"], []).append(row)
    best = [sorted(rows, key=lambda row: row["score"], reverse=True)[:10_000] for rows in by_category.values()]
    truth = lvis.LVIS(str(folder / "annotations.json"))
    results = lvis.LVISResults(truth, [row for rows in best for row in rows], max_dets=-1)
    evaluation = lvis.LVISEval(truth, results, "bbox")
    evaluation.params.max_dets = -1
    evaluation.run()
    return {name: float(value) for name, value in evaluation.results.items()}


TASKS: dict[str, Callable[[Path], dict[str, float | None]]] = {
    "coco": coco_ours,
    "pycocotools": coco_official,
    "lvis-fixed": lvis_ours,
    "lvis-api": lvis_official,
}


def in_own_process(task: str, folder: Path, lvis: Path | None, repeats: int = 1) -> dict[str, Any]:
    """Run a task in fresh processes; return the fastest one's figures."""
    results = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--only", task, "--folder", str(folder)]
        command += ["--lvis", str(lvis)] if lvis else []
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return min(results, key=lambda result: result["seconds"])


def measure(task: str, folder: Path) -> dict[str, Any]:
    """Run a task in this process."""
    start = time.perf_counter()
    metrics = TASKS[task](folder)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "metrics": metrics}


def benchmarks(folder: Path, repeats: int, lvis: Path | None) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a name, its figures, and what they are compared with."""
    for ours, theirs in (("coco", "pycocotools"), ("lvis-fixed", "lvis-api")):
        write_files(folder, *SIZES[ours])
        mine = in_own_process(ours, folder, None, repeats)
        if theirs == "lvis-api" and not (lvis and (lvis / "lvis").is_dir()):
            yield ours, mine, "nothing to compare with; see --help for how to install lvis-api"
            continue
        other = in_own_process(theirs, folder, lvis)
        differences = [abs(value - other["metrics"][name]) for name, value in mine["metrics"].items()]
        yield theirs, other, ""
        yield ours, mine, f"{other['seconds'] / mine['seconds']:.1f} × of it, numbers within {max(differences):.0e}"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--lvis", type=Path, default=Path("/tmp/lvis"), help="where lvis-api is (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        sys.path.append(str(args.lvis))
        print(json.dumps(measure(args.only, args.folder)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, figures, remark in benchmarks(Path(folder), args.repeats, args.lvis):
            print(f"{name:12s} {figures['seconds']:8.1f} s {figures['peak_mb']:6.0f} MB   {remark}", flush=True)
            results[name] = figures
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
