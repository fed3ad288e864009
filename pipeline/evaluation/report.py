"""The report: teacher, student and control in one table, one page and one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from torchvision.ops import nms

from glip_model.boxes import pairwise_iou
from pipeline.config import ReportConfig
from pipeline.data.drawing import draw_phrases
from pipeline.data.records import Category, DetectionRecord, Phrase, ScoredBox
from pipeline.evaluation.benchmark import Benchmark, list_benchmarks, predictions_of
from pipeline.evaluation.bootstrap import compare, draw_pictures, interval, resampled_ap
from pipeline.evaluation.coco import CocoResult, evaluate_detection
from pipeline.evaluation.predictions import Predictions, read_predictions

MODELS = ("teacher", "student", "control")
PARTS = ("base", "novel")
SHOWN_SCORE = 0.3
"""Boxes below it are not drawn in the gallery."""
GAP = 12
"""Pixels between pictures that stand side by side."""
TEMPLATE = Path(__file__).with_name("report.html.j2")
MEASURES = (("detection", "AP"), ("detection", "AP50"), ("grounding", "R@1"), ("referring", "P@1"))
CURVE_COLOURS = {"teacher": "#0072b2", "student": "#d55e00", "control": "#7a7a7a"}


@dataclass(frozen=True)
class Comparison:
    """A detection benchmark with the predictions of all models."""

    benchmark: Benchmark
    records: list[DetectionRecord]
    categories: list[Category]
    predictions: dict[str, Predictions]
    results: dict[str, CocoResult]


def load_comparison(records: Path, predictions: Path) -> Comparison:
    """Read the detection task of a split and what every model predicted for it.

    Args:
        records: folder of the split.
        predictions: folder that holds MODEL/SPLIT/detection.parquet.
    """
    found, _ = list_benchmarks(records.parent, [records.name])
    benchmark = next(each for each in found if each.task == "detection")
    rows, categories = benchmark.read(), benchmark.categories()
    answers = {
        model: read_predictions(predictions_of(benchmark, predictions / model), benchmark.rows) for model in MODELS
    }
    results = {model: evaluate_detection(rows, categories, answers[model]) for model in MODELS}
    return Comparison(benchmark, rows, categories, answers, results)


def summarise(comparison: Comparison, metrics: Mapping[str, Any], config: ReportConfig, seed: int) -> dict[str, Any]:
    """Return every model's numbers, and the student's gains with 95 % intervals over the pictures.

    Args:
        comparison: detection on the test split.
        metrics: model → task → part → measure, of the same split.
        config: number of resamplings.
        seed: of the resampling.
    """
    source = comparison.benchmark.source
    draws = draw_pictures(len(comparison.records), config.bootstrap_samples, seed)
    summary: dict[str, Any] = {"models": {}, "gains": {}}
    for part in PARTS:
        values = {model: resampled_ap(comparison.results[model], draws, part) for model in MODELS}
        for model in MODELS:
            row = {name: metrics[model][task][source][part][name] for task, name in MEASURES if task in metrics[model]}
            row["AP_interval"] = interval(values[model]).to_dict()
            summary["models"].setdefault(model, {})[part] = row
        summary["gains"][part] = {
            f"student_over_{other}": compare(values["student"], values[other]).to_dict()
            for other in ("teacher", "control")
        }
    return summary


def category_gains(comparison: Comparison) -> list[dict[str, Any]]:
    """Return AP in percent of every category under teacher, student and control, largest gain first."""
    values = {model: 100 * comparison.results[model].per_category() for model in MODELS}
    rows = [
        {
            "category": category.name,
            "split": category.split,
            **{model: round(float(values[model][k]), 1) for model in MODELS},
            "gain": round(float(values["student"][k] - values["teacher"][k]), 1),
        }
        for k, category in enumerate(comparison.results["teacher"].categories)
        if values["teacher"][k] >= 0
    ]
    return sorted(rows, key=lambda row: (-float(row["gain"]), str(row["category"])))


def choose_gallery(comparison: Comparison, count: int) -> list[int]:
    """Return the pictures where the student gains most on novel objects over the teacher, and where it loses most.

    An object counts as found when a box that the gallery would draw overlaps it by half; base objects break ties.
    """
    gains = np.zeros(len(comparison.records))
    for model, sign in (("student", 1), ("teacher", -1)):
        gains += sign * _found_objects(comparison, comparison.predictions[model])
    order = np.argsort(-gains, kind="stable")
    losses = count // 4
    best, worst = order[: count - losses], order[max(0, len(order) - losses) :]
    return list(dict.fromkeys(int(i) for i in [*best, *worst]))  # a small set may have a picture in both


def draw_detections(comparison: Comparison, number: int, model: str | None) -> Image.Image:
    """Draw one picture with a model's best boxes, or with the truth when ``model`` is None."""
    record = comparison.records[number]
    names = {category.id: category.name for category in comparison.categories}
    if model is None:
        boxes = [(item.category_id, ScoredBox(xyxy=item.xyxy)) for item in record.objects]
    else:
        found = comparison.predictions[model]
        mine = _shown_boxes(found, found.by_number(), number)
        boxes = [
            (int(found.labels[i]), ScoredBox(xyxy=tuple(found.boxes_xyxy[i].tolist()), score=float(found.scores[i])))
            for i in mine
        ]
    order = {name: i for i, name in enumerate(dict.fromkeys(names[label] for label, _ in boxes))}
    phrases = [
        Phrase(text=name, char_spans=(), boxes=tuple(box for label, box in boxes if names[label] == name))
        for name in order
    ]
    return draw_phrases(comparison.benchmark.picture(number), phrases)


def side_by_side(comparison: Comparison, numbers: Sequence[int]) -> Image.Image:
    """Return one picture: a row a test picture (at least one), teacher left, student right, of one width."""
    rows = [[draw_detections(comparison, number, model) for model in ("teacher", "student")] for number in numbers]
    width = rows[0][0].width
    rows = [[_resize_to_width(picture, width) for picture in row] for row in rows]
    page = Image.new("RGB", (2 * width + GAP, sum(row[0].height + GAP for row in rows) - GAP), "white")
    top = 0
    for row in rows:
        for j, picture in enumerate(row):
            page.paste(picture, (j * (width + GAP), top))
        top += row[0].height + GAP
    return page


def render_page(
    comparison: Comparison, summary: Mapping[str, Any], provenance: Mapping[str, str], config: ReportConfig
) -> str:
    """Return the report as one HTML page that loads nothing from anywhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    gallery = [
        [_data_uri(draw_detections(comparison, number, model)) for model in (None, "teacher", "student")]
        for number in choose_gallery(comparison, config.gallery_rows)
    ]
    gains = category_gains(comparison)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        summary=summary,
        measures=[name for _, name in MEASURES],
        models=MODELS,
        parts=PARTS,
        curves={part: _curves(comparison, part) for part in PARTS},
        colours=CURVE_COLOURS,
        gains=gains,
        gallery=gallery,
        provenance=provenance,
        num_pictures=len(comparison.records),
    )


def _shown_boxes(found: Predictions, rows: Mapping[int, np.ndarray], number: int) -> np.ndarray:
    """Return, best first, a picture's boxes that no better one of any category overlaps by half: legible pictures."""
    mine = rows.get(number, np.zeros(0, np.int64))
    mine = mine[found.scores[mine] >= SHOWN_SCORE]
    kept = nms(torch.from_numpy(found.boxes_xyxy[mine]), torch.from_numpy(found.scores[mine]), 0.5)
    return np.asarray(mine[kept.numpy()])


def _found_objects(comparison: Comparison, found: Predictions) -> np.ndarray:
    """Return (pictures,) how many objects the shown boxes find, base ones at a tenth."""
    weights = {category.id: 1.0 if category.split == "novel" else 0.1 for category in comparison.categories}
    rows = found.by_number()
    counts = np.zeros(len(comparison.records))
    for number, record in enumerate(comparison.records):
        mine = _shown_boxes(found, rows, number)
        if not len(mine) or not record.objects:
            continue
        truth = torch.tensor([item.xyxy for item in record.objects])
        labels = np.array([item.category_id for item in record.objects])
        overlap = pairwise_iou(torch.from_numpy(found.boxes_xyxy[mine]), truth).numpy()
        is_found = ((overlap >= 0.5) & (found.labels[mine][:, None] == labels)).any(axis=0)
        counts[number] = sum(weights[int(label)] for label in labels[is_found])
    return counts


def _curves(comparison: Comparison, part: str) -> dict[str, str]:
    """Return per model the points of its precision-recall curve at IoU 0.5 in a 100 × 100 box, y downwards."""
    return {
        model: " ".join(f"{i},{100 - 100 * p:.1f}" for i, p in enumerate(comparison.results[model].curve(part)))
        for model in MODELS
    }


def _resize_to_width(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, max(1, round(picture.height * width / picture.width))))


def _data_uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
