"""The report: numbers as computed, names as text, nothing from the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ReportConfig
from pipeline.data.records import Category, DetectedObject, DetectionRecord
from pipeline.data.shards import categories_to_metadata, shard_name, write_shard
from pipeline.errors import BenchmarkError, PipelineError
from pipeline.evaluation.coco import evaluate_detection
from pipeline.evaluation.predictions import Predictions, write_predictions
from pipeline.evaluation.report import (
    Comparison,
    category_gains,
    choose_gallery,
    draw_detections,
    load_comparison,
    render_page,
    side_by_side,
    summarise,
)

HOSTILE = "<script>alert('yak')</script>&\"\n\u202e"
DOG, YAK, OWL = (
    Category(id=5, name="dog"),
    Category(id=9, name=HOSTILE, split="novel"),
    Category(id=12, name="owl", split="novel"),
)
LEFT, RIGHT, AWAY = (5.0, 5.0, 25.0, 25.0), (60.0, 5.0, 90.0, 35.0), (40.0, 60.0, 60.0, 80.0)
CONFIG = ReportConfig(gallery_rows=3, bootstrap_samples=20)


@pytest.fixture
def comparison(
    make_detection: Callable[..., DetectionRecord], make_predictions: Callable[..., Predictions]
) -> Comparison:
    """Four pictures of a dog and a yak: the student finds yaks in all but the last, where only the teacher does."""
    dog, yak = DetectedObject(category_id=5, xyxy=LEFT), DetectedObject(category_id=9, xyxy=RIGHT)
    records = [make_detection(i, dog, yak, height=100 if i else 60) for i in range(4)]
    dogs = [(i, 5, LEFT, 0.9) for i in range(4)]
    found = {
        "teacher": make_predictions([*dogs, (3, 9, RIGHT, 0.8)]),
        "student": make_predictions([*dogs, *((i, 9, RIGHT, 0.8 - i / 10) for i in range(3)), (3, 9, AWAY, 0.4)]),
        "control": make_predictions([]),
    }
    categories = [DOG, YAK, OWL]
    results = {model: evaluate_detection(records, categories, each) for model, each in found.items()}
    return Comparison(records, categories, found, results)


def metrics_of(comparison: Comparison) -> dict[str, Any]:
    return {
        model: {
            "detection": {
                part: {"AP": result.average_precision(part), "AP50": result.average_precision(part, 0.5)}
                for part in ("base", "novel")
            }
        }
        for model, result in comparison.results.items()
    }


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page(comparison: Comparison) -> str:
    summary = summarise(comparison, metrics_of(comparison), CONFIG, seed=0)
    return render_page(comparison, summary, {"code": "<b>deadbeef</b>"}, CONFIG)


def test_summary_holds_every_models_numbers_and_the_students_gains(comparison: Comparison) -> None:
    summary = summarise(comparison, metrics_of(comparison), CONFIG, seed=0)
    novel = {model: summary["models"][model]["novel"]["AP"] for model in ("teacher", "student", "control")}
    # One of four yaks found and no false alarm; three of four found before one.
    assert novel == {
        "teacher": pytest.approx(100 * 26 / 101),
        "student": pytest.approx(100 * 76 / 101),
        "control": 0,
    }
    assert summary["models"]["student"]["base"]["AP50"] == pytest.approx(100)
    for other in ("teacher", "control"):
        gain = summary["gains"]["novel"][f"student_over_{other}"]
        assert gain["value"] == pytest.approx(novel["student"] - novel[other], abs=0.01)
        assert gain["low"] <= gain["value"] <= gain["high"]
    assert summary["gains"]["base"]["student_over_teacher"] == {"value": 0, "low": 0, "high": 0}
    interval = summary["models"]["student"]["novel"]["AP_interval"]
    assert interval["low"] < novel["student"] < interval["high"]
    assert summary == summarise(comparison, metrics_of(comparison), CONFIG, seed=0)


def test_categories_are_sorted_by_gain_and_unseen_ones_left_out(comparison: Comparison) -> None:
    rows = category_gains(comparison)
    assert [(row["category"], row["split"]) for row in rows] == [(HOSTILE, "novel"), ("dog", "base")]
    assert rows[0]["gain"] == pytest.approx(100 * 50 / 101, abs=0.11)
    assert rows[0]["control"] == 0


def test_the_gallery_opens_with_wins_and_ends_with_a_loss(comparison: Comparison) -> None:
    assert choose_gallery(comparison, 4) == [0, 1, 2, 3]
    assert choose_gallery(comparison, 1) == [0]
    found = comparison.predictions
    swapped = {**found, "teacher": found["student"], "student": found["teacher"]}
    assert choose_gallery(replace(comparison, predictions=swapped), 4)[0] == 3


def test_boxes_too_weak_to_be_drawn_win_nothing(comparison: Comparison, make_predictions: Any) -> None:
    student = make_predictions([(0, 9, RIGHT, 0.2), (2, 9, RIGHT, 0.4)])
    found = {**comparison.predictions, "student": student, "teacher": make_predictions([])}
    assert choose_gallery(replace(comparison, predictions=found), 2) == [2, 0]


def test_a_win_on_a_novel_object_outweighs_one_on_a_base_object(comparison: Comparison, make_predictions: Any) -> None:
    student = make_predictions([(0, 5, LEFT, 0.9), (3, 9, RIGHT, 0.4)])
    found = {**comparison.predictions, "student": student, "teacher": make_predictions([])}
    assert choose_gallery(replace(comparison, predictions=found), 2) == [3, 0]


@pytest.mark.parametrize("count", [5, 8, 40])
def test_a_gallery_larger_than_the_benchmark_shows_each_picture_once(comparison: Comparison, count: int) -> None:
    assert sorted(choose_gallery(comparison, count)) == [0, 1, 2, 3]


def test_boxes_are_drawn_where_they_are(comparison: Comparison) -> None:
    plain = np.asarray(draw_detections(comparison, 1, "control")).astype(int)
    drawn = np.asarray(draw_detections(comparison, 1, "student")).astype(int)
    assert plain.std(axis=(0, 1)).max() == 0  # nothing found, nothing drawn
    changed = np.abs(drawn - plain).max(2) > 0
    scale = drawn.shape[1] / comparison.records[1].width
    assert changed[round(5 * scale), round(15 * scale)]  # upper edge of the dog
    assert changed[round(20 * scale), round(90 * scale)]  # right edge of the yak
    assert not changed[round(70 * scale) :].any()


def test_boxes_with_corners_the_wrong_way_round_are_drawn_too(comparison: Comparison, make_predictions: Any) -> None:
    found = {**comparison.predictions, "teacher": make_predictions([(0, 5, (20.0, 20.0, 19.5, 19.5), 0.9)])}
    draw_detections(replace(comparison, predictions=found), 0, "teacher")


def test_pictures_of_different_shapes_keep_theirs_side_by_side(comparison: Comparison) -> None:
    flat, square = (side_by_side(comparison, [number]).height for number in (0, 1))
    width = draw_detections(comparison, 0, "teacher").width
    assert (flat, square) == (round(0.6 * width), width)
    both = side_by_side(comparison, [0, 1])
    assert both.width == 2 * width + 12
    assert both.height == flat + square + 12


def test_the_page_shows_names_as_text(page: str) -> None:
    seen = Page(page)
    assert "script" not in seen.tags
    assert "b" not in seen.tags
    text = "".join(seen.text)
    assert HOSTILE in text
    assert "<b>deadbeef</b>" in text
    assert not [name for name, _ in seen.attributes if name.startswith("on")]


def test_the_page_loads_nothing(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "@import" not in page
    seen = Page(page)
    assert not {"link", "iframe", "object", "embed"} & set(seen.tags)
    addresses = [value or "" for name, value in seen.attributes if name in ("src", "href", "srcset", "data")]
    assert len(addresses) == 3 * CONFIG.gallery_rows
    for address in addresses:
        kind, _, data = address.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).width >= 100


def test_the_page_has_all_tables_curves_and_no_gaps(page: str) -> None:
    seen = Page(page)
    assert seen.tags.count("svg") == 2
    assert seen.tags.count("polyline") == 6
    assert ("name", "viewport") in seen.attributes
    assert "prefers-color-scheme: dark" in page
    assert "nan" not in "".join(seen.text).lower().split()
    points = [value for name, value in seen.attributes if name == "points"]
    for line in points:
        xy = np.array([pair.split(",") for pair in (line or "").split()], float)
        assert xy.shape == (101, 2)
        assert xy.min() >= 0
        assert xy.max() <= 100
    # Measures of tasks that were not run are dashes, not zeros.
    assert "".join(seen.text).count("–") >= 6


def test_models_without_any_detection_make_a_page(make_detection: Any, make_predictions: Any) -> None:
    records = [make_detection(0, DetectedObject(category_id=5, xyxy=LEFT))]
    empty = {model: make_predictions([]) for model in ("teacher", "student", "control")}
    results = {model: evaluate_detection(records, [DOG], each) for model, each in empty.items()}
    comparison = Comparison(records, [DOG], empty, results)
    summary = summarise(comparison, metrics_of(comparison), CONFIG, seed=0)
    assert "+0.0 AP" in render_page(comparison, summary, {}, CONFIG)


def write_benchmark(folder: Path, records: list[DetectionRecord]) -> None:
    metadata = categories_to_metadata([DOG, YAK, OWL])
    write_shard(folder / "test/detection" / shard_name(0), records, DetectionRecord, metadata)


def test_a_model_without_predictions_is_named(tmp_path: Path, comparison: Comparison) -> None:
    write_benchmark(tmp_path, comparison.records)
    for model in ("teacher", "student"):
        write_predictions(tmp_path / model / "test/detection.parquet", [])
    with pytest.raises(PipelineError, match=r"control.test.detection\.parquet"):
        load_comparison(tmp_path / "test", tmp_path)


def test_a_benchmark_without_pictures_is_refused(tmp_path: Path) -> None:
    write_benchmark(tmp_path, [])
    with pytest.raises(BenchmarkError, match="no rows"):
        load_comparison(tmp_path / "test", tmp_path)
