"""A page of pairs that needs nothing but a browser: pictures, captions and labels in one file.

Captions and keys are untrusted. They reach the page as data, in JSON that cannot end its script element, and are put
into it as text, never as HTML; the page's policy forbids every script but its own and every address.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from glip_model.images import ImageError
from pipeline.inspection.reading import read_records
from pipeline.inspection.search import Found
from pipeline.store.atomic import replacing
from pipeline.store.images import load_image
from pipeline.store.records import GroundingRecord, ImageRef

THUMBNAIL_SIDE = 320
"""Pixels; longer sides are shrunk."""
QUALITY = 75
_TEMPLATE = Path(__file__).with_name("gallery.html.j2")
_SCRIPT = Path(__file__).with_name("gallery.js")


def write_gallery(
    found: Iterable[Found],
    path: Path,
    title: str,
    max_pixels: int,
    on_row: Callable[[int], Any] = lambda rows: None,
    roots: Sequence[str] = (),
    defects: Counter[str] | None = None,
) -> int:
    """Write a page with the pairs found.

    Args:
        found: shards and rows, see ``search``.
        path: HTML file to write.
        title: of the page.
        max_pixels: larger pictures are not decoded; their pairs appear without.
        on_row: told of every pair.
        roots: folders and URLs where pictures may be that do not lie in the shards.
        defects: what is broken is left out, and counted here, as are pictures that cannot be read.

    Returns:
        Pairs on the page.

    Raises:
        ShardError: a shard is broken.
    """
    pairs = []
    defects = Counter() if defects is None else defects
    for record in read_records(found, defects):
        pair = _pair(record, max_pixels, roots)
        # What is rejected may have no picture; a row without one is counted as it is read.
        if not pair["image"] and not record.reject_reason and record.image != ImageRef():
            defects["picture_unreadable"] += 1
        pairs.append(pair)
        on_row(1)
    script = _SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # autoescape for the title; data and script are not HTML.
    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, script=script, digest=digest, data=_script_safe_json(pairs), count=len(pairs)
    )
    with replacing(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return len(pairs)


def _pair(record: GroundingRecord, max_pixels: int, roots: Sequence[str]) -> dict[str, Any]:
    picture, reason = None, record.reject_reason
    try:
        picture = _thumbnail(load_image(record.image, max_pixels, roots))
    except ImageError as error:
        reason = reason or error.reason
    phrases = [
        {
            "text": phrase.text,
            "spans": phrase.char_spans,
            "reason": phrase.reject_reason,
            # Shares of the picture in thousandths: short, and right at any size.
            "boxes": [[*_thousandths(box.xyxy, record), round(box.score, 3)] for box in phrase.boxes],
        }
        for phrase in record.phrases
    ]
    head = {"key": record.key, "caption": record.caption, "source": record.source, "reason": reason}
    return head | {"w": record.width, "h": record.height, "image": picture, "phrases": phrases}


def _thousandths(xyxy: tuple[float, ...], record: GroundingRecord) -> list[int]:
    sides = (record.width, record.height, record.width, record.height)
    return [round(1000 * value / max(side, 1)) for value, side in zip(xyxy, sides, strict=True)]


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return base64.b64encode(out.getvalue()).decode()


def _script_safe_json(value: Any) -> str:
    """Return JSON in which nothing can end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
