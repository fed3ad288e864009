"""A page of pairs that needs nothing but a browser: pictures, captions and labels in one file, to look at and to judge.

``glip review`` serves the same page, whose pictures then come one by one and whose decisions go to the server.

Captions and keys are untrusted. They reach the page as data, in JSON that cannot end its script element, and are put
into it as text, never as HTML; the page's policy forbids every script but its own and every address but its server's.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from glip_model.images import ImageError
from pipeline.inspection.reading import read_records
from pipeline.inspection.row_identity import row_fingerprint
from pipeline.inspection.search import Found
from pipeline.store.atomic import replacing
from pipeline.store.images import load_image
from pipeline.store.records import GroundingRecord, ImageRef, ScoredBox

THUMBNAIL_SIDE = 320
"""Pixels; longer sides are shrunk."""
QUALITY = 75
_TEMPLATE, _STYLE = "gallery.html.j2", "gallery.css"
_SCRIPTS = ("gallery.js", "editor.js", "saving.js")
Pair = dict[str, Any]
"""What the page knows of a row."""


@dataclass(frozen=True)
class Page:
    """What stands on a page beside its pairs."""

    title: str
    note: str = ""
    """How the pairs were chosen."""
    order: str = "as stored"
    """What the order is called in which they come."""
    reviewer: str = ""
    """Who judges, unless another name is given."""
    is_served: bool = False
    """Decisions go to a server, from where the pictures come."""


def write_gallery(
    found: Iterable[Found],
    path: Path,
    page: Page,
    max_pixels: int,
    on_row: Callable[[int], Any] = lambda rows: None,
    roots: Sequence[str] = (),
    defects: Counter[str] | None = None,
) -> int:
    """Write a page with the pairs found.

    Args:
        found: shards and rows, see ``search``.
        path: HTML file to write.
        page: title and notes.
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
        pairs.append(_with_thumbnail(record, max_pixels, roots, defects))
        on_row(1)
    with replacing(path) as aside:
        aside.write_text(render_page(page, pairs), encoding="utf-8")
    return len(pairs)


def render_page(page: Page, pairs: Sequence[Pair]) -> str:
    """Return the HTML of a page."""
    folder = Path(__file__).parent
    template, style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in (_TEMPLATE, _STYLE, *_SCRIPTS))
    script = "".join(scripts)
    prints = [pair["print"] for pair in pairs]
    # Decisions that a browser keeps are those of the same rows.
    identity = hashlib.sha256(json.dumps([page.is_served, prints]).encode()).hexdigest()[:16]
    return (
        jinja2.Environment(autoescape=True)  # for title and notes; data, style and script are not HTML
        .from_string(template)
        .render(
            page=page,
            css=style,
            script=script,
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=_script_safe_json(pairs),
            settings=_script_safe_json(asdict(page) | {"id": identity}),
        )
    )


def describe_pair(record: GroundingRecord, image: str | None, reason: str | None = None) -> Pair:
    """Return what a page knows of a row.

    Args:
        record: the row.
        image: URL of its picture.
        reason: why it has none.
    """
    phrases = [
        {
            "text": phrase.text,
            "spans": phrase.char_spans,
            "reason": phrase.reject_reason,
            "boxes": [[*map(_shortest, box.xyxy), _shortest(box.score)] for box in phrase.boxes],
            **_found_by(phrase.boxes),
        }
        for phrase in record.phrases
    ]
    head: Pair = {
        "key": record.key,
        "caption": record.caption,
        "source": record.source,
        "print": row_fingerprint(record),
    }
    head |= {"reason": record.reject_reason or reason, "w": record.width, "h": record.height}
    return head | {"image": image, "phrases": phrases}


def to_jpeg(image: Image.Image, side: int) -> bytes:
    """Return a picture as JPEG, shrunk so that no side is longer."""
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _with_thumbnail(record: GroundingRecord, max_pixels: int, roots: Sequence[str], defects: Counter[str]) -> Pair:
    picture, reason = None, None
    try:
        data = to_jpeg(load_image(record.image, max_pixels, roots), THUMBNAIL_SIDE)
        picture = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    except ImageError as error:
        reason = error.reason
        # What is rejected may have no picture; a row without one is counted as it is read.
        if not record.reject_reason and record.image != ImageRef():
            defects["picture_unreadable"] += 1
    return describe_pair(record, picture, reason)


def _found_by(boxes: Sequence[ScoredBox]) -> dict[str, Any]:
    """Return per box its teachers, how many of them agree, and its pass; nothing where no box says any of these."""
    found = [
        (
            box.teachers,
            None if box.agreement is None or not math.isfinite(box.agreement) else _shortest(box.agreement),
            box.in_pass,
        )
        for box in boxes
    ]
    return {"found": found} if any(value is not None for each in found for value in each) else {}


def _shortest(value: float) -> float:
    """Return the number with the fewest digits that shards hold as this one."""
    return float(str(np.float32(value)))


def _script_safe_json(value: Any) -> str:
    """Return JSON in which nothing can end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
