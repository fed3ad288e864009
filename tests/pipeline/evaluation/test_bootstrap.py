"""Confidence intervals: resampled average precision against pictures that are really repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import compare, draw_pictures, interval, resampled_ap
from pipeline.evaluation.coco import CategoryMatches, CocoResult, evaluate_coco
from pipeline.evaluation.curves import Curves
from pipeline.evaluation.detection_set import truth_and_found
from pipeline.evaluation.predictions import Predictions
from pipeline.store.records import Category


def evaluate_detection(records: Sequence[Any], categories: Sequence[Category], found: Predictions) -> CocoResult:
    return evaluate_coco(*truth_and_found(records, categories, found))


def repeated_ap(records: Sequence[Any], categories: Any, found: Predictions, counts: np.ndarray, split: str) -> float:
    """COCOeval on a set in which every picture stands as often as it was drawn."""
    copies = [number for number, count in enumerate(counts) for _ in range(count)]
    chosen = [np.flatnonzero(found.numbers == number) for number in copies]
    index = np.concatenate(chosen)
    numbers = np.repeat(np.arange(len(copies)), [len(rows) for rows in chosen])
    pictures = [replace(records[number], key=f"copy-{i}") for i, number in enumerate(copies)]
    repeated = Predictions(
        keys=tuple(f"copy-{i}" for i in numbers),
        numbers=numbers,
        labels=found.labels[index],
        boxes_xyxy=found.boxes_xyxy[index],
        scores=found.scores[index],
    )
    return 100 * (evaluate_detection(pictures, categories, repeated).metrics(split)["AP"] or 0.0)


def scattered_hits(num_categories: int, pictures: int = 600, boxes: int = 10, detections: int = 430) -> CocoResult:
    """Return categories of ``boxes`` boxes each, hit by detections anywhere in the ranking."""
    rng = np.random.default_rng(0)
    matches = []
    for _ in range(num_categories):
        matched = np.zeros((10, detections), bool)
        for threshold in range(10):
            matched[threshold, rng.choice(detections, boxes - threshold // 2, replace=False)] = True
        truth = np.bincount(rng.integers(0, pictures, boxes), minlength=pictures)
        images = rng.integers(0, pictures, detections)
        matches.append(CategoryMatches(images, matched, np.zeros_like(matched), truth))
    categories = tuple(Category(id=i, name=str(i)) for i in range(num_categories))
    curves = Curves(np.zeros((10, 101, num_categories, 4)), np.zeros((10, num_categories, 4, 1)), (100,))
    return CocoResult(categories, curves, tuple(matches))


@pytest.mark.parametrize("seed", range(3))
def test_without_resampling_it_is_cocoevals_number(seed: int, random_benchmark: Callable[..., Any]) -> None:
    records, categories, found = random_benchmark(seed)
    result = evaluate_detection(records, categories, found)
    for split in (None, "base", "novel"):
        values = resampled_ap(result, draw_pictures(np.arange(len(records)), 2, seed), split)
        assert values[0] == pytest.approx(100 * result.metrics(split)["AP"], abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_a_draw_scores_as_if_its_pictures_were_repeated(seed: int, random_benchmark: Callable[..., Any]) -> None:
    records, categories, found = random_benchmark(seed)
    draws = draw_pictures(np.arange(len(records)), 5, seed)
    for split in ("base", "novel"):
        values = resampled_ap(evaluate_detection(records, categories, found), draws, split)
        expected = [repeated_ap(records, categories, found, counts, split) for counts in draws]
        np.testing.assert_allclose(values, expected, atol=1e-10)


def test_working_in_blocks_changes_nothing(
    random_benchmark: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    records, categories, found = random_benchmark(5)
    result = evaluate_detection(records, categories, found)
    draws = draw_pictures(np.arange(len(records)), 20, 0)
    whole = resampled_ap(result, draws)
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 40)
    np.testing.assert_array_equal(resampled_ap(result, draws), whole)


def test_draws_take_as_many_pictures_as_there_are_and_repeat_with_the_seed() -> None:
    draws = draw_pictures(np.arange(30), 50, seed=3)
    assert (draws.sum(1) == 30).all()
    assert (draws[0] == 1).all()
    assert draws[1:].max() > 1
    np.testing.assert_array_equal(draws, draw_pictures(np.arange(30), 50, seed=3))
    assert (draws[1:] != draw_pictures(np.arange(30), 50, seed=4)[1:]).any()


def test_rows_of_one_picture_are_drawn_together() -> None:
    draws = draw_pictures(np.array([0, 1, 0, 2, 1]), 50, seed=3)
    np.testing.assert_array_equal(draws[:, [0, 1]], draws[:, [2, 4]])
    np.testing.assert_array_equal(draws[:, [0, 1, 3]], draw_pictures(np.arange(3), 50, seed=3))


def test_intervals_hold_the_measured_value_where_plain_percentiles_miss_it() -> None:
    # Few boxes a category among many false alarms: repeating pictures raises average precision.
    values = resampled_ap(scattered_hits(num_categories=40), draw_pictures(np.arange(600), 200, 0))
    assert np.quantile(values[1:], 0.025) > values[0]
    got = interval(values)
    assert got.low < got.value < got.high
    assert got.value == values[0]
    assert got.high - got.low == pytest.approx(np.ptp(np.quantile(values[1:], [0.025, 0.975])))


def test_a_model_does_not_differ_from_itself(random_benchmark: Callable[..., Any]) -> None:
    records, categories, found = random_benchmark(1)
    values = resampled_ap(evaluate_detection(records, categories, found), draw_pictures(np.arange(len(records)), 30, 0))
    assert compare(values, values).to_dict() == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_a_clearly_better_model_gains_beyond_doubt(random_benchmark: Callable[..., Any]) -> None:
    records, categories, found = random_benchmark(2, num_pictures=100)
    rng = np.random.default_rng(0)
    worse = replace(found, boxes_xyxy=found.boxes_xyxy + rng.normal(0, 4, found.boxes_xyxy.shape).astype(np.float32))
    draws = draw_pictures(np.arange(len(records)), 100, 0)
    good, bad = (resampled_ap(evaluate_detection(records, categories, each), draws) for each in (found, worse))
    assert compare(good, bad).low > 0
    assert compare(bad, good).high < 0


@pytest.mark.parametrize("values", [[0.2, 0.0, 1.5, 1.2], [99.8, 97.0, 100.0, 98.0], [0.0, 0.0, 0.0]])
def test_an_interval_of_a_percentage_stays_one(values: list[float]) -> None:
    got = interval(np.array(values))
    assert 0 <= got.low <= got.value <= got.high <= 100


def test_the_value_stays_inside_even_when_the_resamplings_are_lopsided() -> None:
    got = interval(np.array([50.0, *[10.0] * 99, 90.0]))
    assert got.low <= 50 <= got.high


def test_a_single_value_has_no_spread() -> None:
    assert interval(np.array([12.346])).to_dict() == {"value": 12.35, "low": 12.35, "high": 12.35}


def test_nothing_to_measure_scores_0(make_detection: Any, make_predictions: Any) -> None:
    draws = draw_pictures(np.arange(2), 10, 0)
    category = Category(id=1, name="dog")
    result = evaluate_detection([make_detection(0), make_detection(1)], [category], make_predictions([]))
    np.testing.assert_array_equal(resampled_ap(result, draws), np.zeros(11))
    np.testing.assert_array_equal(resampled_ap(result, draws, "novel"), np.zeros(11))


def test_600_pictures_140_categories_and_500_samples_take_seconds() -> None:
    result = scattered_hits(num_categories=140)
    start = time.perf_counter()
    assert len(resampled_ap(result, draw_pictures(np.arange(600), 500, 0))) == 501
    assert time.perf_counter() - start < 15  # half a second on an idle core
