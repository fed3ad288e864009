"""The window: full batches of one shape, nothing lost, never more than there is room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pseudo_labels import batching
from pipeline.pseudo_labels.batching import BatchWindow


def run(window: BatchWindow[int], shapes: list[str], pixels: int = 1) -> list[list[int]]:
    batches = [batch for i, shape in enumerate(shapes) for batch in window.add(shape, pixels, i)]
    return [*batches, *window.rest()]


def test_a_batch_comes_as_soon_as_it_is_full_and_the_rest_in_the_order_of_their_first() -> None:
    assert run(BatchWindow(2), list("abcacab")) == [[0, 3], [2, 4], [1, 6], [5]]


def test_what_has_no_room_goes_by_the_fullest_batch() -> None:
    assert run(BatchWindow(3, max_pixels=39), list("abbc"), pixels=10) == [[1, 2], [0], [3]]


def test_a_picture_larger_than_the_window_goes_alone() -> None:
    assert run(BatchWindow(3, max_pixels=5), list("aa"), pixels=10) == [[0], [1]]


def test_no_more_pictures_wait_than_a_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WINDOW_BATCHES", 2)
    window: BatchWindow[int] = BatchWindow(2)
    assert [list(window.add(shape, 1, i)) for i, shape in enumerate("abcde")] == [[], [], [], [], [[0]]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50))), st.integers(1, 4), st.integers(1, 200))
def test_nothing_is_lost_or_mixed_and_room_is_kept(
    pictures: list[tuple[int, int]], batch_size: int, max_pixels: int
) -> None:
    window: BatchWindow[int] = BatchWindow(batch_size, max_pixels)
    batches: list[list[int]] = []
    for i, (shape, pixels) in enumerate(pictures):
        batches += window.add(shape, pixels, i)
        held = set(range(i + 1)) - {row for batch in batches for row in batch}
        assert sum(pictures[row][1] for row in held) <= max_pixels
    batches += window.rest()
    assert sorted(row for batch in batches for row in batch) == list(range(len(pictures)))
    assert all(len({pictures[row][0] for row in batch}) == 1 <= len(batch) <= batch_size for batch in batches)
    assert all(batch == sorted(batch) for batch in batches)
