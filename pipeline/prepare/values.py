"""Single values of raw data: read where they can be used, and cleaned; no value raises an error.

Raw files hold anything in any place: text for numbers, numbers without end, half of a character.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from pipeline.prepare.frames import TOLERANCE
from pipeline.store.records import Box, Span

MIN_BOX_SIDE = 1.0
"""Pixels; boxes that are smaller after clipping teach nothing and are dropped."""
UNKNOWN_LICENSE = "unknown"
"""What a pattern calls the licence of pictures whose data set says nothing."""
MAX_NAME_CHARS = 200
"""Of the key and the source that a row brings along."""


def content_key(*parts: bytes | str) -> str:
    """Return a key that depends on the content alone, 20 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def read_box(xyxy: Sequence[Any], height: int, width: int, min_side: float = MIN_BOX_SIDE) -> Box | str:
    """Read corners and clip them to the picture; one of ``BOX_DROP_REASONS`` when they cannot be used.

    A box that lies inside stays as it is; shards round its corners to float32.
    """
    try:
        x1, y1, x2, y2 = map(float, xyxy)
    except (TypeError, ValueError, OverflowError):
        return "box_malformed"
    if not math.isfinite(x1 + y1 + x2 + y2):
        return "box_malformed"
    clipped = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
    side = min(clipped[2] - clipped[0], clipped[3] - clipped[1])
    if side < min_side or side <= 0:
        return "box_degenerate"
    return clipped


def is_clipped(corners: Sequence[Any], box: Box) -> bool:
    """Tell whether clipping moved a side by more than sides are rounded by."""
    return any(abs(float(corner) - side) > TOLERANCE for corner, side in zip(corners, box, strict=True))


def read_area(value: Any) -> float | None:
    """Return the area of a mask, whatever became of its box; None when it is no number, negative or without end."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number can be larger
        return None


def read_spans(spans: Sequence[Any], caption: str) -> tuple[Span, ...]:
    """Return the pieces that have text in them, cut to the caption and freed of blanks at their ends, in order."""
    read = []
    for span in spans if isinstance(spans, list | tuple) else ():
        try:
            start, end = span
            start, end = max(int(start), 0), min(int(end), len(caption))
        except (TypeError, ValueError, OverflowError):
            continue
        text = caption[start:end]
        start += len(text) - len(text.lstrip())
        end -= len(text) - len(text.rstrip())
        if start < end:
            read.append((start, end))
    return tuple(sorted(set(read)))


def clean_caption(value: Any) -> str:
    """Return a raw caption as text that every encoding can hold, as long as before; empty when it is no text."""
    if not isinstance(value, str):
        return ""
    if value.isascii() and "\0" not in value:
        return value
    # JSON can hold half a surrogate pair, which no file and no tokenizer takes; null characters end strings early.
    text = "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= c <= "\udfff" else c for c in value)
    return text.replace("\0", " ")


def read_license(value: Any) -> str | None:
    """Return a licence as text of one line; None where the data set says nothing, as LAION does by ``?``."""
    text = " ".join(clean_caption(value).split())[:MAX_NAME_CHARS]
    return text if text.strip("?") else None


def is_allowed(license_: str | None, patterns: Sequence[str]) -> bool:
    """Tell whether a licence matches one of some patterns, whatever the case; ``unknown`` stands for none."""
    text = (license_ or UNKNOWN_LICENSE).lower()
    return any(fnmatchcase(text, pattern.lower()) for pattern in patterns)


def is_name(value: Any) -> bool:
    """Tell whether a value may be the key or the source of a record."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def is_size(side: Any) -> TypeGuard[int]:
    """Tell whether a value may be a side of a picture in pixels."""
    return isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 20
