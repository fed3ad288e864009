"""LVIS protocols: the reference evaluator's published answers, and plain loops over its rules for random sets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BenchmarkError
from pipeline.evaluation.detection_set import truth_and_found
from pipeline.evaluation.lvis import FIXED_AP, STANDARD, LvisProtocol, LvisResult, evaluate_federated
from pipeline.evaluation.matching import AREA_RANGES, IOU_THRESHOLDS
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.results_json import read_annotations, read_results
from pipeline.store.records import Category, DetectedObject, DetectionRecord

LVIS = Path(__file__).resolve().parents[4] / "shared" / "data" / "lvis_100"
BLOCKS = {
    "standard_top300_per_image": STANDARD,
    "no_per_image_cap": LvisProtocol(per_picture=None),
    "fixed_ap_top25_per_category": LvisProtocol(per_picture=None, per_category=25),
    "fixed_ap_top10000_per_category": FIXED_AP,
}
NUM_CATEGORIES = 3
PROTOCOLS = [STANDARD, LvisProtocol(4), LvisProtocol(None), LvisProtocol(None, 3), LvisProtocol(2, 3)]

Box = tuple[float, float, float, float]
Rows = list[tuple[int, int, Box, float]]
"""Picture, category, corners, score."""


@pytest.mark.skipif(not LVIS.is_dir(), reason=f"the annotations are not here: {LVIS}")
@pytest.mark.parametrize("block", BLOCKS)
def test_numbers_are_those_of_the_reference_evaluator(block: str) -> None:
    expected = json.loads((LVIS / "expected.json").read_text(encoding="utf-8"))[block]
    annotations = read_annotations(LVIS / "lvis_val_100.json", federated=True)
    found = read_results(LVIS / "predictions.json", annotations)
    metrics = evaluate_federated(annotations.detection_set, found, BLOCKS[block]).metrics()
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert list(metrics) == list(expected)


def overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (size(first) + size(second) - shared)


def size(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def best(rows: Rows, column: int, count: int | None) -> Rows:
    """The best detections of every picture or category."""
    if count is None:
        return rows
    groups: dict[int, Rows] = {}
    for row in sorted(rows, key=lambda row: -row[3]):
        groups.setdefault(row[column], []).append(row)
    return [row for group in groups.values() for row in group[:count]]


def slow_precision_and_recall(
    records: list[DetectionRecord], rows: Rows, category: int, threshold: float, area: Iterable[float]
) -> tuple[float, float] | None:
    """Precision over 101 recalls, averaged, and the highest recall; detection by detection, truth by truth."""
    low, high = area
    ranking: list[tuple[float, bool, bool]] = []
    num_truths = 0
    for number, record in enumerate(records):
        shown = [item for item in record.objects if (item.area or size(item.xyxy)) > 0]
        if category not in {item.category_id for item in shown} | set(record.negative_category_ids):
            continue
        truths = [item for item in shown if item.category_id == category]
        outside = [not low <= (item.area or size(item.xyxy)) <= high for item in truths]
        num_truths += outside.count(False)
        taken: set[int] = set()
        mine = [row for row in rows if row[0] == number and row[1] == category and size(row[2]) > 0]
        for _, _, box, score in sorted(mine, key=lambda row: -row[3]):
            choices = [
                (not outside[g], overlap(box, truth.xyxy), g)
                for g, truth in enumerate(truths)
                if g not in taken and overlap(box, truth.xyxy) >= threshold
            ]
            if choices:
                is_wanted, _, g = max(choices)
                taken.add(g)
                ranking.append((score, True, not is_wanted))
            else:
                excused = not low <= size(box) <= high or category in record.not_exhaustive_category_ids
                ranking.append((score, False, excused))
    if not num_truths:
        return None
    points, hits, seen = [], 0, 0
    for _, is_match, is_ignored in sorted(ranking, key=lambda entry: -entry[0]):
        hits += is_match and not is_ignored
        seen += not is_ignored
        points.append((hits / num_truths, hits / max(seen, 1)))
    recalls = np.linspace(0, 1, 101)
    highest = [max((precision for recall, precision in points if recall >= least), default=0.0) for least in recalls]
    return float(np.mean(highest)), hits / num_truths


corner = st.integers(0, 3).map(lambda i: 12.0 * i)
box_strategy = st.tuples(corner, corner, st.sampled_from([0.0, 24, 36, 60]), st.sampled_from([0.0, 24, 36, 120])).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
labels = st.integers(1, NUM_CATEGORIES)
objects = st.lists(
    st.builds(
        lambda label, box, area: DetectedObject(category_id=label, xyxy=box, area=area),
        labels,
        box_strategy,
        st.sampled_from([None, None, 500.0, 1024.0, 2000.0, 20_000.0]),
    ),
    max_size=5,
)
pictures = st.lists(st.tuples(objects, st.sets(labels), st.sets(labels)), min_size=1, max_size=3)
scores = st.sampled_from([0.25, 0.5, 0.75])


def evaluate_lvis(
    records: list[DetectionRecord], categories: list[Category], found: Predictions, protocol: LvisProtocol = STANDARD
) -> LvisResult:
    return evaluate_federated(*truth_and_found(records, categories, found), protocol)


@settings(max_examples=60, deadline=None)
@given(pictures, st.data())
def test_random_federated_sets_score_as_by_plain_loops(
    make_detection: Any, make_predictions: Any, drawn: Any, data: st.DataObject
) -> None:
    records = [
        make_detection(number, *items, negative_category_ids=tuple(absent), not_exhaustive_category_ids=tuple(partial))
        for number, (items, absent, partial) in enumerate(drawn)
    ]
    row = st.tuples(st.integers(0, len(records) - 1), st.integers(1, NUM_CATEGORIES + 1), box_strategy, scores)
    rows: Rows = data.draw(st.lists(row, max_size=15))
    protocol = data.draw(st.sampled_from(PROTOCOLS))
    categories = [Category(id=k, name=str(k), frequency="rcf"[k - 1]) for k in range(1, NUM_CATEGORIES + 1)]
    result = evaluate_lvis(records, categories, make_predictions(rows), protocol)
    counted = best(best(rows, 1, protocol.per_category), 0, protocol.per_picture)
    for k in range(NUM_CATEGORIES):
        for a, area in enumerate(AREA_RANGES.tolist()):
            for t, threshold in enumerate(IOU_THRESHOLDS.tolist()):
                slow = slow_precision_and_recall(records, counted, k + 1, threshold, area) or (-1.0, -1.0)
                assert result.curves.precision[t, :, k, a].mean() == pytest.approx(slow[0], abs=1e-12)
                assert result.curves.recall[t, k, a, 0] == pytest.approx(slow[1], abs=1e-12)


SQUARE = (10.0, 10.0, 30.0, 30.0)
RARE, FREQUENT = Category(id=2, name="kiwi", frequency="r"), Category(id=7, name="cup", frequency="f")


def test_only_checked_categories_of_a_picture_count(make_detection: Any, make_predictions: Any) -> None:
    shown = make_detection(0, DetectedObject(category_id=2, xyxy=SQUARE))
    alarm = (1, 2, SQUARE, 0.9)
    hit = (0, 2, SQUARE, 0.5)
    unchecked, checked = make_detection(1), make_detection(1, negative_category_ids=(2,))
    for second, expected in ((unchecked, 1.0), (checked, 0.5)):
        metrics = evaluate_lvis([shown, second], [RARE, FREQUENT], make_predictions([alarm, hit])).metrics()
        assert metrics["AP50"] == pytest.approx(expected)
        assert metrics["APr"] == metrics["AP"]
        assert metrics["APf"] is None
        assert metrics["APc"] is None
        assert "AR@300" in metrics


def test_where_not_every_object_has_a_box_an_unmatched_detection_is_no_false_alarm(
    make_detection: Any, make_predictions: Any
) -> None:
    thing = DetectedObject(category_id=2, xyxy=SQUARE)
    rows = [(0, 2, (60.0, 60.0, 80.0, 80.0), 0.9), (0, 2, SQUARE, 0.5)]
    for partial, expected in (((), 0.5), ((2,), 1.0)):
        record = make_detection(0, thing, not_exhaustive_category_ids=partial)
        metrics = evaluate_lvis([record], [RARE], make_predictions(rows)).metrics()
        assert metrics["AP50"] == pytest.approx(expected)


def test_unchecked_and_unknown_detections_use_up_the_limit_of_a_picture(
    make_detection: Any, make_predictions: Any
) -> None:
    record = make_detection(0, DetectedObject(category_id=2, xyxy=SQUARE))
    rows = [(0, 7, SQUARE, 0.9), (0, 99, SQUARE, 0.8), (0, 2, SQUARE, 0.5)]
    for limit, expected in ((2, 0.0), (3, 1.0)):
        metrics = evaluate_lvis([record], [RARE, FREQUENT], make_predictions(rows), LvisProtocol(limit)).metrics()
        assert metrics["AP"] == pytest.approx(expected)
        assert f"AR@{limit}" in metrics


def test_nothing_found_scores_0_and_nothing_to_find_scores_nothing(make_detection: Any, make_predictions: Any) -> None:
    record = make_detection(0, DetectedObject(category_id=2, xyxy=SQUARE))
    for protocol in (STANDARD, FIXED_AP):
        assert evaluate_lvis([record], [RARE], make_predictions([]), protocol).metrics()["AP"] == 0
        assert set(evaluate_lvis([make_detection(0)], [RARE], make_predictions([]), protocol).metrics().values()) == {
            None
        }
        assert set(evaluate_lvis([make_detection(0)], [], make_predictions([]), protocol).metrics().values()) == {None}


def test_crowds_are_things_like_any_other(make_detection: Any, make_predictions: Any) -> None:
    record = make_detection(0, DetectedObject(category_id=2, xyxy=SQUARE, is_crowd=True))
    assert evaluate_lvis([record], [RARE], make_predictions([(0, 2, SQUARE, 0.5)])).metrics()["AP"] == pytest.approx(1)


def test_predictions_of_other_rows_are_refused(make_detection: Any, make_predictions: Any) -> None:
    with pytest.raises(BenchmarkError, match="row 3"):
        evaluate_lvis([make_detection(0)], [RARE], make_predictions([(3, 2, SQUARE, 0.5)]))
