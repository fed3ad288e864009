"""Detections: views, filters and exports."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from glip_model.boxes import iou
from glip_model.structures import Detections, GroundingBatch, GroundingTarget


@pytest.fixture
def detections() -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 20.0, 110.0, 70.0], [0.0, 0.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]]),
        scores=torch.tensor([0.9, 0.5, 0.25]),
        phrase_index=torch.tensor([1, 0, 1]),
        phrases=("a cat", "a dog"),
        char_spans=([(0, 5)], [(10, 15)]),
    )


def test_labels_and_spans_answer_for_every_box(detections: Detections) -> None:
    assert detections.labels == ("a dog", "a cat", "a dog")
    assert detections.spans == ([(10, 15)], [(0, 5)], [(10, 15)])


def test_a_bound_keeps_what_reaches_it(detections: Detections) -> None:
    kept = detections.above(0.5)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.5])
    assert kept.labels == ("a dog", "a cat")
    assert kept.phrases == detections.phrases


def test_of_boxes_of_different_phrases_that_overlap_the_best_stays() -> None:
    """Against an obvious loop, over boxes drawn at random."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        corners = torch.rand(12, 2, generator=generator) * 40
        boxes = torch.cat([corners, corners + 10 + 30 * torch.rand(12, 2, generator=generator)], 1)
        scores = (10 * torch.rand(12, generator=generator)).round() / 10
        found = Detections(boxes, scores, torch.randint(3, (12,), generator=generator), ("a", "b", "c"))
        kept: list[int] = []
        for i in sorted(range(12), key=lambda i: -scores[i].item()):
            if not any(
                iou(boxes[i].tolist(), boxes[k].tolist()) > 0.4 and found.phrase_index[i] != found.phrase_index[k]
                for k in kept
            ):
                kept.append(i)
        mine = found.without_rivals(0.4)
        assert torch.equal(mine.boxes_xyxy, boxes[sorted(kept)])
        assert torch.equal(mine.scores, scores[sorted(kept)])
        assert mine.labels == tuple(found.labels[i] for i in sorted(kept))
        assert len(found.without_rivals(1.0)) == 12
    assert len(Detections.none().without_rivals(0.5)) == 0


def test_coco_results_have_width_and_height(detections: Detections) -> None:
    entries = detections.to_coco(image_id=42, category_ids=[17, 18])
    assert json.loads(json.dumps(entries)) == entries
    assert entries[0] == {
        "image_id": 42,
        "category_id": 18,
        "bbox": [10.0, 20.0, 100.0, 50.0],
        "score": pytest.approx(0.9),
    }
    assert [entry["category_id"] for entry in detections.to_coco()] == [2, 1, 2]


def test_coco_results_are_read_by_pycocotools(detections: Detections, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    truth = COCO()
    truth.dataset = {"images": [{"id": 42}], "categories": [{"id": 1}, {"id": 2}], "annotations": []}
    truth.createIndex()
    results = truth.loadRes(detections.to_coco(image_id=42))
    assert results.loadAnns(results.getAnnIds())[0]["area"] == pytest.approx(5000)
    capsys.readouterr()


def test_too_few_categories_are_refused(detections: Detections) -> None:
    with pytest.raises(ValueError, match="2 phrases need a category each, got 1"):
        detections.to_coco(category_ids=[7])


def test_supervision_gets_its_arrays(detections: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Received:
        xyxy: Any
        confidence: Any
        class_id: Any
        data: dict[str, Any]

    module = types.ModuleType("supervision")
    module.Detections = Received  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    received = detections.to_supervision()
    assert received.xyxy.shape == (3, 4)
    assert received.class_id.tolist() == [1, 0, 1]
    assert received.data["class_name"].tolist() == ["a dog", "a cat", "a dog"]


def test_boxes_are_drawn_in_a_colour_for_every_phrase(detections: Detections) -> None:
    drawn = np.array(detections.draw(Image.new("RGB", (480, 200), "white")))
    assert drawn.shape == (200, 480, 3)
    assert tuple(drawn[45, 10]) == tuple(drawn[45, 110])  # left and right side of one box
    assert tuple(drawn[45, 10]) != tuple(drawn[5, 3])  # another phrase
    assert tuple(drawn[150, 300]) == (255, 255, 255)


# Batches


def test_batch_splits_into_parts_that_are_the_whole_again() -> None:
    targets = tuple(GroundingTarget(torch.full((1, 4), float(i)), torch.ones(1, 3, dtype=torch.bool)) for i in range(4))
    batch = GroundingBatch(
        pixel_values=torch.rand(4, 3, 32, 32),
        image_sizes=((1, 1), (2, 2), (3, 3), (4, 4)),
        input_ids=torch.arange(12).reshape(4, 3),
        attention_mask=torch.rand(4, 3) > 0.5,
        text_states=torch.rand(4, 3, 5),
        targets=targets,
    )
    parts = batch.split(2)
    for name in ("pixel_values", "input_ids", "attention_mask", "text_states"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert parts[0].image_sizes + parts[1].image_sizes == batch.image_sizes
    assert [part.targets for part in parts] == [targets[:2], targets[2:]]
    assert batch.split(1) == [batch]
    with pytest.raises(ValueError, match="a batch of 4 pictures cannot be split into 3 equal parts"):
        batch.split(3)


@pytest.mark.filterwarnings("ignore")  # it misses OpenCV
def test_the_real_supervision_takes_them(detections: Detections) -> None:
    pytest.importorskip("supervision")
    received = detections.to_supervision()
    assert received.xyxy.tolist() == detections.boxes_xyxy.tolist()
    assert received.data["class_name"].tolist() == list(detections.labels)
    assert len(received[received.confidence > 2]) == 0
