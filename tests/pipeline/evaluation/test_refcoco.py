"""Referring expressions: only the best box of an expression counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.records import Phrase, ScoredBox
from pipeline.evaluation.refcoco import evaluate_referring, precision

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
    hits, splits = evaluate_referring(records, found)
    assert hits.tolist() == [True, False, False, False]
    assert precision(hits, splits) == {"P@1": 25.0}
    assert precision(hits, splits, "base") == {"P@1": 50.0}
    assert precision(hits, splits, "novel") == {"P@1": 0.0}


def test_nothing_asked_and_nothing_found_give_0(make_grounding: Any, make_predictions: Any) -> None:
    assert precision(np.zeros(0, bool), []) == {"P@1": 0.0}
    hits, splits = evaluate_referring([expression(make_grounding, 0, "the dog", "base")], make_predictions([]))
    assert precision(hits, splits, "base") == {"P@1": 0.0}
