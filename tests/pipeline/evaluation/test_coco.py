"""COCO average precision: hand-made cases with known results, and pycocotools itself as the oracle."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.errors import BenchmarkError
from pipeline.evaluation.coco import CocoResult, evaluate_coco
from pipeline.evaluation.detection_set import truth_and_found
from pipeline.evaluation.predictions import Predictions
from pipeline.store.records import Category, DetectedObject, DetectionRecord

DOG, CAT, OWL = (
    Category(id=5, name="dog"),
    Category(id=9, name="cat"),
    Category(id=12, name="owl", split="novel"),
)
SQUARE = (10.0, 10.0, 30.0, 30.0)


def evaluate_detection(records: Sequence[Any], categories: Sequence[Category], found: Predictions) -> CocoResult:
    return evaluate_coco(*truth_and_found(records, categories, found))


def thing(category: Category, box: Any = SQUARE, crowd: bool = False) -> DetectedObject:
    return DetectedObject(category_id=category.id, xyxy=box, is_crowd=crowd)


def official(
    records: Sequence[DetectionRecord], categories: Sequence[Category], found: Predictions, ids: list[int]
) -> list[float]:
    """The twelve numbers as pycocotools summarises them when told to count some categories only."""
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        for item in record.objects:
            x1, y1, x2, y2 = item.xyxy
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1000,
                    "category_id": item.category_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(item.is_crowd),
                }
            )
    results = []
    for number, label, box, score in zip(found.numbers, found.labels, found.boxes_xyxy, found.scores, strict=True):
        x1, y1, x2, y2 = map(float, box)
        bbox = [x1, y1, x2 - x1, y2 - y1]
        entry = {"image_id": int(number) + 1000, "category_id": int(label), "bbox": bbox, "score": float(score)}
        results.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number + 1000} for number in range(len(records))],
            "annotations": annotations,
            "categories": [{"id": category.id} for category in categories],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.catIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_pycocotools_for_all_base_and_novel(
    seed: int, random_benchmark: Callable[..., Any]
) -> None:
    records, categories, found = random_benchmark(seed)
    result = evaluate_detection(records, categories, found)
    for split in (None, "base", "novel"):
        ids = [category.id for category in categories if split in (None, category.split)]
        expected = official(records, categories, found, ids)
        assert 0 < expected[0] < 1
        assert [-1 if value is None else value for value in result.metrics(split).values()] == expected


def test_perfect_boxes_score_1(make_detection: Any, make_predictions: Any) -> None:
    result = evaluate_detection([make_detection(0, thing(DOG))], [DOG], make_predictions([(0, DOG.id, SQUARE, 0.3)]))
    assert result.metrics()["AP"] == pytest.approx(1)
    assert result.metrics("base")["AP75"] == pytest.approx(1)


def test_the_area_of_the_mask_says_how_large_a_thing_is_where_there_is_one(
    make_detection: Any, make_predictions: Any
) -> None:
    wide = (0.0, 0.0, 50.0, 50.0)
    for area, size in ((None, "APm"), (1000.0, "APs"), (9300.0, "APl")):
        thin = DetectedObject(category_id=DOG.id, xyxy=wide, area=area)
        result = evaluate_detection([make_detection(0, thin)], [DOG], make_predictions([(0, DOG.id, wide, 0.9)]))
        sizes = {name: result.metrics()[name] for name in ("APs", "APm", "APl")}
        assert sizes == {name: pytest.approx(1) if name == size else None for name in sizes}


def test_a_box_of_iou_072_counts_at_five_of_ten_thresholds(make_detection: Any, make_predictions: Any) -> None:
    lower = (10.0, 10.0, 30.0, 10.0 + 0.72 * 20)
    result = evaluate_detection([make_detection(0, thing(DOG))], [DOG], make_predictions([(0, DOG.id, lower, 0.9)]))
    assert result.metrics()["AP"] == pytest.approx(0.5)
    at = {iou: result.curves.average_precision(iou) for iou in (0.5, 0.7, 0.75)}
    assert at == {0.5: pytest.approx(1), 0.7: pytest.approx(1), 0.75: 0}


def test_a_false_alarm_ahead_halves_precision_and_a_miss_cuts_recall(
    make_detection: Any, make_predictions: Any
) -> None:
    far = (60.0, 60.0, 80.0, 80.0)
    records = [make_detection(0, thing(DOG)), make_detection(1, thing(DOG))]
    found = make_predictions([(0, DOG.id, far, 0.9), (0, DOG.id, SQUARE, 0.8)])
    # Precision 1/2 up to recall 1/2, which 51 of the 101 recalls do not exceed.
    result = evaluate_detection(records, [DOG], found)
    assert result.metrics()["AP"] == pytest.approx(0.5 * 51 / 101)
    np.testing.assert_allclose(result.curve("base"), [0.5] * 51 + [0.0] * 50)


def test_a_second_box_on_the_same_object_is_a_false_alarm(make_detection: Any, make_predictions: Any) -> None:
    records = [make_detection(0, thing(DOG)), make_detection(1, thing(DOG))]
    found = make_predictions([(0, DOG.id, SQUARE, 0.9), (0, DOG.id, SQUARE, 0.8), (1, DOG.id, SQUARE, 0.7)])
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert evaluate_detection(records, [DOG], found).metrics()["AP"] == pytest.approx(expected)


def test_base_and_novel_are_means_over_their_own_categories(make_detection: Any, make_predictions: Any) -> None:
    records = [make_detection(0, thing(DOG), thing(CAT), thing(OWL))]
    found = make_predictions([(0, DOG.id, SQUARE, 0.9), (0, OWL.id, SQUARE, 0.9)])
    result = evaluate_detection(records, [DOG, CAT, OWL], found)
    assert result.metrics("base")["AP"] == pytest.approx(1 / 2)
    assert result.metrics("novel")["AP"] == pytest.approx(1)
    assert result.metrics()["AP"] == pytest.approx(2 / 3)


def test_categories_without_ground_truth_are_left_out(make_detection: Any, make_predictions: Any) -> None:
    found = make_predictions([(0, DOG.id, SQUARE, 0.9), (0, OWL.id, SQUARE, 0.9)])
    result = evaluate_detection([make_detection(0, thing(DOG))], [DOG, CAT, OWL], found)
    assert result.metrics()["AP"] == pytest.approx(1)
    assert result.metrics("novel")["AP"] is None
    np.testing.assert_allclose(result.curves.by_category(), [1, -1, -1])
    np.testing.assert_array_equal(result.curve("novel"), np.zeros(101))


def test_detections_on_a_crowd_are_neither_hits_nor_false_alarms(make_detection: Any, make_predictions: Any) -> None:
    crowd = (50.0, 50.0, 90.0, 90.0)
    records = [make_detection(0, thing(DOG), thing(DOG, crowd, crowd=True))]
    found = make_predictions([(0, DOG.id, (55.0, 55.0, 65.0, 65.0), 0.9), (0, DOG.id, SQUARE, 0.8)])
    assert evaluate_detection(records, [DOG], found).metrics()["AP"] == pytest.approx(1)


def test_only_the_best_100_of_a_picture_and_category_count(make_detection: Any, make_predictions: Any) -> None:
    far = (60.0, 60.0, 80.0, 80.0)
    rows = [(0, DOG.id, far, 0.9 - i / 1000) for i in range(100)]
    records = [make_detection(0, thing(DOG))]
    late = evaluate_detection(records, [DOG], make_predictions([*rows, (0, DOG.id, SQUARE, 0.1)]))
    in_time = evaluate_detection(records, [DOG], make_predictions([*rows[:99], (0, DOG.id, SQUARE, 0.1)]))
    assert late.metrics()["AP"] == 0
    assert in_time.metrics()["AP"] == pytest.approx(0.01)


def test_a_model_that_finds_nothing_scores_0(make_detection: Any, make_predictions: Any) -> None:
    result = evaluate_detection([make_detection(0, thing(DOG)), make_detection(1)], [DOG, OWL], make_predictions([]))
    for split, expected in ((None, 0), ("base", 0), ("novel", None)):
        metrics = result.metrics(split)
        assert (metrics["AP"], metrics["AP50"]) == (expected, expected)
        assert not np.isnan(result.curve(split)).any()


def test_pictures_without_objects_and_vocabularies_without_names_have_no_score(
    make_detection: Any, make_predictions: Any
) -> None:
    found = make_predictions([(0, DOG.id, SQUARE, 0.9)])
    assert evaluate_detection([make_detection(0)], [DOG], found).metrics()["AP"] is None
    assert evaluate_detection([make_detection(0)], [], make_predictions([])).metrics()["AP"] is None


def test_predictions_of_other_rows_are_refused(make_detection: Any, make_predictions: Any) -> None:
    found = make_predictions([(1, DOG.id, SQUARE, 0.9)])
    with pytest.raises(BenchmarkError, match=r"detection.*row 1 = 'key-1'.*dvc repro"):
        evaluate_detection([make_detection(0, thing(DOG))], [DOG], found)
    with pytest.raises(BenchmarkError, match="row 1"):
        evaluate_detection([make_detection(0), make_detection(7)], [DOG], found)


def test_nothing_is_printed(make_detection: Any, make_predictions: Any, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate_detection([make_detection(0, thing(DOG))], [DOG], make_predictions([(0, DOG.id, SQUARE, 0.9)]))
    assert capfd.readouterr() == ("", "")


def test_area_under_the_curve_is_the_precision_at_half_overlap(random_benchmark: Callable[..., Any]) -> None:
    records, categories, found = random_benchmark(11)
    result = evaluate_detection(records, categories, found)
    curve = result.curve("base")
    assert (np.diff(curve) <= 1e-12).all()
    assert curve.mean() == pytest.approx(result.metrics("base")["AP50"], abs=1e-11)
