"""Where phrases stand in captions."""

from __future__ import annotations

import re


def find_phrase(phrase: str, caption: str) -> tuple[int, int] | None:
    """Return the first place where a phrase stands in a caption as whole words, whatever the case; None if nowhere."""
    phrase = phrase.strip()
    if not phrase:
        return None
    if not (phrase.isascii() and caption.isascii()):
        # Other letters may change their length with their case, which moves all places behind them.
        matched = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE)
        return matched.span() if matched else None
    text, words = caption.lower(), phrase.lower()
    start = text.find(words)
    while start >= 0:
        end = start + len(words)
        if not _is_word(text[max(start - 1, 0) : start]) and not _is_word(text[end : end + 1]):
            return start, end
        start = text.find(words, start + 1)
    return None


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"
