"""Two models' boxes compared: what is found again, by how much it moved, and AP against that of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from glip_model.structures import Detections
from pipeline.errors import MissingInputError
from pipeline.evaluation.coco import evaluate_coco
from pipeline.evaluation.detection_set import truth_and_found
from pipeline.evaluation.exported import Agreement, agreement, average_precision
from pipeline.store.records import Category, DetectedObject, DetectionRecord

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 90, 90]])
FIRST = Detections(BOXES, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0, 1, 0]), ("a dog", "a cat"))


def test_a_model_agrees_with_itself() -> None:
    assert agreement([FIRST], [FIRST], 0.0) == Agreement(3, 3, 0.0, 0.0)
    assert agreement([FIRST], [FIRST], 0.3).boxes == 2
    assert agreement([FIRST], [Detections.none()], 0.3) == Agreement(2, 0, 0.0, 0.0)
    assert agreement([], [], 0.3) == Agreement(0, 0, 0.0, 0.0)


def test_moved_boxes_other_scores_and_other_names_count() -> None:
    moved = replace(FIRST, boxes_xyxy=BOXES + torch.tensor([0.0, 0, 0.25, 0]), scores=FIRST.scores - 0.05)
    found = agreement([FIRST], [moved], 0.3)
    assert (found.boxes, found.found_again) == (2, 2)
    assert found.score_difference == pytest.approx(0.05)
    assert found.side_difference == pytest.approx(0.25)
    renamed = replace(FIRST, phrase_index=torch.tensor([1, 1, 0]))
    assert agreement([FIRST], [renamed], 0.3).found_again == 1
    far = replace(FIRST, boxes_xyxy=BOXES + 3)
    assert agreement([FIRST], [far], 0.0).found_again == 0


def test_ap_is_the_protocols(random_benchmark: Callable[..., Any]) -> None:
    records, categories, predictions = random_benchmark(0)
    ids = [category.id for category in categories]
    place = {label: i for i, label in enumerate(ids)}
    found = []
    for number in range(len(records)):
        mine = predictions.numbers == number
        order = (-predictions.scores[mine]).argsort(kind="stable")
        index = torch.tensor([place[label] for label in predictions.labels[mine][order].tolist()], dtype=torch.int64)
        boxes, scores = predictions.boxes_xyxy[mine][order], predictions.scores[mine][order]
        found.append(Detections(torch.from_numpy(boxes), torch.from_numpy(scores), index))
    names = [category.name.upper() for category in categories]
    expected = evaluate_coco(*truth_and_found(records, categories, predictions)).metrics()
    assert average_precision(records, categories, names, found) == pytest.approx(expected)
    assert (expected["AP"] or 0) > 0.05


def test_names_that_nobody_annotated_do_not_count(make_detection: Callable[..., DetectionRecord]) -> None:
    record = make_detection(0, DetectedObject(category_id=7, xyxy=(0, 0, 10, 10)))
    dogs = [Category(id=7, name="A dog")]
    assert average_precision(
        [record], dogs, ["a cat", "a dog"], [replace(FIRST, phrase_index=torch.tensor([1, 0, 0]))]
    )["AP"] == pytest.approx(1.0)
    with pytest.raises(MissingInputError, match="none of the names is a category of the annotations, such as A dog"):
        average_precision([record], dogs, ["a frog"], [FIRST])
