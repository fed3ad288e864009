"""Prompts: category names or captions as one text, with the character spans of what they ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glip_model.structures import CharSpans
from glip_model.text_encoder import SEPARATOR

_ABBREVIATION = r"(?<!\w)(?:[^\W\d_]\.){2,}"
_BETWEEN_PERIODS = re.compile(rf"(?:{_ABBREVIATION}|[^\s.])(?:{_ABBREVIATION}|[^.]|\.(?=\S))*(?<!\s)")
"""What stands between periods that end a word, but not between those of single letters, as in U.S."""
_MARKED = re.compile(r"([^\[\]]*)\[([^\[\]]*)\]([^\[\]]*)")


@dataclass(frozen=True)
class Prompt:
    """Segments joined by ". ", and per phrase the half-open character pieces in the joined text."""

    segments: tuple[str, ...]
    char_spans: tuple[CharSpans, ...]

    @property
    def text(self) -> str:
        """The whole prompt as the model reads it."""
        return SEPARATOR.join(self.segments)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The text of each phrase, pieces joined by a blank."""
        text = self.text
        return tuple(" ".join(text[start:end] for start, end in spans) for spans in self.char_spans)


def clean_name(name: str) -> str:
    """Make a category name readable as published: ``(…)`` removed, underscores to blanks, one double blank collapsed.

    Blanks at the ends are stripped as well, a deliberate fix: the published prompt keeps them.
    """
    name = re.sub(r"\(.*\)", "", name).replace("_", " ")
    return name.replace("  ", " ").strip()


def distinct_names(names: Sequence[str]) -> list[str]:
    """Return names without those that the model reads as an earlier one: in other case, or with other blanks."""
    by_word: dict[str, str] = {}
    for name in names:
        by_word.setdefault(clean_name(name).lower(), name)
    return list(by_word.values())


def category_prompt(names: Sequence[str]) -> Prompt:
    """Return a detection prompt, one phrase a name, without a final period.

    A name may stand in words that help to see what is meant, and is then marked: of "[puffin] with orange beaks" the
    phrase is "puffin". ODinW's manual prompts are such.

    Raises:
        ValueError: there are no names, or one is empty after cleaning.
    """
    if not names:
        raise ValueError("a prompt needs at least one category name, got none")
    segments: list[str] = []
    spans: list[CharSpans] = []
    start = 0
    for name in names:
        text, (begin, end) = _text_and_span(name)
        if not text[begin:end].strip():
            raise ValueError(f"category name {name!r} is empty after cleaning; give it a readable name")
        segments.append(text)
        spans.append([(start + begin, start + end)])
        start += len(text) + len(SEPARATOR)
    return Prompt(tuple(segments), tuple(spans))


def _text_and_span(name: str) -> tuple[str, tuple[int, int]]:
    """Return a category as it is asked for, and where in it the name stands."""
    text = clean_name(name)
    marked = _MARKED.fullmatch(text)
    if marked is None:
        return text, (0, len(text))
    before, inside, after = marked.groups()
    return before + inside + after, (len(before), len(before) + len(inside))


def caption_prompt(caption: str, char_spans: Sequence[CharSpans]) -> Prompt:
    """Return a caption exactly as it is, with the spans of its phrases.

    Raises:
        ValueError: the caption is blank, or a span is empty or leaves it.
    """
    if not caption.strip():
        raise ValueError("the caption is empty")
    for spans in char_spans:
        for start, end in spans:
            if not 0 <= start < end <= len(caption):
                raise ValueError(f"span ({start}, {end}) is not inside the caption of {len(caption)} characters")
    return Prompt((caption,), tuple(list(spans) for spans in char_spans))


def phrases_between_periods(text: str) -> list[CharSpans]:
    """Return the span of each phrase of a text like ``"a cat. a U.S. flag."``, blanks at its ends left out."""
    return [[(match.start(), match.end())] for match in _BETWEEN_PERIODS.finditer(text)]


def pack_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """Join prompts into one with shifted spans; the separator replaces a final period.

    Source: caption packing of GLIP's image-text data.
    """
    segments: list[str] = []
    spans: list[CharSpans] = []
    start = 0
    for prompt in prompts:
        trimmed = [*prompt.segments[:-1], prompt.segments[-1].rstrip(". ") or prompt.segments[-1]]
        length = len(SEPARATOR.join(trimmed))
        spans += [[(start + begin, start + min(end, length)) for begin, end in pieces] for pieces in prompt.char_spans]
        segments += trimmed
        start += length + len(SEPARATOR)
    return Prompt(tuple(segments), tuple(spans))


def chunk_categories(
    names: Sequence[str], tokenizer: Any, max_tokens: int, max_categories: int | None = None
) -> list[list[int]]:
    """Divide category names into as few prompts as fit, in order.

    Args:
        names: cleaned or raw names.
        tokenizer: a fast tokenizer.
        max_tokens: limit of one prompt, special tokens included.
        max_categories: limit of names in one prompt; 40 for LVIS as published, None for no limit.

    Returns:
        Indices into ``names`` per prompt.

    Raises:
        ValueError: one name alone is longer than a prompt may be.
    """
    chunks: list[list[int]] = [[]]
    used = 2  # [CLS] and [SEP]
    for i, name in enumerate(names):
        cost = len(tokenizer(_text_and_span(name)[0], add_special_tokens=False)["input_ids"]) + 1  # and its period
        if cost + 1 > max_tokens:
            raise ValueError(f"category name {name[:60]!r} has {cost - 1} tokens; a prompt holds {max_tokens - 2}")
        full = max_categories is not None and len(chunks[-1]) >= max_categories
        # The last name of a prompt has no period.
        if chunks[-1] and (full or used + cost - 1 > max_tokens):
            chunks.append([])
            used = 2
        chunks[-1].append(i)
        used += cost
    return [chunk for chunk in chunks if chunk]
