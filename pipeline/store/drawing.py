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
