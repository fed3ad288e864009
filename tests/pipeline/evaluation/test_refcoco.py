"""Referring expressions: only the best box of an expression counts."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.flickr30k import NEVER
from pipeline.evaluation.refcoco import evaluate_referring
from pipeline.store.records import Phrase, ScoredBox

HERE, ALMOST, AWAY = (10.0, 10.0, 30.0, 30.0), (10.0, 10.0, 30.0, 25.0), (60.0, 60.0, 80.0, 80.0)


def expression(make_grounding: Any, number: int, text: str, split: str) -> Any:
    spans = ((0, len(text)),)
    whole = Phrase(text=text, char_spans=spans, boxes=(ScoredBox(xyxy=HERE),), split=split)
    return make_grounding(number, text, whole)


def test_the_best_box_decides(make_grounding: Any, make_predictions: Any) -> None:
    records = [
        expression(make_grounding, 0, "the dog on the left", "base"),
        expression(make_grounding, 1, "the upper dog", "base"),
        expression(make_grounding, 2, "the yak", "novel"),
        expression(make_grounding, 3, "the small yak", "novel"),
    ]
    found = make_predictions(
        [
            (0, 0, ALMOST, 0.6),  # IoU 0.75
            (0, 0, AWAY, 0.5),
            (1, 0, HERE, 0.6),
            (1, 0, AWAY, 0.7),
            (3, 0, AWAY, 0.9),
        ]
    )
    result = evaluate_referring(records, found)
    assert result.by_iou.tolist() == [0, 1, NEVER, NEVER]
    assert result.metrics() == {"P@1": 0.25, "P@5": 0.5, "P@10": 0.5, "P@1 GIoU": 0.25}
    assert result.metrics("base")["P@1"] == 0.5
    assert result.metrics("novel")["P@1"] == 0.0


def test_generalised_iou_is_stricter(make_grounding: Any, make_predictions: Any) -> None:
    diagonal = (13.0, 13.0, 33.0, 33.0)  # IoU 289 / 511 = 0.566, hull 529: GIoU 0.531
    far = (13.5, 13.5, 33.5, 33.5)  # IoU 272.25 / 527.75 = 0.516, hull 552.25: GIoU 0.472
    for box, by_giou in ((diagonal, 1.0), (far, 0.0)):
        record = expression(make_grounding, 0, "the dog", "base")
        metrics = evaluate_referring([record], make_predictions([(0, 0, box, 0.5)])).metrics()
        assert (metrics["P@1"], metrics["P@1 GIoU"]) == (1.0, by_giou)


def test_nothing_asked_gives_no_figures_and_nothing_found_gives_0(make_grounding: Any, make_predictions: Any) -> None:
    assert evaluate_referring([], make_predictions([])).metrics() == {}
    result = evaluate_referring([expression(make_grounding, 0, "the dog", "base")], make_predictions([]))
    assert set(result.metrics("base").values()) == {0.0}
