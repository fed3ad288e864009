"""Single values of raw data: captions, keys, boxes and spans of any kind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prepare.values import clean_caption, content_key, read_box, read_spans


@given(st.text())
def test_a_clean_caption_can_be_stored_and_is_as_long(text: str) -> None:
    cleaned = clean_caption(text)
    assert len(cleaned) == len(text)
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_clean_caption_is_the_text_itself(text: str) -> None:
    assert clean_caption(text) == text


def test_keys_tell_contents_apart_and_do_not_run_together() -> None:
    parts = [(b"a",), (b"b",), (b"a", ""), (b"a", "b"), (b"ab",), ("\ud800",)]
    assert len({content_key(*part) for part in parts}) == len(parts)


@given(st.tuples(*[st.floats(-1e4, 1e4)] * 4), st.integers(1, 500), st.integers(1, 500))
def test_clipped_boxes_lie_inside_and_lose_only_what_is_outside(
    box: tuple[float, float, float, float], height: int, width: int
) -> None:
    clipped = read_box(box, height, width)
    left, right = max(box[0], 0), min(box[2], width)
    top, bottom = max(box[1], 0), min(box[3], height)
    if right - left < 1 or bottom - top < 1:
        assert clipped == "box_degenerate"
    else:
        assert clipped == (left, top, right, bottom)


@given(st.text(), st.lists(st.tuples(st.integers(-5, 30), st.integers(-5, 30))))
def test_spans_are_inside_have_text_at_their_ends_and_lose_only_blanks(
    caption: str, spans: list[tuple[int, int]]
) -> None:
    read = read_spans(spans, caption)
    assert list(read) == sorted(set(read))
    covered: set[int] = set()
    for start, end in read:
        assert 0 <= start < end <= len(caption)
        assert caption[start:end] == caption[start:end].strip()
        covered |= set(range(start, end))
    asked = {i for start, end in spans for i in range(max(start, 0), min(end, len(caption)))}
    assert covered <= asked
    assert all(i in covered for i in asked if not caption[i].isspace())


@pytest.mark.parametrize(
    "spans", [None, 5, "ab", [None], [[1]], [["a", "b"]], [[1, 2, 3]], [[None, 4]], [[float("inf"), 4]]]
)
def test_spans_of_another_form_are_none(spans: Any) -> None:
    assert read_spans(spans, "a dog") == ()
