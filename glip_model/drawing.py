"""Pictures with labelled boxes drawn on them, for people to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageColor, ImageDraw, ImageFont

MIN_WIDTH = 480
"""Smaller pictures are enlarged to this width, so that labels are legible."""
MAX_SIDE = 1600
"""Larger pictures are reduced to this size, so that labels are legible, and slivers are enlarged no further."""
FONT_SIZE = 15
CAPTION_LINES = 6
# Okabe and Ito's palette without black and yellow: distinct for colour-blind readers and legible on white.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a5a00", "#5d3a9b")
_MARGIN = 4
_BRIGHT = 150  # of 255; on brighter colours black is easier to read than white

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class LabelledBox:
    """One box to draw."""

    xyxy: Corners
    """Corners x1, y1, x2, y2 in pixels of the picture."""
    text: str
    score: float | None = None
    """Written after the text unless it is None."""
    group: int = 0
    """Boxes of a group share a colour."""


def draw_boxes(image: Image.Image, boxes: Sequence[LabelledBox], caption: str = "") -> Image.Image:
    """Draw boxes in the colours of their groups, with their texts and scores, and the caption beneath.

    Args:
        image: RGB picture; it is not changed.
        boxes: in its pixels.
        caption: written below the picture; nothing is added when it is empty.

    Returns:
        A new RGB picture, as a rule at least ``MIN_WIDTH`` wide and never more than ``MAX_SIDE`` on a side.
    """
    scale = min(max(1.0, MIN_WIDTH / image.width), MAX_SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = image.resize(size, Image.Resampling.BICUBIC)
    font = ImageFont.load_default(FONT_SIZE)
    draw = ImageDraw.Draw(canvas)
    labels: list[tuple[str, str, Corners]] = []
    for box in boxes:
        colour = COLOURS[box.group % len(COLOURS)]
        # A model may put corners the wrong way round, by less than a pixel; Pillow refuses to draw that.
        (x1, x2), (y1, y2) = sorted(box.xyxy[0::2]), sorted(box.xyxy[1::2])
        corners = (x1 * scale, y1 * scale, x2 * scale, y2 * scale)
        edge = (corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1)
        draw.rectangle(edge, outline="white", width=5)  # a blue box on a blue picture has an edge
        draw.rectangle(corners, outline=colour, width=3)
        score = "" if box.score is None else f" {box.score:.2f}"
        labels.append((f"{' '.join(box.text.split())}{score}", colour, corners))
    _draw_labels(draw, labels, size, font)  # after all boxes, so that none runs through a label
    return _with_caption(canvas, caption, font) if caption else canvas


def _draw_labels(
    draw: ImageDraw.ImageDraw, labels: Sequence[tuple[str, str, Corners]], size: tuple[int, int], font: Font
) -> None:
    taken: list[Corners] = []
    for text, colour, corners in labels:
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        place = _place_label((right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN), corners, size, taken)
        taken.append(place)
        draw.rectangle(place, fill=colour)
        red, green, blue = ImageColor.getrgb(colour)[:3]
        is_bright = 0.299 * red + 0.587 * green + 0.114 * blue > _BRIGHT
        corner = (place[0] + _MARGIN - left, place[1] + _MARGIN - top)
        draw.text(corner, text, fill="black" if is_bright else "white", font=font)


def _place_label(label: tuple[float, float], box: Corners, size: tuple[int, int], taken: Sequence[Corners]) -> Corners:
    """Return where a label goes: above its box where there is room, else inside, below labels that are there already.

    Args:
        label: its width and height in pixels.
        box: whose label it is.
        size: width and height of the picture, which the label leaves only when it is wider itself.
        taken: places of other labels.
    """
    (width, height), (x1, y1, _, _) = label, box
    x = max(0.0, min(x1, size[0] - 1 - width))
    y = y1 - height if y1 >= height else y1
    while y + height < size[1]:
        hit = next((t for t in taken if t[0] < x + width and x < t[2] and t[1] < y + height and y < t[3]), None)
        if hit is None:
            break
        y = hit[3] + 1
    y = max(0.0, min(y, size[1] - 1 - height))
    return x, y, x + width, y + height


def _with_caption(canvas: Image.Image, caption: str, font: Font) -> Image.Image:
    characters = max(20, canvas.width // (FONT_SIZE // 2))
    lines = textwrap.wrap(caption, width=characters, max_lines=CAPTION_LINES, placeholder=" …")
    line_height = FONT_SIZE + 5
    page = Image.new("RGB", (canvas.width, canvas.height + line_height * len(lines) + 2 * _MARGIN), "white")
    page.paste(canvas, (0, 0))
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, canvas.height + _MARGIN + i * line_height), line, fill="black", font=font)
    return page
