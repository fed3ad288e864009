"""Boxes of pictures that annotations saw at another size: turned by EXIF, or resized since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glip_model.images import LYING

BOXES_SCALED, BOXES_TURNED, BOXES_TAKEN_UPRIGHT = "boxes_scaled", "boxes_turned", "boxes_taken_upright"
"""What ``Frame.converted`` says: of the first two, boxes were moved to where the upright picture shows their things. Of
the last, EXIF turns the picture, and no size tells whether its annotation saw it so; it is taken to have."""
TOLERANCE = 1.0
"""Pixels by which a side may be rounded when a picture is resized, and by which boxes may lie outside of it."""

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The pixels that the boxes of an annotation count in, and how they become those of the upright picture."""

    size: Size
    turn: int = 1
    """EXIF orientation that the boxes have to follow, 5 to 8; 1 leaves them."""
    scale: tuple[float, float] = (1.0, 1.0)
    """By which y and x grow, before they are turned."""
    converted: tuple[str, ...] = ()
    """What ``Converted`` says of a row with boxes."""

    def place(self, xyxy: Sequence[Any], is_relative: bool = False) -> Sequence[Any]:
        """Return corners in pixels of the upright picture; nothing where they are no four numbers.

        Args:
            xyxy: in whatever state they are.
            is_relative: they are shares of the sides, 0 to 1.
        """
        if not is_relative and self.turn == 1 and self.scale == (1.0, 1.0):
            return xyxy
        try:
            x1, y1, x2, y2 = map(float, xyxy)
        except (TypeError, ValueError, OverflowError):
            return ()
        height, width = (side * scale for side, scale in zip(self.size, self.scale, strict=True))
        by_y, by_x = (height, width) if is_relative else self.scale
        x1, y1, x2, y2 = x1 * by_x, y1 * by_y, x2 * by_x, y2 * by_y
        if self.turn in (6, 7):
            y1, y2 = height - y2, height - y1
        if self.turn in (7, 8):
            x1, x2 = width - x2, width - x1
        return (x1, y1, x2, y2) if self.turn == 1 else (y1, x1, y2, x2)


def find_frame(stated: Size | None, upright: Size, orientation: int, boxes: Iterable[Sequence[Any]]) -> Frame | None:
    """Find out which pixels the boxes of an annotation count in.

    They are those of the upright picture where the annotation states its size or none; those of the picture as it is
    stored where it states that size, and EXIF turns the picture by a quarter; otherwise those of the picture before it
    was resized, where both sides have one scale.

    Args:
        stated: size in the annotation; None where it has none.
        upright: size of the picture once EXIF has turned it.
        orientation: EXIF's, 1 to 8.
        boxes: corners in pixels, in whatever state they are.

    Returns:
        None where it is not certain: the sizes are of pictures of different shape, or boxes do not fit into the size
        that is stated but into that of the picture.
    """
    stored = upright[::-1] if orientation in LYING else upright
    plain = Frame(upright)
    if stated is None or stated == upright:
        if orientation == 1 or (stated is not None and stored != upright):
            return plain
        told = replace(plain, converted=(BOXES_TAKEN_UPRIGHT,))
        return None if stored != upright and _speak_against(boxes, upright, stored) else told
    by_upright, by_stored = _scale(stated, upright), _scale(stated, stored)
    is_turned = stored != upright and by_stored is not None
    if is_turned and by_upright is not None and stated != stored:  # nearly a square
        return None
    scale = by_stored if is_turned else by_upright
    if scale is None or _speak_against(boxes, stated, upright):
        return None
    notes = {
        BOXES_SCALED: scale != (1.0, 1.0),
        BOXES_TURNED: is_turned,
        BOXES_TAKEN_UPRIGHT: orientation != 1 and not is_turned and by_stored is not None,
    }
    return Frame(stated, orientation if is_turned else 1, scale, tuple(name for name, is_so in notes.items() if is_so))


def _scale(before: Size, after: Size) -> tuple[float, float] | None:
    """Return by which height and width grew; None where no one scale, rounded to pixels, explains both."""
    bounds = [((new - TOLERANCE) / old, (new + TOLERANCE) / old) for old, new in zip(before, after, strict=True)]
    is_common = max(low for low, _ in bounds) <= min(high for _, high in bounds)
    return (after[0] / before[0], after[1] / before[1]) if is_common else None


def _speak_against(boxes: Iterable[Sequence[Any]], size: Size, other: Size) -> bool:
    """Tell whether boxes fit into another size alone."""
    ends = [end for xyxy in boxes if (end := _end(xyxy)) is not None]
    return not _fit(ends, size) and _fit(ends, other)


def _end(xyxy: Sequence[Any]) -> tuple[float, float] | None:
    try:
        _, _, x2, y2 = map(float, xyxy)
    except (TypeError, ValueError, OverflowError):
        return None
    return y2, x2


def _fit(ends: Iterable[tuple[float, float]], size: Size) -> bool:
    return all(y <= size[0] + TOLERANCE and x <= size[1] + TOLERANCE for y, x in ends)
