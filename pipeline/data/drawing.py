"""Pictures with boxes and phrases drawn on them, for people to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.data.records import Phrase

MIN_WIDTH = 480
"""Smaller pictures are enlarged to this width, so that labels are legible."""
FONT_SIZE = 15
# Okabe and Ito's palette without black and yellow: distinct for colour-blind readers and legible on white.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a5a00", "#5d3a9b")
_MARGIN = 4


def draw_phrases(image: Image.Image, phrases: Sequence[Phrase], caption: str = "") -> Image.Image:
    """Draw every phrase's boxes in a colour of its own, with its text and scores, and the caption beneath.

    Args:
        image: RGB picture; it is not changed.
        phrases: boxes are in its pixels.
        caption: written below the picture; nothing is added when it is empty.

    Returns:
        A new RGB picture, at least ``MIN_WIDTH`` wide.
    """
    scale = max(1.0, MIN_WIDTH / image.width)
    canvas = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    font = ImageFont.load_default(FONT_SIZE)
    draw = ImageDraw.Draw(canvas)
    for i, phrase in enumerate(phrases):
        for box in phrase.boxes:
            corners = tuple(side * scale for side in box.xyxy)
            score = "" if box.score >= 1 else f" {box.score:.2f}"
            _draw_box(draw, corners, f"{phrase.text}{score}", COLOURS[i % len(COLOURS)], font)
    return _with_caption(canvas, caption, font) if caption else canvas


def _draw_box(
    draw: ImageDraw.ImageDraw,
    corners: Sequence[float],
    label: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    # A model may put corners the wrong way round, by less than a pixel; Pillow refuses to draw that.
    (x1, x2), (y1, y2) = sorted(corners[0::2]), sorted(corners[1::2])
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=3)
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
    # Above the box where there is room, else inside it.
    y = y1 - height if y1 >= height else y1
    draw.rectangle((x1, y, x1 + width, y + height), fill=colour)
    draw.text((x1 + _MARGIN - left, y + _MARGIN - top), label, fill="white", font=font)


def _with_caption(
    canvas: Image.Image, caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    lines = textwrap.wrap(caption, width=max(20, canvas.width // (FONT_SIZE // 2)))[:6]
    line_height = FONT_SIZE + 5
    page = Image.new("RGB", (canvas.width, canvas.height + line_height * len(lines) + 2 * _MARGIN), "white")
    page.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, canvas.height + _MARGIN + i * line_height), line, fill="black", font=font)
    return page
