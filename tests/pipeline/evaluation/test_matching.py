"""Matching: hand-made cases, and random sets with crowds, ties and odd areas against pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluation import matching
from pipeline.evaluation.coco import CocoResult, evaluate_coco
from pipeline.evaluation.curves import measure
from pipeline.evaluation.matching import AREAS, IOU_THRESHOLDS, Found, Truth, match, unpack
from pipeline.evaluation.results_json import read_annotations, read_results

Dataset = dict[str, Any]
Detections = list[dict[str, Any]]
COCO_TINY = Path(__file__).resolve().parents[4] / "shared/data/coco_tiny/annotations/instances_train2017.json"

# Few places, sizes and scores, so that equal overlaps and equal scores are common.
boxes = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.sampled_from([9, 40]))
areas = st.sampled_from([None, 0.0, 100.0, 1024.0, 5000.0, 9216.0])


@st.composite
def detection_sets(draw: st.DrawFn) -> tuple[Dataset, Detections]:
    """Draw annotations and at least one detection; ids have gaps, stand in no order and are sometimes unknown."""
    image_ids, category_ids = draw(st.permutations([7, 3, 12])), draw(st.permutations([5, 1, 40]))
    chosen = st.tuples(st.sampled_from(image_ids), st.sampled_from([*category_ids, 99]), boxes)
    annotations = []
    for number, (image, category, box) in enumerate(draw(st.lists(chosen, max_size=12))):
        x, y, width, height, scale = box
        bbox = [x * scale / 2, y * scale / 2, width * scale, height * scale]
        area = draw(areas)
        annotations.append(
            {
                "id": number + draw(st.sampled_from([0, 1])) * 100,
                "image_id": image,
                "category_id": category,
                "bbox": bbox,
                "area": bbox[2] * bbox[3] if area is None else area,
                "iscrowd": draw(st.sampled_from([0, 0, 0, 1])),
            }
        )
    detections = []
    for image, category, box in draw(st.lists(chosen, min_size=1, max_size=25)):
        x, y, width, height, scale = box
        bbox = [x * scale / 2, y * scale / 2, width * scale, height * scale]
        score = draw(st.sampled_from([0.1, 0.5, 0.9]))
        detections.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})
    images = [{"id": image} for image in image_ids]
    categories = [{"id": category, "name": f"thing {category}"} for category in category_ids]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


def ours(folder: Path, truth: Dataset, detections: Detections) -> CocoResult:
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(detections))
    annotations = read_annotations(folder / "truth.json")
    return evaluate_coco(annotations.detection_set, read_results(folder / "found.json", annotations))


def official(truth: Dataset, detections: Detections) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = copy.deepcopy(truth)
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_equal(result: CocoResult, evaluation: COCOeval) -> None:
    np.testing.assert_array_equal(result.curves.precision, evaluation.eval["precision"][..., -1])
    np.testing.assert_array_equal(result.curves.recall, evaluation.eval["recall"])
    assert [-1 if value is None else value for value in result.metrics().values()] == evaluation.stats.tolist()


@settings(max_examples=150, deadline=None)
@given(detection_sets())
def test_every_number_is_pycocotools_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Dataset, Detections]
) -> None:
    assert_equal(ours(tmp_path_factory.getbasetemp(), *drawn), official(*drawn))


@pytest.mark.skipif(not COCO_TINY.is_file(), reason=f"the annotations are not here: {COCO_TINY}")
@pytest.mark.parametrize("block", [7, matching._BLOCK_PAIRS])
def test_real_annotations_with_shaken_boxes_score_as_by_pycocotools(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_BLOCK_PAIRS", block)
    truth = json.loads(COCO_TINY.read_text(encoding="utf-8"))
    rng = np.random.default_rng(5)
    labels = [category["id"] for category in truth["categories"]]
    detections = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"] if rng.random() < 0.9 else int(rng.choice(labels)),
            "bbox": (np.array(annotation["bbox"]) * rng.normal(1, 0.1, 4)).tolist(),
            "score": round(float(rng.random()), 2),
        }
        for annotation in truth["annotations"]
        for _ in range(int(rng.integers(0, 12)))
    ]
    result = ours(tmp_path, truth, detections)
    assert_equal(result, official(truth, detections))
    assert all(value is not None and 0 < value < 1 for value in result.metrics().values())


def sets(truths: list[tuple[float, ...]], detections: list[tuple[float, ...]]) -> tuple[Truth, Found]:
    """One picture and one category; detections are best first."""
    g, d = np.array(truths, float).reshape(-1, 4), np.array(detections, float).reshape(-1, 4)
    none, zeros = np.zeros(len(g), bool), np.zeros(len(g), np.int64)
    return (
        Truth(zeros, zeros, g, g[:, 2] * g[:, 3], none, none, none),
        Found(np.zeros(len(d), np.int64), np.zeros(len(d), np.int64), d, np.linspace(0.9, 0.1, len(d))),
    )


def test_the_best_detection_chooses_first_and_leaves_the_second_best_truth() -> None:
    # Both overlap the left truth most; the second one has to take what is left, as long as that is near enough.
    truth, found = sets([(0, 0, 20, 20), (6, 0, 20, 20)], [(1, 0, 20, 20), (2, 0, 20, 20)])
    matches = match(truth, found)
    all_areas = unpack(matches.matched)[AREAS.index("all")]
    np.testing.assert_array_equal(all_areas[:, 0], IOU_THRESHOLDS <= 19 / 21)
    np.testing.assert_array_equal(all_areas[:, 1], IOU_THRESHOLDS <= 16 / 24)


def test_unmatched_detections_are_ignored_out_of_the_range_of_area_or_where_lenient() -> None:
    truth, found = sets([], [(0, 0, 20, 20), (0, 0, 200, 200)])
    np.testing.assert_array_equal(
        unpack(match(truth, found).ignored)[:, 0], [[False, False], [False, True], [True, True], [True, False]]
    )
    assert unpack(match(truth, found, lenient=np.array([False, True])).ignored)[:, :, 1].all()


def test_only_the_best_of_a_picture_and_category_are_kept_and_unknown_categories_go() -> None:
    found = Found(
        pictures=np.array([0, 1, 0, 0, 0]),
        categories=np.array([0, 0, 0, -1, 0]),
        boxes_xywh=np.ones((5, 4)),
        scores=np.array([0.2, 0.1, 0.9, 1.0, 0.9]),
    )
    truth, _ = sets([], [])
    matches = match(truth, found, max_per_group=2)
    np.testing.assert_array_equal(matches.found.pictures, [0, 0, 1])
    np.testing.assert_array_equal(matches.ranks, [0, 1, 0])
    (ranking,) = matches.rankings(1)
    np.testing.assert_array_equal(matches.found.scores[ranking], [0.9, 0.9, 0.1])


def test_nothing_at_all_has_no_mean() -> None:
    curves = measure(match(*sets([], [])), num_categories=0)
    assert curves.average_precision() is None
    assert curves.average_recall() is None


def test_sizes_beyond_floats_and_below_zero_match_nothing() -> None:
    truth, found = sets([(0, 0, 20, 20)], [(0, 0, 1e200, 1e200), (20, 20, -20, -20)])
    assert not unpack(match(truth, found).matched).any()
