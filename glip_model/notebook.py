"""Pictures with boxes as HTML, for notebooks: words in it are untrusted, and shown as they are."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

SHOWN = 20
"""Rows of a table; the others are counted."""
_QUALITY = 85  # of JPEG, 0 to 100: a notebook keeps every picture that it shows


def picture_html(picture: Image.Image | None, rows: Sequence[Sequence[str]], note: str = "") -> str:
    """Return a picture, where there is one, above a table and a note.

    Args:
        picture: RGB, drawn on already.
        rows: of the table, all of one length; the first is its head.
        note: a line beneath; nothing is added when it is empty.
    """
    parts = []
    if picture is not None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=_QUALITY)
        data = base64.b64encode(buffer.getvalue()).decode()
        parts.append(f'<img alt="boxes" style="max-width: 100%" src="data:image/jpeg;base64,{data}">')
    if len(rows) > 1:
        head, *body = [[html.escape(cell) for cell in row] for row in rows]
        lines = [_row("th", head), *(_row("td", row) for row in body[:SHOWN])]
        parts.append(f"<table>{''.join(lines)}</table>")
        if len(body) > SHOWN:
            parts.append(f"<p>and {len(body) - SHOWN} more</p>")
    if note:
        parts.append(f"<p>{html.escape(note)}</p>")
    return f"<div>{''.join(parts)}</div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"
