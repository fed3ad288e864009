"""Pictures whose place or spelling differs from what an annotation file says."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote

from pipeline.store.urls import is_url

_QUERY = "?d="
"""Label Studio has the name of a local file behind it."""


def find_picture(folder: str, names: Iterable[str]) -> str | None:
    """Find the one file below a folder that a name can mean, whatever folders either has above the other.

    Upper and lower case, forms of Unicode, ``%20`` and backslashes make no difference.

    Args:
        folder: on disk.
        names: what the annotations say, the surest first, such as ``img.JPG`` or ``/data/upload/1/img.jpg``.

    Returns:
        Its path; None where there is none, or several are as likely.
    """
    if is_url(folder):
        return None
    files = _files_by_name(folder)
    for name in names:
        for text in dict.fromkeys((name, unquote(name))):
            asked = _steps(text.rpartition(_QUERY)[2])
            fits = [
                (min(len(steps), len(asked)), path)
                for steps, path in files.get(asked[-1] if asked else "", ())
                if steps[-len(asked) :] == asked[-len(steps) :]
            ]
            # Of a/img.jpg and img.jpg, old/a/img.jpg means the first.
            best = [path for num_steps, path in fits if num_steps == max(fits)[0]]
            if len(best) == 1:
                return best[0]
    return None


@lru_cache(maxsize=4)
def _files_by_name(folder: str) -> dict[str, list[tuple[list[str], str]]]:
    """Return the steps and the path of every file below a folder, by the last step."""
    found: dict[str, list[tuple[list[str], str]]] = {}
    for place, _, names in os.walk(folder):
        above = _steps(os.path.relpath(place, folder))
        for name in names:
            steps = [*above, *_steps(name)]
            found.setdefault(steps[-1], []).append((steps, f"{place}/{name}"))
    return found


def _steps(name: str) -> list[str]:
    plain = unicodedata.normalize("NFC", name).casefold()
    return [step for step in re.split(r"[/\\]", plain) if step not in ("", ".", "..")]
