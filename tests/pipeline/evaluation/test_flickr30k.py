"""Phrase grounding: ranks and recalls worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.data.records import Box, Phrase, ScoredBox
from pipeline.errors import BenchmarkError
from pipeline.evaluation.flickr30k import evaluate_grounding, recalls

LEFT, RIGHT, AWAY = (0.0, 0.0, 20.0, 20.0), (50.0, 0.0, 70.0, 20.0), (50.0, 60.0, 70.0, 80.0)
NEVER = np.iinfo(np.int32).max


def phrase(text: str, *boxes: Box, split: str | None = "base") -> Phrase:
    spans = ((0, len(text)),)
    return Phrase(text=text, char_spans=spans, boxes=tuple(ScoredBox(xyxy=box) for box in boxes), split=split)


def test_any_box_of_a_phrase_may_be_hit_and_the_best_score_counts_first(
    make_grounding: Any, make_predictions: Any
) -> None:
    record = make_grounding(0, "two dogs", phrase("two dogs", LEFT, RIGHT))
    # Stored out of order on purpose: the rank follows the score.
    found = make_predictions([(0, 0, RIGHT, 0.5), (0, 0, AWAY, 0.9)])
    ranks, splits = evaluate_grounding([record], found)
    assert ranks.tolist() == [1]
    assert splits == ["base"]
    assert recalls(ranks, splits) == {"R@1": 0.0, "R@5": 100.0, "R@10": 100.0}


def test_overlap_of_exactly_one_half_hits(make_grounding: Any, make_predictions: Any) -> None:
    record = make_grounding(0, "a dog", phrase("a dog", LEFT))
    half, less = (0.0, 0.0, 20.0, 10.0), (0.0, 0.0, 20.0, 9.9)
    assert evaluate_grounding([record], make_predictions([(0, 0, half, 0.5)]))[0].tolist() == [0]
    assert evaluate_grounding([record], make_predictions([(0, 0, less, 0.5)]))[0].tolist() == [NEVER]


def test_boxes_of_other_phrases_and_other_rows_do_not_count(make_grounding: Any, make_predictions: Any) -> None:
    records = [
        make_grounding(0, "a dog and a cat", phrase("a dog", LEFT), phrase("a cat", RIGHT)),
        make_grounding(1, "a cat", phrase("a cat", RIGHT)),
    ]
    found = make_predictions([(0, 0, RIGHT, 0.9), (0, 1, RIGHT, 0.8)])
    assert evaluate_grounding(records, found)[0].tolist() == [NEVER, 0, NEVER]


def test_recalls_by_split_are_shares_of_their_own_phrases(make_grounding: Any, make_predictions: Any) -> None:
    misses = [AWAY] * 9
    records = [
        make_grounding(0, "a dog", phrase("a dog", LEFT)),
        make_grounding(1, "a dog", phrase("a dog", LEFT)),
        make_grounding(2, "a yak", phrase("a yak", LEFT, split="novel")),
        make_grounding(3, "a yak", phrase("a yak", LEFT, split="novel")),
        make_grounding(4, "a thing", phrase("a thing", LEFT, split=None)),
    ]
    rows = [(0, 0, LEFT, 0.9)]  # rank 0; row 1 has no boxes at all
    rows += [(2, 0, box, 0.9 - i / 100) for i, box in enumerate([*misses[:5], LEFT])]  # rank 5
    rows += [(3, 0, box, 0.9 - i / 100) for i, box in enumerate([*misses, AWAY, LEFT])]  # rank 10
    rows += [(4, 0, box, 0.9 - i / 100) for i, box in enumerate([*misses[:4], LEFT])]  # rank 4
    ranks, splits = evaluate_grounding(records, make_predictions(rows))
    assert ranks.tolist() == [0, NEVER, 5, 10, 4]
    assert recalls(ranks, splits, "base") == {"R@1": 50.0, "R@5": 50.0, "R@10": 50.0}
    assert recalls(ranks, splits, "novel") == {"R@1": 0.0, "R@5": 0.0, "R@10": 50.0}
    assert recalls(ranks, splits) == {"R@1": 20.0, "R@5": 40.0, "R@10": 60.0}


def test_phrases_without_boxes_and_rows_without_phrases_are_skipped(make_grounding: Any, make_predictions: Any) -> None:
    records = [
        make_grounding(0, "nothing here"),
        make_grounding(1, "love and a dog", phrase("love"), phrase("a dog", LEFT)),
    ]
    ranks, splits = evaluate_grounding(records, make_predictions([(1, 0, LEFT, 0.9), (1, 1, LEFT, 0.4)]))
    assert ranks.tolist() == [0]
    assert recalls(ranks, splits, "novel") == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}


def test_no_phrases_and_no_boxes_give_0_not_nan(make_grounding: Any, make_predictions: Any) -> None:
    empty = make_predictions([])
    assert recalls(*evaluate_grounding([], empty)) == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}
    ranks, splits = evaluate_grounding([make_grounding(0, "a dog", phrase("a dog", LEFT))], empty)
    assert recalls(ranks, splits, "base")["R@10"] == 0


def test_predictions_of_other_rows_are_refused(make_grounding: Any, make_predictions: Any) -> None:
    with pytest.raises(BenchmarkError, match="row 5"):
        evaluate_grounding([make_grounding(0, "a dog")], make_predictions([(5, 0, LEFT, 0.9)]))
