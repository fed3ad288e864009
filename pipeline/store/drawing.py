"""Records drawn on their pictures, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from glip_model.drawing import LabelledBox, draw_boxes
from pipeline.store.records import Phrase


def draw_phrases(image: Image.Image, phrases: Sequence[Phrase], caption: str = "") -> Image.Image:
    """Draw every phrase's boxes in a colour of its own; see ``draw_boxes``. What people drew (score 1) has no score."""
    boxes = [
        LabelledBox(box.xyxy, phrase.text, box.score if box.score < 1 else None, group)
        for group, phrase in enumerate(phrases)
        for box in phrase.boxes
    ]
    return draw_boxes(image, boxes, caption)


def join_pictures(rows: Sequence[Sequence[Image.Image]], gap: int = 0) -> Image.Image:
    """Return one white page with rows of pictures, each at least one, and ``gap`` pixels between all of them."""
    width = max(sum(picture.width + gap for picture in row) for row in rows) - gap
    heights = [max(picture.height for picture in row) for row in rows]
    page = Image.new("RGB", (width, sum(height + gap for height in heights) - gap), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            page.paste(picture, (left, top))
            left += picture.width + gap
        top += height + gap
    return page
