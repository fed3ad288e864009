"""Pieces of large pictures: they cover it, and what is found in them is found once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glip_model.structures import Detections
from glip_model.tiling import OVERLAP, Tile, merge_tiles, tiles


def found(*boxes: tuple[float, float, float, float, float, int]) -> Detections:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].long(), ("a", "b"))


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 1500))
def test_pieces_lie_in_the_picture_overlap_and_cover_it(height: int, width: int, side: int) -> None:
    whole, *pieces = tiles((height, width), side)
    assert whole == (0, 0, width, height)
    if max(height, width) <= side:
        assert pieces == []
        return
    assert len(set(pieces)) == len(pieces)
    for low, high, length in ((0, 2, width), (1, 3, height)):
        stretches = sorted({(piece[low], piece[high]) for piece in pieces})
        assert stretches[0][0] == 0
        assert stretches[-1][1] == length
        assert all(end - start == min(side, length) for start, end in stretches)
        assert all(before[1] - after[0] >= int(OVERLAP * side) - 1 for before, after in pairwise(stretches))


def test_pieces_that_show_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        tiles((100, 100), 31)


PLACES: list[Tile] = [(0, 0, 180, 100), (0, 0, 100, 100), (80, 0, 180, 100)]
"""A picture of 180 × 100 in two pieces that share 20 pixels."""


def merge(*parts: Detections) -> list[tuple[tuple[float, ...], float, str]]:
    merged = merge_tiles(parts, PLACES, (100, 180))
    return [
        (tuple(box), round(score, 3), label)
        for box, score, label in zip(merged.boxes_xyxy.tolist(), merged.scores.tolist(), merged.labels, strict=True)
    ]


def test_boxes_move_to_where_their_piece_lies() -> None:
    assert merge(found(), found((1, 2, 11, 12, 0.5, 0)), found((1, 2, 11, 12, 0.75, 1))) == [
        ((81, 2, 91, 12), 0.75, "b"),
        ((1, 2, 11, 12), 0.5, "a"),
    ]


def test_what_lies_in_two_pieces_is_found_once() -> None:
    left, right = found((82, 10, 98, 40, 0.6, 0)), found((2, 10, 18, 40, 0.7, 0))
    assert merge(found(), left, right) == [((82, 10, 98, 40), 0.7, "a")]
    # another thing by its name stays
    assert len(merge(found(), left, found((2, 10, 18, 40, 0.7, 1)))) == 2


def test_what_a_border_cuts_gives_way_to_the_whole_even_with_a_better_score() -> None:
    """A thing from 60 to 130: its left part ends at the left piece's border, its right one begins at the right's."""
    whole, left, right = (
        found((60, 10, 130, 40, 0.4, 0)),
        found((60, 10, 100, 40, 0.9, 0)),
        found((0, 10, 50, 40, 0.8, 0)),
    )
    assert merge(whole, left, right) == [((60, 10, 130, 40), 0.4, "a")]
    assert merge(found(), left, right) == [((60, 10, 100, 40), 0.9, "a"), ((80, 10, 130, 40), 0.8, "a")]


def test_neighbours_of_one_name_stay() -> None:
    assert len(merge(found((10, 10, 30, 30, 0.5, 0)), found((32, 10, 52, 30, 0.5, 0)), found())) == 2


def test_nothing_found_is_nothing() -> None:
    assert merge(found(), found(), found()) == []
