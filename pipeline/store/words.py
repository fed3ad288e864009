"""Words of captions and names, and the singulars that they may have."""

from __future__ import annotations

import re
from functools import lru_cache

_PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"))
_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "people": "person",
    "teeth": "tooth",
}


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"\w+", text.lower())


@lru_cache(maxsize=100_000)
def singulars(word: str) -> frozenset[str]:
    """Return a word with every form that it could be the plural of, some of which are no words."""
    forms = {word, _IRREGULAR.get(word, word)}
    forms |= {word[: -len(end)] + new for end, new in _PLURALS if word.endswith(end) and len(word) > len(end) + 1}
    return frozenset(forms)
