"""Words that human data teaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError
from pipeline.store.known_words import is_known, known_words
from pipeline.store.records import (
    Category,
    DetectedObject,
    DetectionRecord,
    GroundingRecord,
    Phrase,
    ScoredBox,
)
from pipeline.store.shards import categories_to_metadata, shard_name, write_shard

BOX = (10.0, 10.0, 20.0, 20.0)


@pytest.fixture
def human(
    tmp_path: Path, make_detection: Callable[..., DetectionRecord], make_grounding: Callable[..., GroundingRecord]
) -> Path:
    """Write boxes of three trucks and a traffic light, of two red foxes, and a phrase that nobody found."""
    trucks = [DetectedObject(xyxy=BOX, category_id=number) for number in (5, 5, 9)]
    categories = [Category(id=5, name="Truck"), Category(id=9, name="traffic light"), Category(id=2, name="boat")]
    rows = [make_detection(0, *trucks), make_detection(1, trucks[0])]
    write_shard(tmp_path / "detection" / shard_name(0), rows, DetectionRecord, categories_to_metadata(categories))
    boxes = tuple(ScoredBox(xyxy=BOX, score=1.0) for _ in range(2))
    caption = "two red foxes and a comet"
    phrases = (
        Phrase(text="red foxes", char_spans=((4, 13),), boxes=boxes),
        Phrase(text="comet", char_spans=((20, 25),)),
    )
    write_shard(tmp_path / "grounding" / shard_name(0), [make_grounding(2, caption, *phrases)], GroundingRecord)
    return tmp_path


def test_words_are_known_from_as_many_boxes(human: Path) -> None:
    assert {"truck", "traffic", "light", "red", "fox"} <= known_words(human, 1)
    assert not {"boat", "comet"} & known_words(human, 1)  # a category without boxes, a phrase without one
    assert {"truck", "red", "fox"} <= known_words(human, 2)
    assert "light" not in known_words(human, 2)
    assert known_words(human, 3) == {"truck"}


def test_one_kind_of_records_is_enough_and_none_is_an_error(human: Path) -> None:
    (human / "detection" / shard_name(0)).unlink()
    (human / "detection").rmdir()
    assert "fox" in known_words(human, 1)
    with pytest.raises(MissingInputError):
        known_words(human / "nowhere", 1)


@pytest.mark.parametrize(
    ("text", "known"),
    [("truck", True), ("Red Trucks", True), ("FOXES", True), ("fire truck", False), ("comet", False), ("a fox", False)],
)
def test_a_phrase_is_new_with_one_word_that_is_not_known(human: Path, text: str, known: bool) -> None:
    assert is_known(text, known_words(human, 1)) == known  # "a" names no box
