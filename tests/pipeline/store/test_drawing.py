"""Boxes, labels and captions on pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from glip_model.drawing import COLOURS, MAX_SIDE, MIN_WIDTH
from pipeline.store.drawing import draw_phrases
from pipeline.store.records import Box, Phrase, ScoredBox

GREY = (119, 119, 136)


def phrase(*boxes: Box, text: str = "dog", score: float = 0.5) -> Phrase:
    return Phrase(text=text, char_spans=((0, 3),), boxes=tuple(ScoredBox(xyxy=box, score=score) for box in boxes))


def plain(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def pixels_of(image: Image.Image, colour: str | tuple[int, ...]) -> np.ndarray:
    """Return (N, 2) places (x, y) of a colour."""
    wanted = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return np.argwhere((np.array(image) == np.array(wanted)).all(-1))[:, ::-1]


def test_boxes_are_drawn_where_they_are_in_the_enlarged_picture() -> None:
    drawn = draw_phrases(plain(120, 96), [phrase((30, 40, 90, 80))])
    assert drawn.size == (MIN_WIDTH, 384)
    scale = MIN_WIDTH / 120
    line = pixels_of(drawn, COLOURS[0])
    assert line[:, 0].max() == 90 * scale
    assert line[:, 0].min() == 30 * scale
    assert line[:, 1].max() == 80 * scale
    assert 40 * scale in line[line[:, 0] == 90 * scale, 1]
    assert drawn.getpixel((60 * 4, 60 * 4)) == GREY  # the inside stays visible


def test_every_phrase_has_its_colour_and_all_its_boxes() -> None:
    phrases = [phrase((10 * i, 60, 10 * i + 8, 68), (10 * i, 80, 10 * i + 8, 88)) for i in range(len(COLOURS))]
    drawn = draw_phrases(plain(96, 96), phrases)
    for i, colour in enumerate(COLOURS):
        line = pixels_of(drawn, colour)
        for bottom in (68, 88):
            assert (line == (10 * i * 5 + 20, bottom * 5)).all(1).any()


def test_the_picture_given_is_not_changed() -> None:
    image = plain(600, 400)
    draw_phrases(image, [phrase((0, 0, 300, 300))], "a dog")
    assert not pixels_of(image, COLOURS[0]).size
    assert image.size == (600, 400)


def test_caption_is_written_beneath() -> None:
    bare = draw_phrases(plain(96, 96), [])
    short, long = (draw_phrases(plain(96, 96), [], text) for text in ("a dog", "a dog and " * 9))
    endless = draw_phrases(plain(96, 96), [], "a dog and " * 900)
    assert bare.height < short.height < long.height < endless.height < bare.height + 150
    assert np.array_equal(np.array(short)[: bare.height], np.array(bare))
    assert pixels_of(short.crop((0, bare.height, short.width, short.height)), "black").size


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (4000, 3000), (700, 500)])
def test_sizes_stay_within_reason(size: tuple[int, int]) -> None:
    drawn = draw_phrases(plain(*size), [phrase((0, 0, *size))])
    assert max(drawn.size) <= MAX_SIDE
    if size[0] >= size[1]:
        assert drawn.width >= MIN_WIDTH


def test_strange_phrases_and_boxes_are_drawn_all_the_same() -> None:
    strange = [
        phrase((90, 90, 95, 95), text="x" * 300),
        phrase((5, 5, 4.5, 4.5), text="two\nlines"),
        phrase((-20, -20, 200, 200), text=""),
        phrase((1, 1, 1, 1), text="犬 🐶"),
        phrase(text="nowhere"),
    ]
    assert draw_phrases(plain(96, 96), strange, "犬\n\t🐶").width == MIN_WIDTH
