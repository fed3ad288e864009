"""Words of anybody's in Markdown: nothing in them is a link, a tag, a heading or the end of a cell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.cli import printable

_MEANT = re.compile(r"([\\`*_\[\]<>|~$&])")


def plain(value: Any) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return _MEANT.sub(r"\\\1", printable(" ".join(str(value).split())))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table, numbers to the right; none where there are no rows."""
    cells = [[plain(cell) for cell in row] for row in rows]
    if not cells:
        return []
    return [f"| {' | '.join(row)} |" for row in ([*head], ["---", *["---:"] * (len(head) - 1)], *cells)] + [""]


def block(text: str, language: str = "") -> list[str]:
    """Return the lines of a block of code; what stands in it cannot end it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence + language, text.rstrip(), fence, ""]


def items(values: Mapping[str, Any]) -> list[str]:
    """Return a list of names with what they are."""
    return [*(f"- {name}: {plain(value)}" for name, value in values.items()), ""] if values else []
