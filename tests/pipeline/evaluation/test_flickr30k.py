"""Phrase grounding: ranks and recalls worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BenchmarkError
from pipeline.evaluation.flickr30k import NEVER, GroundingResult, evaluate_grounding
from pipeline.evaluation.predictions import Predictions
from pipeline.store.records import Box, GroundingRecord, ImageRef, Phrase, ScoredBox

LEFT, RIGHT, AWAY = (0.0, 0.0, 20.0, 20.0), (50.0, 0.0, 70.0, 20.0), (50.0, 60.0, 70.0, 80.0)


def recalls(result: GroundingResult, part: str | None = None) -> tuple[float, ...]:
    metrics = result.metrics(part)
    return tuple(metrics[f"R@{k}"] for k in (1, 5, 10, "all"))


def phrase(text: str, *boxes: Box, split: str | None = "base") -> Phrase:
    spans = ((0, len(text)),)
    return Phrase(text=text, char_spans=spans, boxes=tuple(ScoredBox(xyxy=box) for box in boxes), split=split)


def test_any_box_of_a_phrase_may_be_hit_and_the_best_score_counts_first(
    make_grounding: Any, make_predictions: Any
) -> None:
    record = make_grounding(0, "two dogs", phrase("two dogs", LEFT, RIGHT))
    # Stored out of order on purpose: the rank follows the score.
    found = make_predictions([(0, 0, RIGHT, 0.5), (0, 0, AWAY, 0.9)])
    result = evaluate_grounding([record], found)
    assert result.any_box.tolist() == [1]
    assert result.parts == (frozenset({"base"}),)
    assert recalls(result) == (0.0, 1.0, 1.0, 1.0)


def test_overlap_of_exactly_one_half_hits(make_grounding: Any, make_predictions: Any) -> None:
    record = make_grounding(0, "a dog", phrase("a dog", LEFT))
    half, less = (0.0, 0.0, 20.0, 10.0), (0.0, 0.0, 20.0, 9.9)
    assert evaluate_grounding([record], make_predictions([(0, 0, half, 0.5)])).any_box.tolist() == [0]
    assert evaluate_grounding([record], make_predictions([(0, 0, less, 0.5)])).any_box.tolist() == [NEVER]


def test_boxes_of_other_phrases_and_other_rows_do_not_count(make_grounding: Any, make_predictions: Any) -> None:
    records = [
        make_grounding(0, "a dog and a cat", phrase("a dog", LEFT), phrase("a cat", RIGHT)),
        make_grounding(1, "a cat", phrase("a cat", RIGHT)),
    ]
    found = make_predictions([(0, 0, RIGHT, 0.9), (0, 1, RIGHT, 0.8)])
    assert evaluate_grounding(records, found).any_box.tolist() == [NEVER, 0, NEVER]


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
    result = evaluate_grounding(records, make_predictions(rows))
    assert result.any_box.tolist() == [0, NEVER, 5, 10, 4]
    assert recalls(result, "base") == (0.5, 0.5, 0.5, 0.5)
    assert recalls(result, "novel") == (0.0, 0.0, 0.5, 1.0)
    assert recalls(result) == (0.2, 0.4, 0.6, 0.8)


def test_phrases_without_boxes_and_rows_without_phrases_are_skipped(make_grounding: Any, make_predictions: Any) -> None:
    records = [
        make_grounding(0, "nothing here"),
        make_grounding(1, "love and a dog", phrase("love"), phrase("a dog", LEFT)),
    ]
    result = evaluate_grounding(records, make_predictions([(1, 0, LEFT, 0.9), (1, 1, LEFT, 0.4)]))
    assert result.any_box.tolist() == [0]
    assert result.metrics("novel") == {}


def test_nothing_asked_gives_no_figures_and_nothing_found_gives_0(make_grounding: Any, make_predictions: Any) -> None:
    empty = make_predictions([])
    assert evaluate_grounding([], empty).metrics() == {}
    result = evaluate_grounding([make_grounding(0, "a dog", phrase("a dog", LEFT))], empty)
    assert recalls(result, "base") == (0.0, 0.0, 0.0, 0.0)
    assert set(result.metrics().values()) == {0.0}


def test_a_phrase_of_several_types_counts_to_each(make_grounding: Any, make_predictions: Any) -> None:
    phrases = phrase("a man", LEFT, split="people"), phrase("a hat", RIGHT, split="clothing/other")
    result = evaluate_grounding([make_grounding(0, "a man, a hat", *phrases)], make_predictions([(0, 1, RIGHT, 0.9)]))
    assert [recalls(result, part)[0] for part in ("people", "clothing", "other", None)] == [0.0, 1.0, 1.0, 0.5]


def test_merged_boxes_ask_for_the_hull_of_all(make_grounding: Any, make_predictions: Any) -> None:
    record = make_grounding(0, "two dogs", phrase("two dogs", LEFT, RIGHT))
    hull = (0.0, 0.0, 70.0, 20.0)
    result = evaluate_grounding([record], make_predictions([(0, 0, LEFT, 0.9), (0, 0, hull, 0.5)]))
    assert (result.any_box.tolist(), result.merged_box.tolist()) == ([0], [1])
    assert result.metrics()["merged R@1"] == 0.0
    assert result.metrics()["merged R@5"] == 1.0


corner = st.integers(0, 12)
boxes = st.lists(
    st.tuples(corner, corner, st.integers(1, 8), st.integers(1, 8)).map(
        lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_ranks_equal_those_of_counted_pixels(true: list[Box], found: list[Box]) -> None:
    record = GroundingRecord(
        key="key-0", image=ImageRef(), height=20, width=20, caption="dogs", source="s", phrases=(phrase("dogs", *true),)
    )
    scores = np.linspace(0.9, 0.1, len(found)).astype(np.float32)
    zeros = np.zeros(len(found), np.int32)
    predictions = Predictions(("key-0",) * len(found), zeros, zeros, np.array(found, np.float32), scores)
    result = evaluate_grounding([record], predictions)
    hull = tuple(f(box[side] for box in true) for side, f in enumerate((min, min, max, max)))
    for rank, truths in ((result.any_box[0], true), (result.merged_box[0], [hull])):
        hits = [i for i, box in enumerate(found) if any(2 * shared(box, t) >= united(box, t) for t in truths)]
        assert rank == (hits[0] if hits else NEVER)


def pixels(box: Sequence[float]) -> set[tuple[int, int]]:
    return {(x, y) for x in range(int(box[0]), int(box[2])) for y in range(int(box[1]), int(box[3]))}


def shared(a: Sequence[float], b: Sequence[float]) -> int:
    return len(pixels(a) & pixels(b))


def united(a: Sequence[float], b: Sequence[float]) -> int:
    return len(pixels(a) | pixels(b))


def test_predictions_of_other_rows_are_refused(make_grounding: Any, make_predictions: Any) -> None:
    with pytest.raises(BenchmarkError, match="row 5"):
        evaluate_grounding([make_grounding(0, "a dog")], make_predictions([(5, 0, LEFT, 0.9)]))
